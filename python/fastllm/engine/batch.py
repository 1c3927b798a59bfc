"""Texts written together."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from fastllm import _core
from fastllm.engine.engine import CHUNK, Engine, Span
from fastllm.engine.generation import Generation
from fastllm.errors import NumericError

TOGETHER = 16  # texts written at once: by then a forward computes as long as it reads


class Batch:
    """Texts written together: in one forward the last token of each, and parts of the prompts of those that join.

    Each text is what it is alone. At most `most` are being written, the others wait until one has ended.
    """

    def __init__(self, engine: Engine, most: int = TOGETHER) -> None:
        self._engine, self._most = engine, most
        self._waiting: deque[Generation] = deque()
        self._running: dict[Generation, _Running] = {}
        self._logits = engine.model.logits(most)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    def add(self, generation: Generation) -> None:
        """Takes in a text that nothing else is writing, begun or not. Its proposer is not asked. Raises OptionError."""
        generation.claim(self)
        self._waiting.append(generation)

    def drop(self, generation: Generation) -> None:
        """Ends a text early, if it has not ended; it may go on elsewhere."""
        if (running := self._running.pop(generation, None)) is not None:
            self._engine.give(generation.prompt + generation.tokens, running.sequence)
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        generation.release()

    def close(self) -> None:
        """Ends all texts."""
        for generation in [*self._waiting, *self._running]:
            self.drop(generation)

    def step(self) -> list[tuple[Generation, int | None]]:
        """One forward: the texts that have got a token, and the token; None for a text that has ended without.

        A text with a finish_reason has left the batch; one whose logits are not finite has an `error`, and the others
        go on. After an exception only close is left to do.
        """
        out = self._join()
        start = perf_counter()
        spans, drawing = self._spans()
        if not spans:
            return out
        self._engine.forward(spans, self._logits)
        before = [(generation, bool(generation.tokens)) for generation in self._running]
        for row, generation in enumerate(drawing):
            token = None
            try:
                token = generation.draw(self._logits, row)
            except NumericError:
                generation.fail(self._running[generation].sequence)
            out.append((generation, token))
            if generation.finish_reason is not None:
                self.drop(generation)
            elif token is not None:
                self._running[generation].rest = [token]
        seconds = perf_counter() - start
        for generation, writing in before:
            if writing:
                generation.decode_seconds += seconds
            else:
                generation.prompt_seconds += seconds
        return out

    def _join(self) -> list[tuple[Generation, int | None]]:
        """Lets those that wait take free places; returns those that need none, since they are to have no tokens."""
        ended: list[tuple[Generation, int | None]] = []
        while self._waiting and len(self._running) < self._most:
            generation = self._waiting[0]
            if generation.finish_reason is not None:
                self.drop(generation)
                ended.append((generation, None))
            else:
                sequence = generation.begin()
                rest = (generation.prompt + generation.tokens)[sequence.length :]
                self._running[generation] = _Running(sequence, rest)
                self._waiting.popleft()
        return ended

    def _spans(self) -> tuple[list[Span], list[Generation]]:
        """What goes through the model next, and whose last rows of logits come out of it.

        A text that is being written always takes part; the prompts share CHUNK tokens, first come, first served.
        """
        spans: list[Span] = []
        drawing: list[Generation] = []
        room = CHUNK
        for generation, running in self._running.items():
            writing = bool(generation.tokens) and len(running.rest) == 1
            count = 1 if writing else min(room, len(running.rest))
            if count == 0:
                continue
            room -= 0 if writing else count
            part, running.rest = running.rest[:count], running.rest[count:]
            spans.append((running.sequence, part, int(not running.rest)))
            if not running.rest:
                drawing.append(generation)
        return spans, drawing


class _Running:
    """A text in a batch. rest: its tokens that are still to go through the model."""

    def __init__(self, sequence: _core.Sequence, rest: list[int]) -> None:
        self.sequence, self.rest = sequence, rest
