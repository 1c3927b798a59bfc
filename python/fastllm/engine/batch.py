"""Several texts written together, one token of each per forward (continuous batching; Yu et al., 2022, Orca)."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from fastllm import _core
from fastllm.engine.engine import CHUNK, Engine, Span
from fastllm.engine.generation import Generation
from fastllm.errors import NumericError

TOGETHER = 16  # texts written at once; from about here on a forward is bound by arithmetic, no longer by memory


class Batch:
    """Texts written together: each forward takes the last token of every text, and parts of the prompts that join.

    Each text is, to the bit, what it would be alone. At most `most` are written at a time; the others wait for a place.
    """

    def __init__(self, engine: Engine, most: int = TOGETHER) -> None:
        self._engine, self._most = engine, most
        self._waiting: deque[Generation] = deque()
        self._running: dict[Generation, _Running] = {}
        self._logits = engine.model.logits(most)

    def __bool__(self) -> bool:
        """Whether any text is waiting or being written."""
        return bool(self._waiting or self._running)

    def add(self, generation: Generation) -> None:
        """Adds a text, new or paused; its proposer is not used. Raises OptionError if it is being written already."""
        generation.claim(self)
        self._waiting.append(generation)

    def drop(self, generation: Generation) -> None:
        """Takes a text out, if it is in the batch; it may be continued elsewhere."""
        if (running := self._running.pop(generation, None)) is not None:
            self._engine.give(generation.prompt + generation.tokens, running.sequence)
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        generation.release()

    def close(self) -> None:
        """Takes all texts out."""
        for generation in [*self._waiting, *self._running]:
            self.drop(generation)

    def step(self) -> list[tuple[Generation, int | None]]:
        """Runs one forward. Returns (text, token) for each text that got a token, (text, None) for one that ended.

        A text with a finish_reason has left the batch. One whose logits are not finite ends with an `error`, and the
        others go on. After an exception nothing but `close` may be called.
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
        """Gives free places to waiting texts. Returns those that end at once because they may have no tokens."""
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
        """The spans of the next forward, and the texts that get logits from it, in the order of their rows.

        Every text that is being written takes part with its last token. The prompts share CHUNK tokens, in the order in
        which the texts were added.
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
    """A text with a place in the batch. rest: its tokens that have not been through the model yet."""

    def __init__(self, sequence: _core.Sequence, rest: list[int]) -> None:
        self.sequence, self.rest = sequence, rest
