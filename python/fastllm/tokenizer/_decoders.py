"""What tokens are shown as by a tokenizers.Tokenizer, piece by piece.

The library decodes whole texts. Here its decoder's steps each take the tokens one by one and give on what can no longer
change, so that the pieces joined are what the library makes of the whole. Where the only step is one from characters to
bytes, which is the case of most vocabularies, a table of bytes does the same in a fraction of the time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastllm.errors import TokenizerError
from fastllm.tokenizer._pieces import byte_or
from fastllm.tokenizer.base import Stream

Settings = dict[str, Any]

_MOST_TEXT = 1 << 12  # characters that a step may make of a token ...
_MOST_GROWTH = 64  # ... or times what it has got


class Decoding:
    """A tokenizer's decoder. words: the tokens that are shown, by id. Raises TokenizerError for a step that is not
    known."""

    def __init__(self, library: Any, tokenizer: Any, words: Mapping[int, str], size: int) -> None:
        decoder = tokenizer.decoder
        self._library, self._words = library, words
        # Without a decoder the library puts a space between any two tokens.
        self._settings = [{"type": "Join"}] if decoder is None else _flat(json.loads(decoder.__getstate__()))
        self._bytes = [step["type"] for step in self._settings] == ["ByteLevel"]
        self._pieces = [b""] * size
        to_bytes = _from_alphabet if self._bytes else str.encode
        # CLIP's pieces end a word with this; transformers shows a space there.
        end = (getattr(tokenizer.model, "end_of_word_suffix", None) or "\0\0").encode()
        for i, word in words.items():
            piece = to_bytes(word)
            self._pieces[i] = piece.removesuffix(end) + b" " if piece.endswith(end) else piece
        self._steps()

    def stream(self, previous: int | None) -> Stream:
        """A decoder of what follows the shown token `previous`; None: of a text from its start."""
        if self._bytes:
            return Stream(self._pieces)
        stream = StepStream(self._pieces, self._words, self._steps())
        if previous is not None:
            alone = StepStream(self._pieces, self._words, self._steps())
            stream.skip(previous, len(alone.push(previous) + alone.flush()))
        return stream

    def _steps(self) -> list[_Step]:
        """The steps, fresh. After some of them all tokens are one, of which the next step gets parts."""
        steps: list[_Step] = []
        whole = False
        for settings in self._settings:
            kind = settings["type"]
            if kind == "Fuse":
                whole = True
            elif kind == "Replace":
                steps.append(self._replace(settings, whole))
            elif kind == "Strip" and whole:
                steps.append(_Strip(settings))
            elif kind in _STEPS:
                step = _STEPS[kind](settings)
                steps.append(_Whole(step) if whole else step)
            else:
                raise TokenizerError(f"its decoder {kind!r} is not known here")
            whole = whole or kind == "ByteLevel"
        return steps

    def _replace(self, settings: Settings, whole: bool) -> _Step:
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


class StepStream(Stream):
    """Runs each token through a decoder's steps."""

    def __init__(self, pieces: list[bytes], words: Mapping[int, str], steps: list[_Step]) -> None:
        self.pieces, self._words, self._steps = pieces, words, steps
        self._skip = 0  # characters that are none of this text

    def skip(self, token: int, characters: int) -> None:
        """Takes a token of the text before, whose own characters are shown already."""
        self._skip = characters
        self.push(token)

    def push(self, token: int) -> str:
        word = self._words.get(token)
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
    for step in steps:  # nearly always it is one token
        texts = step.push(texts[0]) if len(texts) == 1 else [out for text in texts for out in step.push(text)]
    return "".join(texts)


def _flat(decoder: Settings) -> list[Settings]:
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _flat(inner)]
    return [decoder]


# ---- steps that see tokens -------------------------------------------------------------------------------------------


class _Step(Protocol):
    """push: what is certain with the next token. end: the rest. Both: as tokens."""

    def push(self, text: str) -> list[str]: ...
    def end(self) -> list[str]: ...


class _Each:
    """Changes each token by itself. change: gets a token and whether it is the first."""

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change, self._first = change, True

    def push(self, text: str) -> list[str]:
        first, self._first = self._first, False
        return [self._change(text, first)]

    def end(self) -> list[str]:
        return []


class _Suffix:
    """BPEDecoder: a suffix is a space, but not in the last token."""

    def __init__(self, settings: Settings) -> None:
        self._suffix, self._last = settings["suffix"], list[str]()

    def push(self, text: str) -> list[str]:
        out, self._last = [_replaced(last, self._suffix, " ") for last in self._last], [text]
        return out

    def end(self) -> list[str]:
        return [last.replace(self._suffix, "") for last in self._last]


class _Distinct:
    """CTC: a token counts once for all its repetitions, and padding for none."""

    def __init__(self, settings: Settings) -> None:
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


class _NamedBytes:
    """ByteFallback: tokens such as <0xE2> in a row are UTF-8, or as many U+FFFD, which their last one decides."""

    def __init__(self, settings: Settings) -> None:
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
    """GPT-2's characters for bytes, of all tokens together; what follows gets one token."""

    def __init__(self, settings: Settings) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, text: str) -> list[str]:
        return [self._utf8.decode(_from_alphabet(text))]

    def end(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


# ---- steps that see parts of one token -------------------------------------------------------------------------------


class _Whole:
    """Waits for the end: what the first part becomes may be decided by the last."""

    def __init__(self, step: _Step) -> None:
        self._step, self._parts = step, list[str]()

    def push(self, text: str) -> list[str]:
        self._parts.append(text)
        return []

    def end(self) -> list[str]:
        return [*self._step.push("".join(self._parts)), *self._step.end()]


class _Replace:
    """Replaces a text; what may be its beginning waits."""

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
    """Leaves out up to so many characters at the start, and at the end, where they may be the last."""

    def __init__(self, settings: Settings) -> None:
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


# ---- what becomes of a token -----------------------------------------------------------------------------------------


def _replaced(text: str, old: str, new: str) -> str:
    found = text.count(old)
    if not found:
        return text
    length = len(text) + found * (len(new) - len(old))
    if length > max(_MOST_TEXT, _MOST_GROWTH * len(text)):
        raise TokenizerError(f"its decoder makes a token more than {_MOST_TEXT:,} characters long")
    return text.replace(old, new)


def _strip(settings: Settings) -> _Step:
    content, start, stop = settings["content"], settings["start"], settings["stop"]

    def change(text: str, first: bool) -> str:
        text = text[min(start, len(text) - len(text.lstrip(content))) :]
        return text[: len(text) - min(stop, len(text) - len(text.rstrip(content)))]

    return _Each(change)


def _cleaned(text: str) -> str:
    """Without the spaces that English does not have before punctuation and short forms."""
    for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " do not", " 's", " 've", " 're"):
        text = text.replace(mark, " don't" if mark == " do not" else mark.strip())
    return text


def _word_piece(settings: Settings) -> _Step:
    """Pieces after the first: a word after a space, unless it is a word's end or punctuation."""
    prefix = settings["prefix"]

    def change(text: str, first: bool) -> str:
        if not first:
            text = text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
        return _cleaned(text) if settings["cleanup"] else text

    return _Each(change)


def _metaspace(settings: Settings) -> _Step:
    mark, spaced = settings["replacement"], settings.get("prepend_scheme") == "never"
    return _Each(lambda text, first: text.replace(mark, "" if first and not spaced else " "))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others follow from U+0100."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _from_alphabet(text: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in text])
    except KeyError:  # an added token is written as it is
        return text.encode()


_STEPS: dict[str, Callable[[Settings], _Step]] = {
    "Join": lambda _: _Each(lambda text, first: text if first else f" {text}"),
    "BPEDecoder": _Suffix,
    "ByteFallback": _NamedBytes,
    "ByteLevel": _ByteLevel,
    "CTC": _Distinct,
    "Metaspace": _metaspace,
    "Strip": _strip,
    "WordPiece": _word_piece,
}
