"""What ends a text besides the model's own tokens: token ids, strings, patterns and functions."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Any

from fastllm.decoding._checks import is_list
from fastllm.errors import OptionError

if TYPE_CHECKING:
    import re

LONGEST = 64  # characters of a match of a pattern that sets no bound, and of what a pattern may look back at


def listed(stop: Any) -> list[Any]:
    """What ends a text as a list: of one thing, of several, or None."""
    return list(stop) if is_list(stop) else [] if stop is None else [stop]


class Stops:
    """What ends a text, for any number of texts: `scan()` gives the state of one.

    stop: None, a string, a token id, a compiled regular expression, a function from the text so far to whether it ends,
    or an iterable of these. vocab_size: ids are below it. tokens: the ids, which the engine looks for. bool(stops):
    whether there is anything else, for which a Scan must look.

    Raises OptionError for anything else, for an empty string, and for a pattern that matches an empty text.
    """

    def __init__(self, stop: Any, vocab_size: int) -> None:
        self.strings: list[str] = []
        self.patterns: list[tuple[re.Pattern[str], int]] = []  # with the most characters that are looked at together
        self.functions: list[Callable[[str], object]] = []
        tokens: list[int] = []
        for one in listed(stop):
            if isinstance(one, Integral) and not isinstance(one, bool):
                token = int(one)
                if not 0 <= token < vocab_size:
                    raise OptionError(f"stop has {token}, which is no token id: the vocabulary has {vocab_size:,}")
                tokens.append(token)
            elif isinstance(one, str):
                if not one:
                    raise OptionError("stop has an empty string, which would end every text")
                self.strings.append(str(one))
            elif callable(one):
                self.functions.append(one)
            else:
                self.patterns.append((one, _reach(one)))
        self.tokens = tuple(tokens)

    def __bool__(self) -> bool:
        return bool(self.strings or self.patterns or self.functions)

    def scan(self) -> Scan:
        """The state of one text, at its start."""
        return Scan(self)


class Scan:
    """Takes a text piece by piece and passes on what comes before its end.

    The end is the beginning of the string or match that is complete first; of two that become complete with the same
    character, of the one that begins first. A match is complete at the first character after it, or when the text is
    over, since until then it might grow, or not be one ("$", word boundaries); one of a pattern that sets no bound
    ("[0-9]+") also when it has LONGEST characters. So the end does not depend on the pieces: it is the same as for the
    text character by character.

    What may still become a string or a match is held back: the end of the text so far that a string begins with, or the
    last characters, as many as the longest match of a pattern may have.

    Functions are asked after each piece, with the whole text so far; a text that one of them ends is kept whole.

    found: whether the text has ended; nothing is passed on after that.
    """

    def __init__(self, stops: Stops) -> None:
        self.found = False
        self._strings, self._patterns, self._functions = stops.strings, stops.patterns, stops.functions
        # With strings alone, a piece that has none of their first characters is passed on as it is: most are such.
        self._simple = not (self._patterns or self._functions)
        self._firsts = {string[0] for string in self._strings}
        self._whole = ""  # the text so far, for functions
        self._text = ""  # the end of it: what patterns may look back at, and what is held back
        self._passed = 0  # how many characters of _text have been passed on

    def push(self, piece: str) -> str:
        """The text that is certain now: it may be empty."""
        if self.found or not piece:
            return ""
        if self._simple and not self._text and self._firsts.isdisjoint(piece):
            return piece
        old, self._text = len(self._text), self._text + piece
        ends = [end for end in (self._string(), *(self._match(*p, old) for p in self._patterns)) if end]
        if ends:
            return self._cut(min(ends)[1])
        if self._functions:
            self._whole += piece
            if any(function(self._whole) for function in self._functions):
                return self._cut(len(self._text))
        return self._pass(len(self._text) - self._held())

    def end(self) -> str:
        """The text that was still held back, up to its end, when the text is over."""
        if self.found:
            return ""
        size = len(self._text)
        matches = (pattern.search(self._text, max(0, size - most)) for pattern, most in self._patterns)
        starts = [match.start() for match in matches if match]
        return self._cut(min(starts)) if starts else self._pass(size)

    def _cut(self, end: int) -> str:
        self.found = True
        return self._pass(end)

    def _pass(self, end: int) -> str:
        """Passes on the text up to `end`, and forgets what is no longer needed."""
        ready = self._text[self._passed : end]
        self._passed += len(ready)
        past = self._passed - LONGEST if self._patterns else self._passed
        if past > 0:
            self._text, self._passed = self._text[past:], self._passed - past
        return ready

    # Both of these return where a string or match is complete, then where it begins.

    def _string(self) -> tuple[int, int] | None:
        found = ((self._text.find(s, self._passed), len(s)) for s in self._strings)
        return min(((at + size, at) for at, size in found if at >= 0), default=None)

    def _match(self, pattern: re.Pattern[str], most: int, old: int) -> tuple[int, int] | None:
        for size in range(old + 1, len(self._text) + 1):
            match = pattern.search(self._text, max(0, size - most), size)
            if match and (match.end() < size or size - match.start() == most):
                return size, match.start()
        return None

    def _held(self) -> int:
        """How many characters at the end may be the beginning of a string, or belong to a match."""
        there = len(self._text) - self._passed
        matched = min(there, max((most - 1 for _, most in self._patterns), default=0))
        longest = min(there, max((len(s) - 1 for s in self._strings), default=0))
        for n in range(longest, matched, -1):
            if any(s.startswith(self._text[-n:]) for s in self._strings):
                return n
        return matched


def _reach(pattern: Any) -> int:
    """How many characters of a text decide about a match: those of the longest match, and the one after it.

    LONGEST where the pattern sets no bound. Raises OptionError for what is no pattern of a text.
    """
    import re

    if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, str):
        raise OptionError(
            "stop takes strings, token ids, compiled regular expressions and functions, or a list of these, "
            f"not {pattern!r}"[:200]
        )
    if pattern.search("") is not None:
        raise OptionError(
            f"stop has the pattern {pattern.pattern!r}, which matches an empty text: it would end every text"
        )
    widest = _widest(pattern)
    return LONGEST if widest is None else widest + 1


def _widest(pattern: re.Pattern[str]) -> int | None:
    """The characters of a pattern's longest match; None where it sets no bound.

    Only the parser of the re module knows it, which is not public: where it changes, patterns count as unbounded.
    """
    try:
        try:
            from re import _parser as parser  # type: ignore[attr-defined]
        except ImportError:  # Python 3.10
            import sre_parse as parser
        widest: int = parser.parse(pattern.pattern, pattern.flags).getwidth()[1]
    except Exception:
        return None
    return widest if widest < 1 << 20 else None
