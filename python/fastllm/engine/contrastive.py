"""Contrastive search: likely tokens whose hidden states are unlike those before them (Su et al., 2022)."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.engine import scores
from fastllm.engine.engine import CHUNK
from fastllm.engine.generation import Search
from fastllm.errors import NumericError

if TYPE_CHECKING:
    from fastllm.engine.engine import Engine, Span
    from fastllm.engine.generation import Generation, Written


class _State(NamedTuple):
    """A sequence with all of a text, and what may follow: (token, probability), the likeliest first.

    length: of the text. logits: a row of its own, which the probabilities were made of.
    """

    sequence: _core.Sequence
    length: int
    followers: list[tuple[int, float]]
    logits: _core.Buffer


class Contrastive(Search):
    """Takes of the k likeliest tokens the one of largest (1 - alpha) p - alpha s, the likelier one among equals.

    p is a token's probability, after what the sampler's history does to logits; s the largest cosine of the token's
    hidden state (after the final norm) and those of all positions before it, the prompt's too. So all k tokens are
    appended to forks of the text's sequence, in one forward, and the hidden states of a text's prompt are computed
    anew, whatever is known of it from earlier texts. A token that is forbidden never follows.
    """

    reads_all = True

    def __init__(self, engine: Engine, alpha: float, k: int, n_layers: int) -> None:
        self.width, self.hidden = k, (n_layers + 1,)
        self._engine, self._alpha = engine, alpha
        self._directions = _core.Directions(engine.model)
        self._state: _State | None = None
        self._forks: list[_core.Sequence] = []

    def read(self, generation: Generation, written: Written) -> None:
        assert generation.sequence is not None
        self._note(generation.sequence, written)

    def _note(self, sequence: _core.Sequence, written: Written) -> None:
        """Keeps the directions of the tokens that a forward has appended to a sequence; not after a gap, see spans."""
        first = sequence.length - written.tokens
        if first <= self._directions.count:
            self._directions.truncate(first)
            self._directions.append(written.hidden[self.hidden[0]], written.token, written.tokens)

    def begin(self, generation: Generation, sequence: _core.Sequence, written: Written) -> None:
        self._state = self._after(generation, sequence, written.logits, written.row)

    def _after(self, generation: Generation, sequence: _core.Sequence, logits: _core.Buffer, row: int) -> _State:
        model = self._engine.model
        own = changed = model.logits(1)
        scores.copy(self._engine, logits, row, own)
        if generation.processors:
            changed = model.logits(1)
            scores.copy(self._engine, own, 0, changed)
            scores.process(self._engine, generation, changed)
        followers = _core.likeliest(
            model,
            generation.sampler,
            changed,
            0,
            self.width,
            processed=bool(generation.processors),
            mask=scores.mask(generation),
        )
        return _State(sequence, sequence.length, followers, own)

    def spans(self, generation: Generation) -> list[Span]:
        assert self._state is not None
        sequence, length, followers, _ = self._state
        if length == sequence.length == self._directions.count == generation.position():
            self._forks = [sequence.fork() for _ in followers]
            return [(fork, [token], 1) for fork, (token, _) in zip(self._forks, followers, strict=True)]
        # A step was interrupted before its end: what it has lost is computed again.
        self._forks = []
        known = min(sequence.length, self._directions.count, generation.position() - 1)
        sequence.truncate(known)
        part = generation.part(known, min(CHUNK, generation.position() - known))
        return [(sequence, part, int(known + len(part) == generation.position()))]

    def take(self, generation: Generation, written: Written) -> None:
        assert self._state is not None
        sequence, _, followers, logits = self._state
        if not self._forks:
            self._note(sequence, written)
            if sequence.length == generation.position():
                self._state = self._after(generation, sequence, written.logits, written.row)
            return
        hidden, forks = written.hidden[self.hidden[0]], self._forks
        alike = self._directions.degeneration(hidden, written.token, written.tokens, threads=self._engine.threads)
        if any(map(isnan, alike)):
            raise NumericError("the hidden states are not finite")
        worth = [(1 - self._alpha) * p - self._alpha * s for (_, p), s in zip(followers, alike, strict=True)]
        best = worth.index(max(worth))
        token = followers[best][0]
        generation.sampler.accept(token, generated=True)
        scores.write(self._engine, generation, token, logits, 0)
        self._directions.append(hidden, written.token + best, 1)
        generation.take()
        if generation.finish_reason is not None:
            return
        self._state = self._after(generation, forks[best], written.logits, written.row + best)
        self._forks = []

    def close(self) -> None:
        self._state, self._forks = None, []
        self._directions.truncate(0)
