"""Strings that end a text, found while it arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from fastllm.errors import OptionError


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """One string or several as a list. Raises OptionError for an empty one."""
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(s, str) and s for s in stops):
        raise OptionError("a stop string must not be empty")
    return stops


class StopStrings:
    """Takes a text piece by piece and passes on what comes before the first stop string.

    A piece's end that may be the beginning of a stop string is held back until later pieces decide. found: whether a
    stop string has come; nothing is passed on after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops, self._held = stops, ""

    def __bool__(self) -> bool:
        """Whether there are stop strings."""
        return bool(self._stops)

    def push(self, piece: str) -> str:
        """The text that is certain now: it may be empty."""
        if self.found:
            return ""
        held = self._held + piece
        cut = min((i for i in (held.find(s) for s in self._stops) if i >= 0), default=None)
        if cut is not None:
            self.found, self._held = True, ""
            return held[:cut]
        ready = len(held) - self._could_begin(held)
        self._held = held[ready:]
        return held[:ready]

    def end(self) -> str:
        """The text that was still held back, when the text is over: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        most = max((len(s) - 1 for s in self._stops), default=0)
        for n in range(min(most, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stops):
                return n
        return 0
