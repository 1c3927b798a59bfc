"""Threads that want tokens, and the one of them that runs the steps in which all texts are written."""

from __future__ import annotations

import os
from _thread import LockType, allocate_lock, get_ident, start_new_thread  # threading takes milliseconds to import
from _weakref import ref
from collections import deque
from collections.abc import Iterable

from fastllm import _core
from fastllm.engine.engine import Engine
from fastllm.engine.generation import AHEAD, Generation, Writer
from fastllm.engine.masks import Masks
from fastllm.engine.steps import TOGETHER, Steps
from fastllm.errors import OptionError

_schedulers: set[ref[Scheduler]] = set()


class Scheduler(Writer):
    """Writes the texts of one model together; a text alone is a batch of one. Each is, to the bit, what it is alone.

    The thread that wants a token drives: it runs steps, which serve all texts, until it has its token. Others wait
    meanwhile until theirs is there, or until it is their turn to drive.

        thread A   step  step  step  has its token, wakes B      ..
        thread B         waits ..............................  step  step  ..
        thread C            waits ....  has its token  ..  waits .........
    """

    def __init__(self, engine: Engine, most: int = TOGETHER) -> None:
        self._steps = Steps(engine, most)
        self._prefixes = engine.prefixes
        self._driving = allocate_lock()  # held by the thread that runs steps
        self._driver = 0  # that thread
        self._asking: list[tuple[Generation, int, LockType]] = []  # threads that wait: text, tokens seen, their lock
        self._closed = False  # whether a text that runs was closed
        self._background: deque[Generation] = deque()
        self._in_background = allocate_lock()  # held while there is a thread for these
        _schedulers.add(ref(self, _schedulers.discard))

    def run(self, generations: Iterable[Generation]) -> None:
        """Writes several texts to their ends, together. Errors stay in the texts."""
        some = list(generations)
        for generation in some:
            self._join(generation, generation.max_tokens)
        for generation in some:
            self.advance(generation, generation.max_tokens)

    def write_in_background(self, generation: Generation) -> None:
        """Has a thread of its own write a text to its end; the text's notify tells of its tokens."""
        self._join(generation, generation.max_tokens)
        self._background.append(generation)
        if self._in_background.acquire(False):
            start_new_thread(self._write_background, ())

    def advance(self, generation: Generation, seen: int) -> None:
        """Returns when the text has more than `seen` new tokens, or has ended."""
        generation.owner = me = get_ident()
        self._join(generation, seen)
        try:
            while generation.taken <= seen and generation.finish_reason is None:
                if not self._driving.acquire(False):
                    if self._driver == me:  # it would wait for itself
                        generation.close()
                        raise OptionError(
                            "a callable, or a signal's handler, that runs inside of a step of a model "
                            "cannot have the same model write another text"
                        )
                    self._wait(generation, seen)
                    continue
                self._driver = me
                try:
                    while generation.taken <= seen and generation.finish_reason is None:
                        self._steps.step()
                        if self._asking:
                            self._wake()
                finally:
                    self._driver = 0
                    self._driving.release()
        finally:
            if self._closed:
                self._sweep()
            if self._asking:
                self._wake(hand_over=not self._driving.locked())

    def dropped(self, generation: Generation) -> None:
        """A text was closed, or is about to be freed: frees what it holds. It never waits."""
        if generation.finish_reason is None:  # no reference is left, so it is in no forward
            if (sequence := generation.sequence) is not None:
                generation.sequence = None
                self._prefixes.leave(generation.prompt + generation.tokens, sequence)
            return
        self._closed = True
        if generation in self._steps.reading:
            self._steps.cancel.set()
        self._sweep()
        self._wake()

    # ---- threads take turns

    def _join(self, generation: Generation, seen: int) -> None:
        generation.ahead = max(generation.ahead, seen + AHEAD)
        if not generation.joined:
            generation.joined = True
            self._steps.places.waiting.append(ref(generation))
            self._steps.alone = False

    def _wait(self, generation: Generation, seen: int) -> None:
        """Returns when the text may have news, or when it may be this thread's turn to drive."""
        turn = allocate_lock()
        turn.acquire()
        asking = (generation, seen, turn)
        self._asking.append(asking)
        # A thread that stops driving looks at _asking after its release: either it sees us, or we see the release.
        try:
            if generation.taken <= seen and generation.finish_reason is None and self._driving.locked():
                turn.acquire()
        finally:
            if asking in self._asking:
                self._asking.remove(asking)

    def _wake(self, hand_over: bool = False) -> None:
        """Wakes the threads whose texts have news; with hand_over also one that has none, which then drives."""
        for asking in self._asking.copy():
            generation, seen, turn = asking
            news = generation.taken > seen or generation.finish_reason is not None
            if not (news or hand_over):
                continue
            hand_over = hand_over and news
            try:
                self._asking.remove(asking)
            except ValueError:  # it has gone by itself
                continue
            turn.release()

    def _sweep(self) -> None:
        """Frees what closed texts hold. A thread that drives meanwhile does it at its end."""
        while self._closed and self._driving.acquire(False):
            try:
                self._closed = False
                self._steps.places.live()
            finally:
                self._driving.release()

    def _write_background(self) -> None:
        while True:
            while self._background:
                generation = self._background[0]
                try:
                    self.advance(generation, generation.max_tokens)
                except BaseException as error:  # no caller is there to see it
                    generation.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                    if generation.notify is not None:
                        generation.notify()
                self._background.popleft()
                del generation
            self._in_background.release()
            if not self._background or not self._in_background.acquire(False):
                return

    def after_fork(self) -> None:
        """In the child of a fork, where the other threads do not exist: their texts end, and no lock is held."""
        mine, stepping = get_ident(), self._driving.locked()
        self._driving, self._in_background = allocate_lock(), allocate_lock()
        self._driver = 0
        self._asking.clear()
        self._background.clear()
        self._closed = False
        self._prefixes.after_fork()
        self._steps.reading, self._steps.alone, self._steps.cancel = [], False, _core.Cancel()
        self._steps.masks = Masks()
        for generation in self._steps.places.restart():
            if generation.owner != mine or stepping:
                generation.fail(OptionError("the process was forked while another thread was writing this text"))


def _after_fork() -> None:
    for reference in list(_schedulers):
        if (scheduler := reference()) is not None:
            scheduler.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
