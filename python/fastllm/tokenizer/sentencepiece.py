"""SentencePiece, from its own .model or llama2.c's tokenizer.bin: the library encodes, a table of bytes decodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken, AddedTokens
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files, Stream, Tokenizer

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
        model = self._model() + (b"" if start else _field(3, _field(3, 0)))
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


# ---- llama2.c's tokenizer.bin ----------------------------------------------------------------------------------------


def read_llama2c(files: Files) -> PieceTokenizer:
    """llama2.c's tokenizer.bin: the longest piece's length, then for each token an f32 score, a length, the bytes.

    Its encoding merges the pair of best score first, as SentencePiece's BPE does, so SentencePiece does it, from a
    model made of the same pieces and scores. BOS is 1, EOS 2.
    """
    words, scores = _core.llama2c_words(files["tokenizer.bin"])
    if len(words) < 4:
        raise TokenizerError(f"it has {len(words)} words: no tokenizer.bin")
    names = _core.byte_names(words)
    pieces = words.copy()
    for i, byte in names.items():
        pieces[i] = bytes([byte])
    pieces[1] = b""  # run.c shows all but BOS

    def model() -> bytes:
        named = [word.strip(b"\n") for word in words[:3]] + [word.replace(b" ", SPACE) for word in words[3:]]
        types = [NORMAL] * len(words)
        if {b"<0x%02X>" % b for b in range(256)} <= {words[i] for i in names}:
            for i in names:
                types[i] = BYTE
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        return piece_model(named, scores, types, add_dummy_prefix=True)

    added = {i: AddedToken(words[i].strip(b"\n").decode("utf-8", "replace"), special=True) for i in (1, 2)}
    tokenizer = PieceTokenizer(words, pieces, model, added, space=True)
    tokenizer.exact = True
    return tokenizer


def piece_model(words: list[bytes], scores: Sequence[float], types: list[int], *, add_dummy_prefix: bool) -> bytes:
    """A sentencepiece ModelProto: BPE by score, nothing normalized. types has one UNKNOWN."""
    trainer = _field(3, 2) + _field(35, int(BYTE in types))  # model_type BPE, byte_fallback
    trainer += _field(40, types.index(UNKNOWN))
    for number in (41, 42, 43):  # BOS, EOS and padding are known as control pieces, not by role
        trainer += _field(number, -1)
    normalizer = _field(1, b"identity") + _field(3, int(add_dummy_prefix)) + _field(4, 0) + _field(5, 1)
    return _core.write_proto_pieces(words, scores, types) + _field(2, trainer) + _field(3, normalizer)


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


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


# ---- SentencePiece's own files ---------------------------------------------------------------------------------------

# Role, its id's field in the model's TrainerSpec, the id where it is not there, the piece's type.
_ROLES = (("unk_token", 40, 0, UNKNOWN), ("bos_token", 41, 1, CONTROL), ("eos_token", 42, 2, CONTROL))


def read(files: Files) -> PieceTokenizer:
    """A SentencePiece .model: a protobuf of pieces (1: text, 2: score, 3: type) and a normalizer."""
    blob, settings = files["tokenizer.model"], Settings(files)
    words, types, others = _core.proto_pieces(blob)
    if not words:
        raise TokenizerError("it is no SentencePiece model: it has no pieces")
    trainer, normalizer = dict[int, Any](), dict[int, Any]()
    for number, value in others:
        if number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_core.proto_fields(value))
    for role, field, default, kind in _ROLES:
        i = trainer.get(field, default)
        if isinstance(i, int) and i < len(words) and types[i] == kind:
            settings.propose(role, words[i].decode("utf-8", "replace"))
    prefix, trims = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    space, rule, first = prefix or trims, b"", settings.legacy is False
    if settings.llama:
        # transformers' LlamaTokenizer takes the pieces from the model and none of its rules for spaces.
        prefix, space, first = False, settings.flag("add_prefix_space") is not False, not settings.legacy
        rule = _field(3, _field(1, b"identity") + _field(2, b"") + _field(3, int(space)) + _field(4, 0) + _field(5, 1))
    added = _added(words, types, settings, early=prefix)
    # The library takes a user-defined piece for itself wherever it is written: one that is taken before must not be.
    changed = {
        i: CONTROL if token.special else NORMAL
        for i, token in added.items()
        if i < len(types) and types[i] == USER_DEFINED and (token.special or settings.llama)
    }
    pieces, inside = shown(words, types), len(words)
    gap = range(inside, max(added, default=-1) + 1)
    words += [b"" for _ in gap]
    pieces += [b"" for _ in gap]
    for i, token in added.items():
        content = token.content.encode("utf-8", "replace")
        if token.special:
            pieces[i] = b""
        elif words[i] != content:
            pieces[i] = content
        words[i] = content

    def model() -> bytes:
        return (_retyped(blob, changed) if changed else blob) + rule

    unspaced = " \u2581" if first or settings.llama else ""
    tokenizer = PieceTokenizer(words, pieces, model, added, space=space, first=first, unspaced=unspaced)
    tokenizer.plain = inside
    tokenizer.added = [*tokenizer.added, *user_defined(words, types, added)]
    tokenizer.prefix, tokenizer.suffix = settings.affixes(tokenizer.token_id, None, None)
    settings.describe(tokenizer)
    return tokenizer


def _added(words: Sequence[bytes], types: Sequence[int], settings: Settings, *, early: bool) -> dict[int, AddedToken]:
    """The tokens that are taken out of a text first: the model's own control pieces, and what the settings add.

    A text that is a piece keeps the piece's id, whatever the settings say; one that is nowhere gets the next. early:
    whether none waits until others have been found.
    """
    settings.check_added(len(words))
    own = (CONTROL, USER_DEFINED, UNKNOWN) if settings.llama else (CONTROL,)
    added = {
        i: AddedToken(words[i].decode("utf-8", "replace"), kind != USER_DEFINED)
        for i, kind in enumerate(types)
        if kind in own
    }
    if settings.added or settings.special:
        places = {word: i for i, word in reversed(list(enumerate(words)))}
        for i, token in sorted(settings.added.items()):
            place = places.setdefault(token.content.encode("utf-8", "replace"), i)
            added[place] = token._replace(normalized=token.normalized and not early)
        end = max(len(words) - 1, max(added, default=0)) + 1
        for token in settings.special:
            place = places.setdefault(token.content.encode("utf-8", "replace"), end)
            added[place] = token
            end += place == end
    return added


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


def _retyped(blob: bytes, kinds: Mapping[int, int]) -> bytes:
    """The model with these pieces' types changed."""
    out, index, fields = [], 0, _core.proto_fields(blob)
    for number, value in fields:
        if number != 1 or not isinstance(value, bytes):
            continue
        out.append(_field(1, value + _field(3, kinds[index]) if index in kinds else value))
        index += 1
    others = [_field(number, value) for number, value in fields if number in (2, 3, 5)]
    return b"".join(out + others)
