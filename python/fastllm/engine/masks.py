"""Which tokens the grammars of texts allow in a step, if need be found out while its forward runs."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastllm.decoding.grammar import Matcher
    from fastllm.engine.generation import Generation

# For each text the masks of its rows of logits, or why there are none.
Found = dict["Generation", "list[bytes] | Exception"]
Wanted = tuple["Generation", "Matcher", "list[int]"]  # with the guesses, each of which gets a row of logits


_WORTH = 0.5e-3  # seconds of masks from which on a thread pays: it takes a core from the forward, and time to start
_FADES = 7 / 8  # how the longest time of late is remembered from step to step


class Masks:
    """Computes the masks of each step, which follow from the tokens that the texts have.

    Where that took long of late, a thread does it while the forward runs. `take` does what no thread has begun.
    """

    def __init__(self) -> None:
        self._job = _Job([])
        self._seconds = 0.0

    def start(self, wanted: Iterable[Wanted]) -> None:
        """Begins a step: called before its forward."""
        self._job = job = _Job(list(wanted))
        if job.wanted and self._seconds > _WORTH:
            with suppress(RuntimeError):  # no more threads can be started
                start_new_thread(job.compute, ())

    def take(self) -> Found:
        """The masks of the step; waits for a thread that computes them."""
        job = self._job
        if job.wanted and not job.compute():
            job.done.acquire()
            job.done.release()
        self._seconds = max(job.seconds, self._seconds * _FADES)
        return job.found


class _Job:
    def __init__(self, wanted: list[Wanted]) -> None:
        self.wanted, self.found, self.seconds = wanted, Found(), 0.0
        self.begun, self.done = allocate_lock(), allocate_lock()
        self.done.acquire()

    def compute(self) -> bool:
        """Computes the masks, unless another thread does."""
        if not self.begun.acquire(False):
            return False
        start = perf_counter()
        try:
            for wanted in self.wanted:
                self.found[wanted[0]] = _masks(*wanted)
        finally:
            self.seconds = perf_counter() - start
            self.done.release()
        return True


def _masks(generation: Generation, matcher: Matcher, guesses: list[int]) -> list[bytes] | Exception:
    try:
        return matcher.masks(generation.tokens, guesses)
    except Exception as error:  # it ends this text alone
        return error
