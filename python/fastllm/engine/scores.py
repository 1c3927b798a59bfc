"""Rows of scores before the next token: what a text's callables make of them, and what searches put in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastllm.engine.generation import Logprob

if TYPE_CHECKING:
    from fastllm import _core
    from fastllm.engine.engine import Engine
    from fastllm.engine.generation import Generation


def copy(engine: Engine, logits: _core.Buffer, row: int, scores: _core.Buffer) -> None:
    """Row 0 of scores becomes a row of logits."""
    size = 4 * engine.model.logits_stride
    memoryview(scores)[:size] = memoryview(logits)[row * size : (row + 1) * size]


def changed_by(processors: Sequence[Any], ids: list[int], row: Any) -> None:
    """Has callables, one after the other, change a row, float32 [vocabulary], in place, or return another one."""
    for process in processors:
        changed = process(ids.copy(), row)
        if changed is not None and changed is not row:
            row[:] = changed


def process(engine: Engine, generation: Generation, scores: _core.Buffer) -> None:
    """Has a text's callables change row 0 of scores."""
    if generation.processors:
        import numpy

        own = numpy.frombuffer(memoryview(scores), numpy.float32)[: engine.vocab_size]
        changed_by(generation.processors, generation.prompt + generation.tokens, own)


def logprob(engine: Engine, logits: _core.Buffer, row: int, token: int, top: int) -> Logprob:
    """The Logprob of a token by a row of logits, with so many of the likeliest."""
    found, likeliest = engine.model.logprobs(logits, row, token, top)
    return Logprob(token, found, tuple(likeliest))


def mask(generation: Generation) -> bytes | None:
    """Which tokens a text's grammar allows next."""
    return None if generation.matcher is None else generation.matcher.masks(generation.tokens)[0]


def draw(engine: Engine, generation: Generation, scores: _core.Buffer) -> int:
    """The next token of a text, drawn from row 0 of scores as another text's is from logits."""
    process(engine, generation, scores)
    masks = None if (allowed := mask(generation)) is None else [allowed]
    drawn = engine.model.draw([(generation.sampler, 0, (), True, masks)], scores)[0]
    if isinstance(drawn, Exception):
        raise drawn
    return drawn[0]


def write(engine: Engine, generation: Generation, token: int, logits: _core.Buffer, row: int) -> None:
    """Adds a token to a text, with its logprobs by the row of logits that the model predicted it with."""
    if generation.logprobs is not None:
        generation.logprobs.append(logprob(engine, logits, row, token, generation.top))
    generation.tokens.append(token)
