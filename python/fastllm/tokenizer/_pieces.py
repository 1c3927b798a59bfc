"""SentencePiece, from its own .model or llama2.c's tokenizer.bin: the library encodes, a table of bytes decodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken, AddedTokens
from fastllm.tokenizer.base import Stream, Tokenizer

SPACE = "\u2581".encode()
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # sentencepiece_model.proto, Type; GGUF's too
_BYTE_NAME = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class PieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary.

    words: the tokens as the file has them. pieces: the bytes that each is shown as. model: makes the library's
    ModelProto. added: the tokens that are taken out of a text first, by id. space: whether decoding takes away a space
    at the start. first: whether a space is put before a text only, not after each added token too. unspaced:
    characters; what begins with one of them gets no space.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        pieces: Sequence[bytes],
        model: Callable[[], bytes],
        added: Mapping[int, AddedToken],
        *,
        space: bool,
        first: bool = False,
        unspaced: str = "",
    ) -> None:
        self.size = self.plain = len(pieces)
        self._words, self._pieces, self._model = words, pieces, model
        self._added, self._ids = AddedTokens(added), {token.content: i for i, token in added.items()}
        self.special = [token.content for token in added.values() if token.special]
        self.added = [token.content for token in added.values() if not token.special]
        self._space, self._first, self._unspaced = space, first, tuple(unspaced)
        # Made where they are needed, by two threads at once maybe: a lock would stay held in a child of fork.
        self._processors: dict[bool, Any] = {}

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # Lone surrogates are bytes that were not UTF-8 to begin with.
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        for i, part in enumerate(self._added.split(text, special=special)):
            if isinstance(part, int):
                ids.append(part)
            else:
                spaced = (start if i == 0 else not self._first) and not part.startswith(self._unspaced)
                ids += self._processor(spaced).EncodeAsIds(part)
        return ids

    def _processor(self, start: bool) -> Any:
        if start not in self._processors:
            self._processors[start] = self._load(start)
        return self._processors[start]

    def _load(self, start: bool) -> Any:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        # Messages that are given twice are merged: this only turns add_dummy_prefix off.
        model = self._model() + (b"" if start else proto_field(3, proto_field(3, 0)))
        try:
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, UnicodeDecodeError) as error:
            reason = str(error).strip().splitlines()[-1:]
            raise TokenizerError(f"sentencepiece refuses the tokenizer: {' '.join(reason)}") from None
        return processor

    def stream(self, previous: int | None = None) -> Stream:
        hidden = previous is not None and previous < len(self._pieces) and not self._pieces[previous]
        return Stream(self._pieces, at_start=self._space and (previous is None or hidden))

    def token_id(self, text: str) -> int | None:
        if text in self._ids:
            return self._ids[text]
        word = text.encode("utf-8", "surrogateescape")
        return self._words.index(word) if word in self._words else None


def byte_or(piece: bytes, other: bytes) -> bytes:
    found = _BYTE_NAME.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else other


def piece_model(words: list[bytes], scores: Sequence[float], types: list[int], *, add_dummy_prefix: bool) -> bytes:
    """A sentencepiece ModelProto: BPE by score, nothing normalized. types has one UNKNOWN."""
    trainer = proto_field(3, 2) + proto_field(35, int(BYTE in types))  # model_type BPE, byte_fallback
    trainer += proto_field(40, types.index(UNKNOWN))
    for number in (41, 42, 43):  # BOS, EOS and padding are known as control pieces, not by role
        trainer += proto_field(number, -1)
    normalizer = (
        proto_field(1, b"identity") + proto_field(3, int(add_dummy_prefix)) + proto_field(4, 0) + proto_field(5, 1)
    )
    return _core.write_proto_pieces(words, scores, types) + proto_field(2, trainer) + proto_field(3, normalizer)


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


def proto_field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def user_defined(words: Sequence[bytes], types: Sequence[int], added: Mapping[int, AddedToken]) -> list[str]:
    """The pieces that the library itself takes whole wherever they are written."""
    found = [i for i, kind in enumerate(types) if kind == USER_DEFINED and i not in added]
    return [words[i].decode("utf-8", "replace") for i in found]


def shown(words: Sequence[bytes], types: Sequence[int]) -> list[bytes]:
    """The bytes that each piece is shown as."""
    out = [word.replace(SPACE, b" ") for word in words]
    for i, kind in enumerate(types):
        if kind == NORMAL:
            continue
        if kind == CONTROL:
            out[i] = b""
        elif kind == UNKNOWN:
            out[i] = " \u2047 ".encode()
        elif kind == BYTE:
            out[i] = byte_or(words[i], words[i])
    return out
