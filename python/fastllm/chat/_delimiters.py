"""Delimiters in a text that comes in pieces: strings and patterns, found as soon as no more text can change them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fastllm.errors import TokenizerError, import_error

SECONDS = 1.0  # that one search may take: one that a template's author meant takes microseconds
_LONGEST = 2000  # characters of a pattern
_REPEATED = 1000  # the regex package unrolls {n}, so that nested ones could take all memory
# Recursion and approximate matching, which only the regex package has.
_REFUSED = re.compile(r"\(\?(?:R|&|P>|[+-]?\d)|\{[^{}]*(?:[eids]|<)[^{}]*\}|\\L<")


class Found(NamedTuple):
    """Where a delimiter is. groups: what the named groups of its pattern have matched."""

    start: int
    end: int
    groups: dict[str, str]


class Pattern:
    """A regular expression of a template, in the dialect of the regex package, with bounds on what it may take.

    Raises TokenizerError for what is none, and from each search that takes longer than SECONDS.
    """

    def __init__(self, source: Any, what: str) -> None:
        """what: names the pattern in an error."""
        try:
            import regex
        except (ImportError, OSError) as error:
            missing = TokenizerError(f"{what} needs the regex package: pip install 'fastllm[hf]'")
            raise import_error(error, "regex", missing) from None
        self._what = what
        if not isinstance(source, str):
            raise TokenizerError(f"{what} must be a text, not {source!r}"[:200])
        counts = [int(n) for n in re.findall(r"(?<=[{,])\d{1,9}(?=[,}])", source)]
        product = 1
        for count in counts:
            product *= max(1, count)
        if len(source) > _LONGEST or product > _REPEATED or _REFUSED.search(source):
            raise TokenizerError(f"{what} is no pattern that a template needs: {source!r}"[:200])
        try:
            self._compiled = regex.compile(source, regex.DOTALL)
        except (regex.error, ValueError, OverflowError, RecursionError) as error:
            raise TokenizerError(f"{what} is no regular expression: {error}"[:200]) from None
        self.groups = frozenset(self._compiled.groupindex)

    def _run(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self._compiled, method)(*args, timeout=SECONDS, **options)
        except TimeoutError:
            raise TokenizerError(f"{self._what} takes more than {SECONDS:g} s to search a reply") from None
        except (MemoryError, RecursionError):
            raise TokenizerError(f"{self._what} takes too much memory to search a reply") from None

    def finditer(self, text: str) -> Iterator[Any]:
        """The matches in a text."""
        at = 0
        while at <= len(text) and (found := self._run("search", text, at)) is not None:
            yield found
            at = found.end() + (found.end() == found.start())

    def find(self, text: str, at: int, *, over: bool) -> tuple[Found | None, int]:
        """The first match from `at` on that no more text can change, and where one may begin that more text decides.

        over: whether the text is over. The second is len(text) where nothing may begin. A match after that place is
        not returned, since the other one would precede it.
        """
        if over:
            match = self._run("search", text, at)
            return None if match is None else _found(match), len(text)
        match = self._run("search", text, at, partial=True)
        if match is None:
            return None, len(text)
        if match.partial:
            return None, match.start()
        # The package prefers a whole match to a partial one, even to one that begins earlier.
        for start in range(at, match.start()):
            begun = self._run("match", text, start, partial=True)
            if begun is not None and begun.start() < len(text):
                return None, start
        if self._grows(text, match):
            return None, match.start()
        return _found(match), len(text)

    def _grows(self, text: str, match: Any) -> bool:
        """Whether a match could be another one with more text: a longer one, or none ("$", "(?!...)")."""
        if self._run("fullmatch", text, match.start(), partial=True) is not None:
            return True
        longer = self._run("match", text + "\0", match.start())
        return longer is None or longer.span() != match.span() or longer.groupdict() != match.groupdict()


class Literals:
    """Strings, of which the first in a text counts, and of two with one beginning the longer."""

    groups: frozenset[str] = frozenset()

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = sorted(dict.fromkeys(strings), key=len, reverse=True)

    def finditer(self, text: str) -> Iterator[Any]:
        """The matches in a text."""
        return re.finditer("|".join(map(re.escape, self.strings)), text)

    def find(self, text: str, at: int, *, over: bool) -> tuple[Found | None, int]:
        """As Pattern.find."""
        found = min(
            ((start, -len(string)) for string in self.strings if (start := text.find(string, at)) >= 0), default=None
        )
        if over:
            return (None if found is None else Found(found[0], found[0] - found[1], {})), len(text)
        begun = self._begun(text, at)
        if found is None or begun <= found[0]:
            return None, begun
        return Found(found[0], found[0] - found[1], {}), begun

    def _begun(self, text: str, at: int) -> int:
        """Where one of the strings may begin that is not complete yet."""
        for start in range(max(at, len(text) - len(self.strings[0]) + 1), len(text)):
            if any(string.startswith(text[start:]) and len(string) > len(text) - start for string in self.strings):
                return start
        return len(text)


def _found(match: Any) -> Found:
    return Found(
        match.start(), match.end(), {name: text for name, text in match.groupdict().items() if text is not None}
    )
