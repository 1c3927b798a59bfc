"""What every tokenizer offers: Tokenizer, the Stream it decodes with, and small functions over both."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

Bytes = bytes | memoryview
Files = Mapping[str, bytes]  # the files of a tokenizer: name -> content
# An entry of Files that is no file: the name of transformers' class that the vocabulary is for (_classes.py). Converted
# files store it in place of config.json, which may say it.
CLASS_FILE = "tokenizer_class"


class Stream:
    """Decodes token ids one by one.

    What push() returns for each id, joined, and then flush(), is the text of all the ids together.

    pieces: for each id the bytes it stands for, empty for ids that are not shown (special tokens). at_start: whether
    one space before the first bytes is dropped, as SentencePiece does at the start of a text.
    """

    def __init__(self, pieces: Sequence[bytes], *, at_start: bool = False) -> None:
        self.pieces, self._at_start = pieces, at_start
        self._utf8, self._within = codecs.getincrementaldecoder("utf-8")("replace"), False

    def push(self, token: int) -> str:
        """The text that this id completes. Empty while the bytes so far end inside a UTF-8 character."""
        # A model's vocabulary may be padded past the tokenizer's.
        piece = self.pieces[token] if token < len(self.pieces) else b""
        if self._at_start and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        if not self._within and piece.isascii():  # the usual case, ten times faster than the incremental decoder
            return piece.decode()
        text = self._utf8.decode(piece)
        self._within = bool(self._utf8.getstate()[0])  # the decoder holds the first bytes of a character
        return text

    def flush(self) -> str:
        """The rest at the end of the ids: U+FFFD for a character that was not completed, else nothing."""
        return self._utf8.decode(b"", final=True)


class Pair(NamedTuple):
    """The special ids around two texts that a model reads as one input, such as BERT's [CLS] a [SEP] b [SEP].

    prefix, between, suffix: the ids before the first text, between the two, after the second. second: how many ids of
    `between` still have the first text's token type, 0; all later ids have type 1. None where every id has type 0.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    suffix: tuple[int, ...]
    second: int | None = None


class Tokenizer(Protocol):
    """A vocabulary: text to token ids and back.

    kind, blob: what a converted file stores of the tokenizer; from_blob(kind, blob) makes it again.
    size: the number of ids, 0 to size - 1. A model may have more rows; these are padding.
    plain: the ids of texts without added tokens are 0 to plain - 1; the model must have a row for each of these.
    exact: whether each id of the model must be a word of the vocabulary, so that none is padding.
    prefix, suffix: the ids that the tokenizer's files put before and after a text (BOS; [CLS] and [SEP]); None where
    the files do not say, then the model's family decides.
    pair: the ids around two texts, where the files say.
    special: the texts of the special tokens. added: the texts of tokens that are matched as a whole wherever they are
    written, but are not special.
    roles: the text of "bos_token", "eos_token" and so on, as far as the files say.
    ends: the ids after which generation stops: those that the files name, and special tokens known to end a text
    (END_TOKENS).
    response_template: how replies are read back into messages (chat/response.py), as the files have it, unchecked.
    chat_template: the Jinja template of a conversation; tool_template: another one for conversations with tools. None
    where the files have none.
    """

    kind: str = ""
    blob: Bytes = b""
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
    response_template: object = None

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """The ids of a text, without prefix and suffix. Raises TokenizerError where the vocabulary has no token for it.

        special: whether special tokens written in the text ("<|im_start|>", "[MASK]") become their ids; otherwise they
        are split like any other text. start: whether the text begins here, where some vocabularies put a space in
        front; False for a text that continues another.
        """

    def stream(self, previous: int | None = None) -> Stream:
        """A decoder for the ids that follow the id `previous`; None: for a text from its start."""

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text, such as "<|im_end|>"; None where there is none."""


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of token ids from the start of a text. Special tokens are not shown."""
    stream = tokenizer.stream()
    return "".join([stream.push(token) for token in tokens]) + stream.flush()


def cut_pair(a: list[int], b: list[int], room: int | None, *, left: bool = False) -> tuple[list[int], list[int]]:
    """Shortens two texts until both together have at most `room` ids (None: no limit), the longer one first.

    The lengths are those of the tokenizers library's truncation strategy "longest_first". left: ids are dropped from
    the beginning of each text instead of its end.
    """
    if room is None or len(a) + len(b) <= room:
        return a, b
    # truncate_encodings in the library, tokenizers/src/utils/truncation.rs
    short, long = sorted((len(a), len(b)))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    sizes = (short, long) if len(a) <= len(b) else (long, short)
    first, second = (text[len(text) - n :] if left else text[:n] for text, n in zip((a, b), sizes, strict=True))
    return first, second
