"""The decoders of the tokenizers library, token by token.

The library decodes a list of tokens at once, in steps that change the list or its texts
(https://huggingface.co/docs/tokenizers/api/decoders). Here each step is an object that takes one token after the other
and returns what later tokens can no longer change, so that everything returned, joined, is what the library makes of
the whole list. Most vocabularies have ByteLevel as the only step; a table of bytes does this in a fraction of the time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastllm.errors import TokenizerError
from fastllm.tokenizer._pieces import byte_or
from fastllm.tokenizer._tables import Computed
from fastllm.tokenizer.base import Stream

Word = Callable[[int], str | None]
Json = dict[str, Any]  # a step as the tokenizer.json has it: {"type": ..., ...}

# The most that a step may make of a token, whichever of the two is more: a broken file could fill all memory.
_MOST_TEXT = 1 << 12  # characters
_MOST_GROWTH = 64  # times the characters of the token


class Decoder:
    """The decoder of a tokenizers.Tokenizer.

    library: the module tokenizers. word: gives the text of the token with an id, None where it is not shown. size: the
    number of ids. Raises TokenizerError for a step that is not known here.
    """

    def __init__(self, library: Any, tokenizer: Any, word: Word, size: int) -> None:
        decoder = tokenizer.decoder
        self._library, self._word = library, word
        # Without a decoder the library puts a space between any two tokens.
        self._settings: list[Json] = (
            [{"type": "Join"}] if decoder is None else _flat(json.loads(decoder.__getstate__()))
        )
        self._bytes = [step["type"] for step in self._settings] == ["ByteLevel"]
        to_bytes = _from_alphabet if self._bytes else self._piece
        # In CLIP's vocabulary "</w>" marks the end of a word; transformers shows a space there. "\0\0" is in no token.
        end = (getattr(tokenizer.model, "end_of_word_suffix", None) or "\0\0").encode()

        def piece(i: int) -> bytes:
            text = word(i)
            made = b"" if text is None else to_bytes(text)
            return made.removesuffix(end) + b" " if made.endswith(end) else made

        self._pieces = Computed(size, piece)
        self._steps()  # raises for a step that is not known

    def _piece(self, text: str) -> bytes:
        """The bytes that a token stands for, as far as they depend on it alone."""
        for settings in self._settings:
            name: str = settings["type"]
            if name == "ByteFallback" and (byte := byte_or(text.encode(), b"")):
                return byte
            if name == "Replace" and (old := settings["pattern"].get("String")):
                text = _replaced(text, old, settings["content"])
            elif name == "Metaspace":
                text = text.replace(settings["replacement"], " ")
        return text.encode()

    def stream(self, previous: int | None) -> Stream:
        """A decoder for the ids that follow the shown token `previous`; None: for a text from its start."""
        if self._bytes:
            return Stream(self._pieces)
        stream = _StepStream(self._pieces, self._word, self._steps())
        if previous is not None:
            alone = _StepStream(self._pieces, self._word, self._steps())
            stream.skip(previous, len(alone.push(previous) + alone.flush()))
        return stream

    def _steps(self) -> list[_Step]:
        """New objects of the steps.

        After Fuse and ByteLevel all tokens are one, which the steps after them get in parts. Only Replace of a fixed
        text and Strip work on parts; any other step waits for the end.
        """
        steps: list[_Step] = []
        whole = False  # whether all tokens are one by now
        for settings in self._settings:
            name = settings["type"]
            if name == "Fuse":
                whole = True
            elif name == "Replace":
                steps.append(self._replace(settings, whole))
            elif name == "Strip" and whole:
                steps.append(_Strip(settings))
            elif name in _STEPS:
                step = _STEPS[name](settings)
                steps.append(_Whole(step) if whole else step)
            else:
                raise TokenizerError(f"its decoder {name!r} is not known here")
            whole = whole or name == "ByteLevel"
        return steps

    def _replace(self, settings: Json, whole: bool) -> _Step:
        """A Replace, of a fixed text here, of a regular expression by the library."""
        old, new = settings["pattern"].get("String"), settings["content"]
        if old:
            return _Replace(old, new) if whole else _Each(lambda text, _: _replaced(text, old, new))
        if len(new) > _MOST_GROWTH:
            raise TokenizerError(f"its decoder puts more than {_MOST_GROWTH} characters for each match of a pattern")
        decoders = self._library.decoders
        pattern = old if old is not None else self._library.Regex(settings["pattern"]["Regex"])
        replace = decoders.Replace(pattern, new)
        step = _Each(lambda text, _: str(replace.decode([text])))
        return _Whole(step) if whole else step


class _StepStream(Stream):
    """Runs each token through a decoder's steps. word: see Decoder."""

    def __init__(self, pieces: Sequence[bytes], word: Word, steps: list[_Step]) -> None:
        self.pieces, self._word, self._steps = pieces, word, steps
        self._skip = 0  # how many characters to drop: they belong to the token before this stream

    def skip(self, token: int, characters: int) -> None:
        """Begins after a token whose text, of so many characters, is shown already. Steps may depend on it."""
        self._skip = characters
        self.push(token)

    def push(self, token: int) -> str:
        word = self._word(token)
        return "" if word is None else self._rest(_through(self._steps, [word]))

    def flush(self) -> str:
        parts: list[str] = []
        for i, step in enumerate(self._steps):
            parts.append(_through(self._steps[i + 1 :], step.end()))
        return self._rest("".join(parts))

    def _rest(self, text: str) -> str:
        text, self._skip = text[self._skip :], max(0, self._skip - len(text))
        return text


def _through(steps: list[_Step], texts: list[str]) -> str:
    for step in steps:  # nearly always with one token, so that this case is kept fast
        texts = step.push(texts[0]) if len(texts) == 1 else [out for text in texts for out in step.push(text)]
    return "".join(texts)


def _flat(decoder: Json) -> list[Json]:
    """The steps of a decoder in order, also those inside nested Sequences."""
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _flat(inner)]
    return [decoder]


# ---- steps on a list of tokens ---------------------------------------------------------------------------------------


class _Step(Protocol):
    """push: takes the next token, returns the tokens that are now certain. end: returns the rest."""

    def push(self, text: str) -> list[str]: ...
    def end(self) -> list[str]: ...


class _Each:
    """Changes each token by itself. change: makes the new token from a token and whether it is the first."""

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change, self._first = change, True

    def push(self, text: str) -> list[str]:
        first, self._first = self._first, False
        return [self._change(text, first)]

    def end(self) -> list[str]:
        return []


class _BPEDecoder:
    """The suffix that marks the end of a word becomes a space, in the last token nothing."""

    def __init__(self, settings: Json) -> None:
        self._suffix, self._last = settings["suffix"], list[str]()

    def push(self, text: str) -> list[str]:
        out, self._last = [_replaced(last, self._suffix, " ") for last in self._last], [text]
        return out

    def end(self) -> list[str]:
        return [last.replace(self._suffix, "") for last in self._last]


class _CTC:
    """Of a token that is repeated one is kept, and padding is dropped."""

    def __init__(self, settings: Json) -> None:
        self._settings, self._last = settings, list[str]()

    def push(self, text: str) -> list[str]:
        if self._last == [text]:
            return []
        self._last = [text]
        text = text.replace(self._settings["pad_token"], "")
        if self._settings["cleanup"]:
            text = _replaced(_cleaned(text), self._settings["word_delimiter_token"], " ")
        return [text] if text else []

    def end(self) -> list[str]:
        return []


class _ByteFallback:
    """A run of tokens such as <0xE2> is UTF-8; where that is broken, each of them becomes U+FFFD.

    So nothing of a run is certain before its last token.
    """

    def __init__(self, settings: Json) -> None:
        self._run = b""

    def push(self, text: str) -> list[str]:
        if text.startswith("<") and (byte := byte_or(text.encode(), b"")):
            self._run += byte
            return []
        return [*self.end(), text] if self._run else [text]

    def end(self) -> list[str]:
        run, self._run = self._run, b""
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _ByteLevel:
    """GPT-2's characters back to bytes, and these to text as UTF-8, across tokens. All tokens become one."""

    def __init__(self, settings: Json) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, text: str) -> list[str]:
        return [self._utf8.decode(_from_alphabet(text))]

    def end(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


# ---- steps on one token that comes in parts --------------------------------------------------------------------------


class _Whole:
    """Runs a step at the end, on the whole token: its last character may decide what becomes of the first."""

    def __init__(self, step: _Step) -> None:
        self._step, self._parts = step, list[str]()

    def push(self, text: str) -> list[str]:
        self._parts.append(text)
        return []

    def end(self) -> list[str]:
        return [*self._step.push("".join(self._parts)), *self._step.end()]


class _Replace:
    """Replaces `old`. Holds the end of a part back while it could be the beginning of `old`."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new, self._held = old, new, ""

    def push(self, text: str) -> list[str]:
        text = self._held + text
        rest = text.split(self._old)[-1]
        done = _replaced(text[: len(text) - len(rest)], self._old, self._new)
        most = min(len(rest), len(self._old) - 1)
        keep = next((n for n in range(most, 0, -1) if self._old.startswith(rest[-n:])), 0)
        self._held = rest[len(rest) - keep :]
        return [done + rest[: len(rest) - keep]]

    def end(self) -> list[str]:
        return [self._held]


class _Strip:
    """Drops a character up to `start` times at the start and up to `stop` times at the end.

    As many of this character as may be the last ones are held back.
    """

    def __init__(self, settings: Json) -> None:
        self._content, self._start, self._stop = settings["content"], settings["start"], settings["stop"]
        self._held = 0

    def push(self, text: str) -> list[str]:
        while self._start and text:
            self._start = self._start - 1 if text[0] == self._content else 0
            text = text.removeprefix(self._content) if text[0] == self._content else text
        if not self._stop:
            return [text]
        text = self._content * self._held + text
        self._held = min(self._stop, len(text) - len(text.rstrip(self._content)))
        return [text[: len(text) - self._held]]

    def end(self) -> list[str]:
        return []


# ---- changes of a token ----------------------------------------------------------------------------------------------


def _replaced(text: str, old: str, new: str) -> str:
    """text.replace(old, new). Raises TokenizerError where that would be far longer than the text."""
    found = text.count(old)
    if not found:
        return text
    length = len(text) + found * (len(new) - len(old))
    if length > max(_MOST_TEXT, _MOST_GROWTH * len(text)):
        raise TokenizerError(f"its decoder makes a token more than {_MOST_TEXT:,} characters long")
    return text.replace(old, new)


def _strip(settings: Json) -> _Step:
    content, start, stop = settings["content"], settings["start"], settings["stop"]

    def change(text: str, first: bool) -> str:
        text = text[min(start, len(text) - len(text.lstrip(content))) :]
        return text[: len(text) - min(stop, len(text) - len(text.rstrip(content)))]

    return _Each(change)


def _cleaned(text: str) -> str:
    """Without spaces before English punctuation and short forms: the flag "cleanup" of the library's decoders."""
    for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " do not", " 's", " 've", " 're"):
        text = text.replace(mark, " don't" if mark == " do not" else mark.strip())
    return text


def _word_piece(settings: Json) -> _Step:
    """WordPiece: a token with the prefix ("##") is joined to the one before, any other follows a space."""
    prefix = settings["prefix"]

    def change(text: str, first: bool) -> str:
        if not first:
            text = text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
        return _cleaned(text) if settings["cleanup"] else text

    return _Each(change)


def _metaspace(settings: Json) -> _Step:
    mark, spaced = settings["replacement"], settings.get("prepend_scheme") == "never"
    return _Each(lambda text, first: text.replace(mark, "" if first and not spaced else " "))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: bytes_to_unicode in https://github.com/openai/gpt-2, src/encoder.py.

    A byte that is a printable character in Latin-1 is that character; the others are the characters from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _from_alphabet(text: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in text])
    except KeyError:  # an added token is plain text, not in this alphabet
        return text.encode()


_STEPS: dict[str, Callable[[Json], _Step]] = {
    "Join": lambda _: _Each(lambda text, first: text if first else f" {text}"),
    "BPEDecoder": _BPEDecoder,
    "ByteFallback": _ByteFallback,
    "ByteLevel": _ByteLevel,
    "CTC": _CTC,
    "Metaspace": _metaspace,
    "Strip": _strip,
    "WordPiece": _word_piece,
}
