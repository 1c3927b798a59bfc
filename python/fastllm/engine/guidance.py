"""Classifier-free guidance: away from what the model would write without the prompt (Sanchez et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.engine import scores
from fastllm.engine.engine import CHUNK
from fastllm.engine.generation import Search

if TYPE_CHECKING:
    from fastllm.engine.engine import Engine, Span
    from fastllm.engine.generation import Generation, Written


class Guidance(Search):
    """Draws each token from scale (ln p - ln q) + ln q: p after the prompt, q after another prompt in its place.

    Both texts go on with the same tokens, each in a sequence of its own, and take their steps in one forward. The other
    prompt is read once the text's own has been.
    """

    width = 2

    def __init__(self, engine: Engine, scale: float, other: Sequence[int]) -> None:
        """other: the ids of the other prompt, at least one."""
        self._engine, self._scale, self._prompt = engine, scale, list(other)
        self._pair: tuple[_core.Sequence, _core.Sequence] | None = None

    def begin(self, generation: Generation, sequence: _core.Sequence, written: Written) -> None:
        other, _ = self._engine.open(self._prompt + generation.tokens)
        self._pair = sequence, other

    def spans(self, generation: Generation) -> list[Span]:
        assert self._pair is not None
        own, other = self._pair
        text = self._prompt + generation.tokens
        if other.length == len(text):
            other.truncate(len(text) - 1)
        rest = text[other.length :]
        if len(rest) > CHUNK:
            return [(other, rest[:CHUNK], 0)]
        position = generation.position() - 1
        own.truncate(position)
        return [(own, generation.part(position, 1), 1), (other, rest, 1)]

    def take(self, generation: Generation, written: Written) -> None:
        assert self._pair is not None
        _, other = self._pair
        if other.length < len(self._prompt) + len(generation.tokens):
            return  # the other prompt goes on
        if not generation.tokens and len(self._prompt) > 1:
            self._engine.keep(self._prompt, other)
        mixed, row = self._engine.model.logits(1), written.row
        _core.guide(self._engine.model, written.logits, row, row + 1, self._scale, mixed)
        token = scores.draw(self._engine, generation, mixed)
        scores.write(self._engine, generation, token, written.logits, row)

    def close(self) -> None:
        self._pair = None
