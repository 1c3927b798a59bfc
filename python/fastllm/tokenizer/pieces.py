"""SentencePiece, from its own .model or llama2.c's tokenizer.bin: the library encodes, a table of bytes decodes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer import Files, Stream, Tokenizer
from fastllm.tokenizer.settings import Settings

SPACE = "\u2581".encode()
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # sentencepiece_model.proto, Type; GGUF's too
_BYTE_NAME = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class PieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary.

    words: the tokens as the file has them. pieces: the bytes that each is shown as. model: makes the library's
    ModelProto. controls: text -> id of the special tokens. space: whether decoding takes away a space at the start.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        pieces: Sequence[bytes],
        model: Callable[[], bytes],
        controls: Mapping[str, int],
        *,
        space: bool,
    ) -> None:
        self.size = self.plain = len(pieces)
        self._words, self._pieces, self._model, self._controls = words, pieces, model, controls
        self.special = controls.keys()
        self._space = space
        self._processors: dict[bool, Any] = {}
        self._loading = Lock()

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # Lone surrogates are bytes that were not UTF-8 to begin with.
        text = text.encode("utf-8", "replace").decode()
        if not special or self._splitter is None:
            return self._encode(text, start=start)
        ids: list[int] = []
        for i, part in enumerate(self._splitter.split(text)):
            if i % 2:
                ids.append(self._controls[part])
            else:
                # What follows a special token begins a text of its own, with the space that belongs there.
                ids += self._encode(part, start=start or i > 0)
        return ids

    @cached_property
    def _splitter(self) -> re.Pattern[str] | None:
        return special_splitter(self._controls)  # of Gemma's thousands: made where it is needed

    def _encode(self, text: str, *, start: bool) -> list[int]:
        if not text:
            return []
        return list(self._processor(start).EncodeAsIds(text))

    def _processor(self, start: bool) -> Any:
        with self._loading:
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
        if text in self._controls:
            return self._controls[text]
        word = text.encode("utf-8", "surrogateescape")
        return self._words.index(word) if word in self._words else None


def special_splitter(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Splits a text at special tokens, the longest first: text, token, text, token, ... text. None: there are none."""
    texts = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None


def byte_or(piece: bytes, other: bytes) -> bytes:
    found = _BYTE_NAME.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else other


# ---- llama2.c's tokenizer.bin ----------------------------------------------------------------------------------------


def read_llama2c(files: Files) -> PieceTokenizer:
    """llama2.c's tokenizer.bin: the longest piece's length, then for each token an f32 score, a length, the bytes.

    Its encoding merges the pair of best score first, as SentencePiece's BPE does, so SentencePiece does it, from a
    model made of the same pieces and scores. BOS is 1, EOS 2.
    """
    blob = files["tokenizer.bin"]
    # What a start waits for: no more is done here for each of 32,000 words than must be.
    words: list[bytes] = []
    offset, size, unpack = 4, len(blob), struct.Struct("<i").unpack_from
    while offset < size:
        if offset + 8 > size:
            raise TokenizerError(f"it is truncated after {len(words):,} words")
        (length,) = unpack(blob, offset + 4)
        offset += 8
        if not 0 <= length <= size - offset:
            raise TokenizerError(f"word {len(words):,} would be {length:,} bytes long: truncated, or no tokenizer.bin")
        words.append(blob[offset : offset + length])
        offset += length
    if len(words) < 4:
        raise TokenizerError(f"it has {len(words)} words: no tokenizer.bin")
    pieces = [byte_or(word, word) if word.startswith(b"<0x") else word for word in words]
    pieces[1] = b""  # run.c shows all but BOS

    def model() -> bytes:
        scores: list[float] = []
        offset = 4
        for word in words:
            scores += struct.unpack_from("<f", blob, offset)
            offset += 8 + len(word)
        all_bytes = {b"<0x%02X>" % b for b in range(256)} <= set(words)
        types = [BYTE if all_bytes and _BYTE_NAME.fullmatch(word) else NORMAL for word in words]
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        named = [word.strip(b"\n") for word in words[:3]] + [word.replace(b" ", SPACE) for word in words[3:]]
        return piece_model(named, scores, types, add_dummy_prefix=True)

    controls = {words[i].strip(b"\n").decode("utf-8", "replace"): i for i in (1, 2)}
    tokenizer = PieceTokenizer(words, pieces, model, controls, space=True)
    tokenizer.exact = True
    return tokenizer


def piece_model(words: list[bytes], scores: Sequence[float], types: list[int], *, add_dummy_prefix: bool) -> bytes:
    """A sentencepiece ModelProto: BPE by score, nothing normalized. types has one UNKNOWN."""
    entries, seen = [], set()
    for i, (word, score, kind) in enumerate(zip(words, scores, types, strict=True)):
        # Each piece once, and none that is not text: such words cannot be met in encoding.
        if not word or word in seen or not _is_text(word):
            word, kind = b"<unused%d>" % i, CONTROL if kind != UNKNOWN else UNKNOWN  # noqa: PLW2901
        seen.add(word)
        # The piece as field 1, its score 2, its type 3; the whole as field 1 of the model.
        entry = b"\n%b%b\x15%b\x18%c" % (_varint(len(word)), word, struct.pack("<f", score), kind)
        entries.append(b"\n%b%b" % (_varint(len(entry)), entry))
    trainer = _field(3, 2) + _field(35, int(BYTE in types))  # model_type BPE, byte_fallback
    trainer += _field(40, types.index(UNKNOWN))
    for number in (41, 42, 43):  # BOS, EOS and padding are known as control pieces, not by role
        trainer += _field(number, -1)
    normalizer = _field(1, b"identity") + _field(3, int(add_dummy_prefix)) + _field(4, 0) + _field(5, 1)
    return b"".join(entries) + _field(2, trainer) + _field(3, normalizer)


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def read(files: Files) -> PieceTokenizer:
    """A SentencePiece .model: a protobuf of pieces (1: text, 2: score, 3: type) and a normalizer."""
    blob, settings = files["tokenizer.model"], Settings(files)
    words: list[bytes] = []
    types: list[int] = []
    space, demoted = True, set()
    for number, value in _fields(blob):
        if number == 1 and isinstance(value, bytes):
            word, kind = _piece(value)
            # The library takes a user-defined piece for itself wherever it is written: a special one must not be.
            if kind == USER_DEFINED and settings.added.get(len(words), ("", False))[1]:
                kind = CONTROL
                demoted.add(len(words))
            words.append(word)
            types.append(kind)
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            space = bool(normalizer.get(3, 1)) or bool(normalizer.get(4, 1))
    if not words:
        raise TokenizerError("it is no SentencePiece model: it has no pieces")
    controls = {word.decode("utf-8", "replace"): i for i, word in enumerate(words) if types[i] == CONTROL}
    pieces = shown(words, types)
    inside = len(words)
    settings.check_added(inside)

    def model() -> bytes:
        return blob if not demoted else _as_control(blob, demoted)

    for i, (text_, special) in sorted(settings.added.items()):
        controls[text_] = i
        if i >= inside:
            gap = range(len(words), i + 1)
            words += [b"" for _ in gap]
            pieces += [b"" for _ in gap]
            words[i], pieces[i] = text_.encode("utf-8", "replace"), b"" if special else text_.encode("utf-8", "replace")
    tokenizer = PieceTokenizer(words, pieces, model, controls, space=space)
    tokenizer.plain = inside
    tokenizer.prefix, tokenizer.suffix = settings.affixes(tokenizer.token_id, None, None)
    settings.describe(tokenizer)
    return tokenizer


def shown(words: Sequence[bytes], types: Sequence[int]) -> list[bytes]:
    """The bytes that each piece is shown as."""
    out = []
    for word, kind in zip(words, types, strict=True):
        if kind == NORMAL:
            out.append(word.replace(SPACE, b" "))
        elif kind == CONTROL:
            out.append(b"")
        elif kind == UNKNOWN:
            out.append(" \u2047 ".encode())
        else:
            out.append(byte_or(word, word) if kind == BYTE else word.replace(SPACE, b" "))
    return out


def _piece(entry: bytes) -> tuple[bytes, int]:
    """The text and the type of a piece."""
    # Almost all are laid out so: the text as field 1, the score, and a type where it is not NORMAL.
    if entry[:1] == b"\n" and 2 < len(entry) < 0x80:
        end = 2 + entry[1]
        if entry[end : end + 1] == b"\x15":
            if len(entry) == end + 5:
                return entry[2:end], NORMAL
            if len(entry) == end + 7 and entry[end + 5] == 0x18:
                return entry[2:end], entry[end + 6]
    fields = dict(_fields(entry))
    text, kind = fields.get(1, b""), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(kind, int):
        raise TokenizerError("it is no SentencePiece model: a piece without text")
    return text, kind


def _as_control(blob: bytes, ids: set[int]) -> bytes:
    """The model with these pieces' type changed to CONTROL."""
    out, index = [], 0
    for number, value in _fields(blob):
        if number != 1 or not isinstance(value, bytes):
            continue
        out.append(_field(1, value + _field(3, CONTROL) if index in ids else value))
        index += 1
    others = [_field(number, value) for number, value in _fields(blob) if number in (2, 3, 5)]
    return b"".join(out + others)


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints as int, everything else as bytes."""
    out: list[tuple[int, int | bytes]] = []
    at, length = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= length or shift > 63:
                raise TokenizerError("it is truncated, or no SentencePiece model")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < length:
        if data[at] == 0x0A and at + 1 < length and data[at + 1] < 0x80:  # field 1, a short one: nearly always
            key, size = 0x0A, data[at + 1]
            at += 2
        else:
            key = varint()
            if key & 7 == 0:
                out.append((key >> 3, varint()))
                continue
            size = varint() if key & 7 == 2 else {1: 8, 5: 4}.get(key & 7, length + 1)
        if size > length - at:
            raise TokenizerError("it is truncated, or no SentencePiece model")
        out.append((key >> 3, data[at : at + size]))
        at += size
    return out
