"""Strings that end a text, found in its pieces as they come."""

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
    """Takes a text piece by piece and gives back what is before the first stop string.

    What may be the beginning of one is held until more of the text says so. found: whether one has come; from then on
    nothing more is given.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops, self._held = stops, ""

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._stops)

    def push(self, piece: str) -> str:
        """The text that is certain with this piece: maybe none."""
        held = self._held + piece
        cut = min((i for i in (held.find(s) for s in self._stops) if i >= 0), default=None)
        if cut is not None:
            self.found, self._held = True, ""
            return held[:cut]
        ready = len(held) - self._could_begin(held)
        self._held = held[ready:]
        return held[:ready]

    def end(self) -> str:
        """What was held, when no more comes: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        most = max((len(s) - 1 for s in self._stops), default=0)
        for n in range(min(most, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stops):
                return n
        return 0
