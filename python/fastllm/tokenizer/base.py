"""What every tokenizer offers: Tokenizer, the Stream it decodes with, and small functions over both."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

Files = Mapping[str, bytes]
CLASS_FILE = "tokenizer_class"  # beside them in a blob: the class that a vocabulary is for, see classes.py


class Stream:
    """Turns tokens into text one by one; the pieces joined are what decoding all of them gives.

    pieces: the bytes of each token, none for a token that is not shown. at_start: whether one space before the first
    bytes is left out.
    """

    def __init__(self, pieces: Sequence[bytes], *, at_start: bool = False) -> None:
        self.pieces, self._at_start = pieces, at_start
        self._utf8, self._within = codecs.getincrementaldecoder("utf-8")("replace"), False

    def push(self, token: int) -> str:
        """The text that is certain with this token: maybe none, never half a character."""
        # A model's vocabulary may be padded past the tokenizer's.
        piece = self.pieces[token] if token < len(self.pieces) else b""
        if self._at_start and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        if not self._within and piece.isascii():  # nearly always, and a tenth of the time
            return piece.decode()
        text = self._utf8.decode(piece)
        self._within = bool(self._utf8.getstate()[0])  # a character has begun
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character is incomplete."""
        return self._utf8.decode(b"", final=True)


class Pair(NamedTuple):
    """The ids that are put around two texts that are read as one: before the first, between them, after the second.

    second: how many of those between belong to the first; the others and the second text have a token type of their
    own. None where they have not.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    suffix: tuple[int, ...]
    second: int | None = None


class Tokenizer(Protocol):
    """A vocabulary.

    kind, blob: what a converted file keeps of it; from_blob(kind, blob) gives it back.
    size: its ids are 0 .. size - 1. A model may have more, then the rest is padding.
    plain: ids that a text without special tokens may have are 0 .. plain - 1; a model needs as many.
    exact: whether the model must have exactly `size`.
    prefix, suffix: the ids that the tokenizer's own files put before and after a text (BOS; [CLS] and [SEP]); None
    where they do not say, so that the model's family decides.
    pair: the same for a pair of texts, where the files say.
    special: the special tokens by their text. added: tokens that are taken whole wherever they are written, though not
    special.
    roles: the text of "bos_token", "eos_token" and so on, as far as the files say. ends: ids that end what a model
    says: what its files name, and special tokens that are known to.
    chat_template: a Jinja template of a conversation, where the files have one. tool_template: another one for
    conversations with tools.
    """

    kind: str = ""
    blob: bytes = b""
    size: int
    plain: int
    exact: bool = False
    prefix: tuple[int, ...] | None = None
    suffix: tuple[int, ...] | None = None
    pair: Pair | None = None
    special: Collection[str] = ()
    added: Collection[str] = ()
    roles: Mapping[str, str] = MappingProxyType({})
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    tool_template: str | None = None

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """The ids of a text, without prefix and suffix. Raises TokenizerError where the vocabulary cannot say it.

        special: whether special tokens written in the text ("<|im_start|>", "[MASK]") become their ids; else they are
        text like any other. start: whether this begins a text: some vocabularies put a space there.
        """

    def stream(self, previous: int | None = None) -> Stream:
        """A decoder of what follows the token `previous`; None: of a text from its start."""

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written exactly so, such as "<|im_end|>"."""


def cut_pair(a: list[int], b: list[int], room: int | None, *, left: bool = False) -> tuple[list[int], list[int]]:
    """Two texts without their ends, so that both together have at most `room` tokens: the longer one is cut first.

    They are as long as the tokenizers library's longest_first leaves them. left: they lose their beginnings instead.
    """
    if room is None or len(a) + len(b) <= room:
        return a, b
    short, long = sorted((len(a), len(b)))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    sizes = (short, long) if len(a) <= len(b) else (long, short)
    first, second = (text[len(text) - n :] if left else text[:n] for text, n in zip((a, b), sizes, strict=True))
    return first, second


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens from the start of a text, without special tokens."""
    stream = tokenizer.stream()
    return "".join([stream.push(token) for token in tokens]) + stream.flush()
