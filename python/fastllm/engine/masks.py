"""Which tokens the grammars of texts allow in a step, found out while its forward runs."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastllm.decoding.grammar import Matcher
    from fastllm.engine.generation import Generation

# For each text the masks of its rows of logits, or why there are none.
Found = dict["Generation", "list[bytes] | Exception"]
Wanted = tuple["Generation", "Matcher", "list[int]"]  # with the guesses, each of which gets a row of logits


class Masks:
    """The masks of one forward: they follow from the tokens that the texts have, so that a thread can compute them
    meanwhile. Where it has not begun when the forward is over, `take` computes them itself.
    """

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._wanted, self._found = list(wanted), Found()
        self._begun, self._done = allocate_lock(), allocate_lock()
        self._done.acquire()
        if self._wanted:
            with suppress(RuntimeError):  # no more threads can be started
                start_new_thread(self._compute, ())

    def take(self) -> Found:
        """The masks of all texts; waits for the thread if it has begun."""
        if self._wanted and not self._compute():
            self._done.acquire()
            self._done.release()
        return self._found

    def _compute(self) -> bool:
        """Computes them, unless another thread does."""
        if not self._begun.acquire(False):
            return False
        try:
            for generation, matcher, guesses in self._wanted:
                try:
                    self._found[generation] = matcher.masks(generation.tokens, guesses)
                except Exception as error:
                    self._found[generation] = error
        finally:
            self._done.release()
        return True
