"""DoLa: the last layer's prediction against that of an earlier one (Chuang et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.engine import scores
from fastllm.engine.generation import Search
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.engine.engine import Engine, Span
    from fastllm.engine.generation import Generation, Written


def layers_of(which: str, n_layers: int, *, tied: bool) -> list[int]:
    """The layers that transformers takes for "low" and "high": every other one of a half, of 20 in a deep model.

    0 is the embedding. Where it is the head too (tied) its prediction is the token itself, so "low" begins later.
    """
    middle, deep = n_layers // 2, n_layers > 40
    if which == "high":
        return list(range(n_layers - 20 if deep else middle, n_layers, 2))
    first = min(2, n_layers - 1) if tied else 0
    return list(range(first, 20 if deep else middle, 2)) or [first]


class Dola(Search):
    """Draws each token from ln p - ln q: p the model's prediction, q that of an earlier layer.

    Of the layers given it is the one whose prediction differs most from p. Their predictions are early exits: the head
    without the final norm, as in transformers. Only tokens of a tenth of the largest p are left; where all of these are
    forbidden, the next one is drawn from ln p alone.
    """

    width = 1

    def __init__(self, engine: Engine, layers: Sequence[int]) -> None:
        """layers: 0 is the input of the first layer, i the output of the i-th; the last one's is p's own."""
        self.hidden = tuple(dict.fromkeys(layers))
        self._engine = engine
        self._sequence: _core.Sequence | None = None
        # The layers' outputs, their predictions, and the scores: made when they are needed.
        self._room: tuple[_core.Buffer, _core.Buffer, _core.Buffer] | None = None

    def begin(self, generation: Generation, sequence: _core.Sequence, written: Written) -> None:
        self._sequence = sequence
        self.take(generation, written)

    def spans(self, generation: Generation) -> list[Span]:
        assert self._sequence is not None
        position = generation.position() - 1
        self._sequence.truncate(position)
        return [(self._sequence, generation.part(position, 1), 1)]

    def take(self, generation: Generation, written: Written) -> None:
        model, threads = self._engine.model, self._engine.threads
        if self._room is None:
            self._room = model.stream(len(self.hidden)), model.logits(len(self.hidden)), model.logits(1)
        rows, exits, own = self._room
        to, size = memoryview(rows), rows.nbytes // len(self.hidden)
        last = (written.token + written.tokens - 1) * size
        for i, layer in enumerate(self.hidden):
            to[i * size : (i + 1) * size] = memoryview(written.hidden[layer])[last : last + size]
        _core.head(model, rows, len(self.hidden), exits, norm=False, threads=threads)
        _core.dola(model, written.logits, written.row, exits, len(self.hidden), own, threads=threads)
        try:
            token = scores.draw(self._engine, generation, own)
        except OptionError:  # all tokens that DoLa leaves are forbidden
            scores.copy(self._engine, written.logits, written.row, own)
            token = scores.draw(self._engine, generation, own)
        scores.write(self._engine, generation, token, written.logits, written.row)

    def close(self) -> None:
        self._sequence = self._room = None
