"""Text to token ids and back, through the libraries that own the formats.

Encoding is the library's (sentencepiece, tokenizers), loaded when the first text is encoded: a run without a prompt
never waits for it. Decoding a SentencePiece vocabulary is a table of bytes.
"""

from __future__ import annotations

import codecs
import os.path
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastllm.errors import TokenizerError

_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581".encode()
_NORMAL, _UNKNOWN, _CONTROL, _BYTE_TYPE = 1, 2, 3, 6  # sentencepiece_model.proto, SentencePiece.Type


class Stream(Protocol):
    """Turns tokens into text one by one; the pieces joined are what decoding all of them gives."""

    def push(self, token: int) -> str:
        """The text that is certain with this token: maybe none, never half a character."""

    def flush(self) -> str:
        """What is left at the end."""


class Tokenizer(Protocol):
    """A vocabulary. kind and blob are what a converted file keeps of it."""

    kind: str
    blob: bytes
    size: int

    def encode(self, text: str, *, bos: int | None) -> list[int]:
        """The ids of a text, after `bos` where that is given."""

    def stream(self, previous: int | None = None, *, bos: int | None) -> Stream:
        """A decoder of what follows the token `previous`; None: of a text from its start."""


def decode(tokenizer: Tokenizer, tokens: Sequence[int], *, bos: int | None) -> str:
    """The text of tokens from the start of a text."""
    stream = tokenizer.stream(bos=bos)
    return "".join([stream.push(token) for token in tokens]) + stream.flush()


# ---- SentencePiece, and llama2.c's tokenizer.bin -------------------------------------------------------------------


class PieceTokenizer:
    """SentencePiece, from its own .model or llama2.c's tokenizer.bin.

    pieces: the bytes of each token. prefix: whether encoding puts a space before a text, which decoding takes away.
    """

    def __init__(self, kind: str, blob: bytes, model: bytes, pieces: list[bytes], *, prefix: bool) -> None:
        self.kind, self.blob, self.size = kind, blob, len(pieces)
        self._model, self._pieces, self._prefix = model, pieces, prefix
        self._processor: Any = None

    def encode(self, text: str, *, bos: int | None) -> list[int]:
        start = [] if bos is None else [bos]
        if not text:
            return start
        if self._processor is None:
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor()
            try:
                processor.LoadFromSerializedProto(self._model)
            except (RuntimeError, UnicodeDecodeError) as error:
                reason = str(error).strip().splitlines()[-1:]
                raise TokenizerError(f"sentencepiece refuses the tokenizer: {' '.join(reason)}") from None
            self._processor = processor
        # Lone surrogates are bytes that were not UTF-8 to begin with.
        return start + list(self._processor.EncodeAsIds(text.encode("utf-8", "replace").decode()))

    def stream(self, previous: int | None = None, *, bos: int | None) -> PieceStream:
        at_start = self._prefix and (previous is None or previous == bos)
        return PieceStream(self._pieces, at_start=at_start, bos=bos)


class PieceStream:
    def __init__(self, pieces: list[bytes], *, at_start: bool, bos: int | None) -> None:
        self._pieces, self._at_start, self._bos = pieces, at_start, bos
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token == self._bos:
            return ""
        # A model's vocabulary may be padded past the tokenizer's.
        piece = self._pieces[token] if token < len(self._pieces) else b""
        if self._at_start and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def read_llama2c(blob: bytes) -> PieceTokenizer:
    """llama2.c's tokenizer.bin: the longest piece's length, then for each token an f32 score, a length, the bytes.

    Its encoding merges the pair of best score first, as SentencePiece's BPE does, so SentencePiece does it, from a
    model made of the same pieces and scores.
    """
    words: list[tuple[bytes, float]] = []
    offset = 4
    while offset < len(blob):
        if offset + 8 > len(blob):
            raise TokenizerError(f"it is truncated after {len(words):,} words")
        score, length = struct.unpack_from("<fi", blob, offset)
        offset += 8
        if not 0 <= length <= len(blob) - offset:
            raise TokenizerError(f"word {len(words):,} would be {length:,} bytes long: truncated, or no tokenizer.bin")
        words.append((blob[offset : offset + length], score))
        offset += length
    if len(words) < 4:
        raise TokenizerError(f"it has {len(words)} words: no tokenizer.bin")
    pieces = [_byte_or(word, word) for word, _ in words]
    return PieceTokenizer("llama2.c", blob, _piece_model(words), pieces, prefix=True)


def _byte_or(piece: bytes, other: bytes) -> bytes:
    found = _BYTE.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else other


def _varint(value: int) -> bytes:
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


def _piece_model(words: list[tuple[bytes, float]]) -> bytes:
    """A sentencepiece ModelProto of llama2.c's words: unknown 0, BOS 1, EOS 2, bytes, the rest by score."""
    model, seen = bytearray(), set()
    all_bytes = {b"<0x%02X>" % b for b in range(256)} <= {word for word, _ in words}
    for i, (word, score) in enumerate(words):
        kind = _UNKNOWN if i == 0 else _CONTROL if i < 3 else _NORMAL
        piece = word.strip(b"\n") if i < 3 else word.replace(b" ", _SPACE)
        if kind == _NORMAL and all_bytes and _BYTE.fullmatch(word):
            kind = _BYTE_TYPE
        try:
            piece.decode()
        except UnicodeDecodeError:
            piece = b""
        # Each piece once, and none that is not text: such words cannot be met in encoding.
        if not piece or piece in seen:
            piece, kind = b"<unused%d>" % i, _CONTROL
        seen.add(piece)
        entry = _field(1, piece) + b"\x15" + struct.pack("<f", score) + _field(3, kind)
        model += _field(1, entry)
    trainer = _field(3, 2) + _field(35, int(all_bytes))  # model_type BPE, byte_fallback
    trainer += _field(40, 0) + _field(41, 1) + _field(42, 2)  # ids of unknown, BOS, EOS
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    return bytes(model) + _field(2, trainer) + _field(3, normalizer)


def read_sentencepiece(blob: bytes) -> PieceTokenizer:
    """A SentencePiece .model: a protobuf of pieces (1: text, 2: score, 3: type) and a normalizer."""
    pieces: list[bytes] = []
    prefix = True
    for number, value in _fields(blob):
        if number == 1 and isinstance(value, bytes):
            entry = dict(_fields(value))
            text, kind = entry.get(1, b""), entry.get(3, _NORMAL)
            if not isinstance(text, bytes):
                raise TokenizerError("it is no SentencePiece model: a piece without text")
            if kind == _CONTROL:
                pieces.append(b"")
            elif kind == _UNKNOWN:
                pieces.append(" \u2047 ".encode())
            elif kind == _BYTE_TYPE:
                pieces.append(_byte_or(text, text))
            else:
                pieces.append(text.replace(_SPACE, b" "))
        elif number == 3 and isinstance(value, bytes):
            prefix = bool(dict(_fields(value)).get(3, 1))
    if not pieces:
        raise TokenizerError("it is no SentencePiece model: it has no pieces")
    return PieceTokenizer("sentencepiece", blob, blob, pieces, prefix=prefix)


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints as int, everything else as bytes."""
    out: list[tuple[int, int | bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise TokenizerError("it is truncated, or no SentencePiece model")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            out.append((key >> 3, varint()))
            continue
        if wire not in (1, 2, 5):
            raise TokenizerError("it is truncated, or no SentencePiece model")
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if size > len(data) - at:
            raise TokenizerError("it is truncated, or no SentencePiece model")
        out.append((key >> 3, data[at : at + size]))
        at += size
    return out


# ---- tokenizer.json ------------------------------------------------------------------------------------------------


class JsonTokenizer:
    """Hugging Face's tokenizer.json, through the tokenizers library (the extra "hf")."""

    kind = "tokenizer.json"

    def __init__(self, blob: bytes) -> None:
        try:
            import tokenizers
        except ImportError:
            raise TokenizerError("tokenizer.json needs the tokenizers library: pip install 'fastllm[hf]'") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(blob)
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"the tokenizers library refuses it: {error}") from None
        self.blob = blob
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, bos: int | None) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if bos is None else [bos, *ids]

    def stream(self, previous: int | None = None, *, bos: int | None) -> JsonStream:
        return JsonStream(self._tokenizer, previous)


class JsonStream:
    """Decodes a growing window: a token's text may depend on the one before it, and on bytes that are to come."""

    def __init__(self, tokenizer: Any, previous: int | None) -> None:
        self._tokenizer = tokenizer
        self._window = [] if previous is None else [previous]
        self._shown = self._decode().rstrip("\ufffd")  # a character that is cut off here comes whole with the next

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._window, skip_special_tokens=True))

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._decode()
        if text.endswith("\ufffd"):
            return ""
        new = text[len(os.path.commonprefix([text, self._shown])) :]  # noqa: RUF071
        if new:
            self._window = self._window[-1:]
            self._shown = self._decode()
        return new

    def flush(self) -> str:
        text = self._decode()
        return text[len(os.path.commonprefix([text, self._shown])) :]  # noqa: RUF071


# ---- finding one ---------------------------------------------------------------------------------------------------

_READERS: dict[str, Callable[[bytes], Tokenizer]] = {
    "llama2.c": read_llama2c,
    "sentencepiece": read_sentencepiece,
    "tokenizer.json": JsonTokenizer,
}


def from_blob(kind: str, blob: bytes) -> Tokenizer:
    """A tokenizer from its kind and its file's bytes. Raises TokenizerError."""
    if kind not in _READERS:
        raise TokenizerError(f"no tokenizer of the kind {kind!r} is known")
    return _READERS[kind](blob)


def _kind_of(path: Path, blob: bytes) -> str:
    if path.suffix == ".json" or blob[:1] == b"{":
        return "tokenizer.json"
    # A SentencePiece model begins with field 1, a piece of a few bytes; a tokenizer.bin with a small int32.
    return "sentencepiece" if blob[:1] == b"\x0a" and blob[2:3] == b"\x0a" else "llama2.c"


def read(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a file, which must have vocab_size words. Raises TokenizerError, naming the file."""
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise TokenizerError(f"{path} does not exist") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    try:
        tokenizer = from_blob(_kind_of(path, blob), blob)
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no usable tokenizer: {error}") from None
    if tokenizer.size != vocab_size:
        raise TokenizerError(f"{path} has {tokenizer.size:,} words, the model {vocab_size:,}")
    return tokenizer


def find(checkpoint: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer beside a checkpoint, else in the current folder: the first that fits.

    Raises TokenizerError that names every place looked at and what was wrong there.
    """
    names = ("tokenizer.bin", f"tok{vocab_size}.bin", "tokenizer.model", "tokenizer.json")
    folders = [checkpoint.parent]
    if checkpoint.parent.resolve() != Path.cwd():
        folders.append(Path.cwd())
    looked: list[str] = []
    for path in (folder / name for folder in folders for name in names):
        if not path.exists():
            looked.append(f"{path} does not exist")
            continue
        try:
            return read(path, vocab_size)
        except TokenizerError as error:
            looked.append(str(error))
    raise TokenizerError(f"no tokenizer fits {checkpoint} (looked at: {'; '.join(looked)})")
