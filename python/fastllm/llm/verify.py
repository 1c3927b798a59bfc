"""How two models differ over one text: a checkpoint, and what it was converted to."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointWarning, TokenizerError
from fastllm.llm.llm import LLM
from fastllm.llm.loading import load
from fastllm.machine import check_threads
from fastllm.tensors import BLOCKS
from fastllm.weights import store
from fastllm.weights.packing import assemble
from fastllm.weights.source import Adapters, find_adapters, find_source, open_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Difference(NamedTuple):
    """How two models differ over the same `tokens` tokens.

    what: "logits", or "hidden states" of a model without a head. largest, mean: of the absolute differences. kl: mean
    of KL(source || result) in nats; top1: share of positions with the same most likely token; None without a head.
    """

    tokens: int
    what: str
    largest: float
    mean: float
    kl: float | None
    top1: float | None


def verify(
    source: str | os.PathLike[str],
    result: str | os.PathLike[str],
    *,
    tokens: int = 96,
    revision: str | None = None,
    lora: Adapters | None = None,
    threads: int | None = None,
) -> Difference:
    """Runs a checkpoint, in a type that holds it exactly, and its converted file over the same random tokens.

    revision, lora, threads: as for fastllm.load. Raises what load raises.
    """
    import numpy

    path, _ = find_source(source, revision)
    count = check_threads(threads)
    if (stored := store.open_file(path)) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # convert has given the warning already
            recipe = open_source(path, None, adapters=find_adapters(lora)).recipe
        # Blocks of few bits would stay what they are, and be multiplied by int8.
        blocks = any(weight.tensor.dtype in BLOCKS for weight in recipe.matrices.values())
        stored = assemble(recipe, dtype="f32" if blocks else None, threads=count)
    size = stored.config.vocab_size
    llm = LLM(stored, TokenizerError("not needed"), threads=count, context=None, path=path)
    ids = numpy.random.default_rng(0).integers(0, size, min(tokens, llm.context)).tolist()
    p, has_head = _outputs(llm, ids), llm.config.head
    del llm, stored  # one model at a time
    q = _outputs(load(result, threads=count), ids)
    gap = numpy.abs(p - q)
    kl = top1 = None
    if has_head:
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        kl = float((numpy.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
        top1 = float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    what = "logits" if has_head else "hidden states"
    return Difference(len(ids), what, float(gap.max()), float(gap.mean()), kl, top1)


def _outputs(llm: LLM, ids: list[int]) -> NDArray[np.float64]:
    import numpy

    return (llm.logits(ids) if llm.config.head else llm.hidden_states(ids)).astype(numpy.float64)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy

    x = x - x.max(axis=1, keepdims=True)
    sums: NDArray[np.float64] = numpy.log(numpy.exp(x).sum(axis=1, keepdims=True))
    return x - sums
