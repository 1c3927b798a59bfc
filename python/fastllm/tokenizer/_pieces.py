"""SentencePiece vocabularies, whose tokens are called pieces: encoding, decoding, and models made of a list of pieces.

Three kinds share this: SentencePiece's own models (sentencepiece.py), llama2.c's tokenizer.bin (llama2c.py) and GGUF's
"llama" vocabularies (gguf.py). The sentencepiece library encodes (Kudo and Richardson, 2018,
https://arxiv.org/abs/1808.06226); a table of bytes decodes. The loops over all pieces of a vocabulary are Cython:
pyx/pieces.pxi.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken, AddedTokens
from fastllm.tokenizer._tables import Joined
from fastllm.tokenizer.base import Bytes, Stream, Tokenizer

SPACE = "\u2581".encode()  # stands for a space in a piece
# ModelProto.SentencePiece.Type in https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto;
# GGUF's token types are the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE_NAME = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class PieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary.

    words: the pieces as the file has them, UTF-8. pieces: the bytes that each id is shown as. model: makes the model
    (a serialized ModelProto) that the library encodes with. added: the tokens that are taken out of a text before the
    library sees it, by id.
    strips_space: whether decoding drops a space at the start of a text, which encoding puts there.
    space_at_start_only: whether encoding puts a space only at the start of a text; otherwise also after each added
    token. unspaced: characters; a part of a text that begins with one of them gets no space.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        pieces: Sequence[bytes],
        model: Callable[[], bytes],
        added: Mapping[int, AddedToken],
        *,
        strips_space: bool,
        space_at_start_only: bool = False,
        unspaced: str = "",
    ) -> None:
        self.size = self.plain = len(pieces)
        self._words, self._pieces, self._model = words, pieces, model
        self._added, self._ids = AddedTokens(added), {token.content: i for i, token in added.items()}
        self.special = [token.content for token in added.values() if token.special]
        self.added = [token.content for token in added.values() if not token.special]
        self._strips_space, self._at_start_only, self._unspaced = strips_space, space_at_start_only, tuple(unspaced)
        # Whether a space is put in front -> the library's object, loaded when it is first needed. Two threads may both
        # load one, which is harmless; a lock could stay held in a child of fork.
        self._processors: dict[bool, Any] = {}

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # A lone surrogate stands for a byte that was not UTF-8 when the text was read; it becomes "?".
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        for i, part in enumerate(self._added.split(text, special=special)):
            if isinstance(part, int):
                ids.append(part)
            else:
                spaced = (start if i == 0 else not self._at_start_only) and not part.startswith(self._unspaced)
                ids += self._processor(spaced).EncodeAsIds(part)
        return ids

    def _processor(self, spaced: bool) -> Any:
        if spaced not in self._processors:
            self._processors[spaced] = self._load(spaced)
        return self._processors[spaced]

    def _load(self, spaced: bool) -> Any:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        # Protobuf merges a message that occurs twice: a second NormalizerSpec (field 3 of ModelProto) with nothing but
        # add_dummy_prefix (field 3) = 0 turns the space in front off and leaves the first spec's other fields.
        model = self._model() + (b"" if spaced else proto_field(3, proto_field(3, 0)))
        try:
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, UnicodeDecodeError) as error:
            reason = str(error).strip().splitlines()[-1:]
            raise TokenizerError(f"sentencepiece refuses the tokenizer: {' '.join(reason)}") from None
        return processor

    def stream(self, previous: int | None = None) -> Stream:
        hidden = previous is not None and previous < len(self._pieces) and not self._pieces[previous]
        return Stream(self._pieces, at_start=self._strips_space and (previous is None or hidden))

    def token_id(self, text: str) -> int | None:
        if text in self._ids:
            return self._ids[text]
        word = text.encode("utf-8", "surrogateescape")
        if isinstance(self._words, Joined):
            return self._words.find(word) if word else None
        return self._words.index(word) if word in self._words else None

    def parts(self) -> tuple[dict[str, Any], list[Bytes]]:
        """What from_parts makes it of again."""
        about = {
            "added": [[i, *token] for i, token in self._added.tokens.items()],
            "strips_space": self._strips_space,
            "space_at_start_only": self._at_start_only,
            "unspaced": "".join(self._unspaced),
        }
        return about, [*Joined.parts(self._words), *Joined.parts(self._pieces), self._model()]

    @classmethod
    def from_parts(cls, about: Mapping[str, Any], parts: Sequence[Bytes]) -> PieceTokenizer:
        """A tokenizer without what all kinds have (ready.py)."""
        words, word_ends, pieces, piece_ends, model = parts
        return cls(
            Joined(words, word_ends),
            Joined(pieces, piece_ends),
            lambda: bytes(model),
            {i: AddedToken(*fields) for i, *fields in about["added"]},
            strips_space=about["strips_space"],
            space_at_start_only=about["space_at_start_only"],
            unspaced=about["unspaced"],
        )


# ---- what pieces are shown as ----------------------------------------------------------------------------------------


def byte_or(piece: bytes, other: bytes) -> bytes:
    """The byte that a byte-fallback piece names, such as <0x0A>; `other` for any other piece."""
    found = _BYTE_NAME.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else other


def shown(words: Sequence[bytes], types: Sequence[int]) -> list[bytes]:
    """The bytes that each piece is shown as, by its type, as the library shows it."""
    out = [word.replace(SPACE, b" ") for word in words]
    for i, type_ in enumerate(types):
        if type_ == NORMAL:
            continue
        if type_ == CONTROL:
            out[i] = b""
        elif type_ == UNKNOWN:
            out[i] = " \u2047 ".encode()
        elif type_ == BYTE:
            out[i] = byte_or(words[i], words[i])
    return out


def user_defined(words: Sequence[bytes], types: Sequence[int], added: Mapping[int, AddedToken]) -> list[str]:
    """The texts of the USER_DEFINED pieces that are not in `added`: these the library itself matches as a whole."""
    found = [i for i, type_ in enumerate(types) if type_ == USER_DEFINED and i not in added]
    return [words[i].decode("utf-8", "replace") for i in found]


# ---- models made here ------------------------------------------------------------------------------------------------


def piece_model(words: list[bytes], scores: Sequence[float], types: list[int], *, add_dummy_prefix: bool) -> bytes:
    """A serialized ModelProto of these pieces: BPE that merges the pair of the best score first, nothing normalized.

    types: of each piece; exactly one is UNKNOWN. add_dummy_prefix: whether a text gets a space in front.
    """
    trainer = proto_field(3, 2) + proto_field(35, int(BYTE in types))  # model_type BPE, byte_fallback
    trainer += proto_field(40, types.index(UNKNOWN))  # unk_id
    for number in (41, 42, 43):  # no bos_id, eos_id, pad_id: their pieces are of the type CONTROL, which is enough
        trainer += proto_field(number, -1)
    # name, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = proto_field(1, b"identity") + proto_field(3, int(add_dummy_prefix))
    normalizer += proto_field(4, 0) + proto_field(5, 1)
    return _core.write_proto_pieces(words, scores, types) + proto_field(2, trainer) + proto_field(3, normalizer)


def proto_field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message (https://protobuf.dev/programming-guides/encoding/): a varint, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return b"%c" % value
    value &= (1 << 64) - 1  # a negative number is its two's complement
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
