"""Measures every combination in turns, each model in a process of its own, together with the machine's own limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from time import monotonic
from typing import Any, NamedTuple

from fastllm.bench.child import Model, Sample, serve
from fastllm.errors import FastLLMError, OptionError
from fastllm.machine import check_threads, int8_peak, read_bandwidth, thread_count
from fastllm.weights.store import check_dtype

_ROUNDS = 5  # rounds in which every combination is measured once
_PATIENCE = 60.0  # seconds after which no new measurement begins, once each has one


def bench(
    path: str | os.PathLike[str],
    *,
    prompt: int | None = None,
    gen: int | None = None,
    batches: Sequence[int] = (1, 4, 16),
    threads: Sequence[int] | None = None,
    dtypes: Sequence[str | None] = (None,),
    precise: bool | None = None,
) -> list[dict[str, Any]]:
    """Measures every combination of dtypes, threads and batches, in that order, and returns a dict for each.

    A batch of n is n texts, each of `prompt` arbitrary tokens, whose next `gen` tokens are computed together: a forward
    takes one token of each. None for prompt and gen: 512 and 128, or what the context has room for. None for threads:
    1, and as many as the machine gives this process. dtypes, precise: as for fastllm.load.

    Of a dict's values these are medians, combinations taking turns for five rounds, or as many as a minute has room
    for (`samples` says how often this one was measured):

    prefill_tps: tokens/s of the prompts. decode_tps: new tokens/s of all texts together. weight_gbps: GB/s of weights,
    the `weight_bytes` of a token read once a forward (of a batch of a model with experts, more is read). first_token_s:
    seconds from the prompts to when every text has a first token. read_gbps, int8_gops: what as many threads reach in
    this run if they only read, GB/s, or only multiply with the instruction set `isa`, G multiply-adds/s. read_share:
    weight_gbps / read_gbps. prefill_limit_tps: what the weights' multiply-adds at int8_gops would allow;
    decode_limit_tps: the same, or reading the weights, whichever is less. int8_share: prefill_tps / prefill_limit_tps.
    rss_mb: the peak of resident memory while it runs, in 10^6 bytes, mapped weights included but not what loading took.

    Raises OptionError for what is impossible, and whatever load raises.
    """
    if threads is None:
        threads = sorted({1, thread_count()[0]})
    for name, values in {"prompt": [prompt], "gen": [gen], "batch": batches}.items():
        for value in values:
            if value is not None and value < 1:
                raise OptionError(f"{name} must be 1 or more, not {value}")
    for count in threads:
        check_threads(count)
    for dtype in dtypes:
        check_dtype(dtype)
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(path, dtype, precise)) for dtype in dtypes]
        prompt, gen = _lengths(path, workers[0].model.context, prompt, gen)
        # Small batches first: a process's KV cache grows to its largest batch, and memory is reported for each.
        works = [(w, t, b) for b in sorted(set(batches)) for t in dict.fromkeys(threads) for w in workers]
        found = _rounds(works, prompt, gen)
        works.sort(key=lambda work: (workers.index(work[0]), threads.index(work[1])))
        return [_report(found, work, prompt, gen) for work in works]


def _lengths(path: str | os.PathLike[str], context: int, prompt: int | None, gen: int | None) -> tuple[int, int]:
    """The number of tokens of a prompt, and of the new text; one that is None becomes what fits into the context."""
    if gen is None:
        gen = min(128, max(1, context // 4 if prompt is None else context - prompt))
    if prompt is None:
        prompt = min(512, max(1, context - gen))
    if prompt + gen > context:
        raise OptionError(
            f"a prompt of {prompt:,} tokens and {gen:,} new ones do not fit into the context of {path}: {context:,}"
        )
    return prompt, gen


# ---- rounds --------------------------------------------------------------------------------------------------------


class _Worker:
    """A process with one loaded model, so that its memory is the model's."""

    def __init__(self, pipe: Connection, name: str) -> None:
        self._pipe, self._name = pipe, name
        self.model: Model = self._receive()

    def _receive(self) -> Any:
        try:
            found = self._pipe.recv()
        except EOFError:
            raise FastLLMError(f"the process that measured {self._name} ended: maybe for lack of memory") from None
        if isinstance(found, Exception):
            raise found
        return found

    def measure(self, *work: int) -> list[Sample]:
        self._pipe.send(work)
        found: list[Sample] = self._receive()
        return found


@contextmanager
def _worker(path: str | os.PathLike[str], dtype: str | None, precise: bool | None) -> Iterator[_Worker]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, os.fspath(path), dtype, precise), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(ours, f"{path}{f' as {dtype}' if dtype else ''}")
    finally:
        process.terminate()
        process.join()


_Work = tuple[_Worker, int, int]  # a model, threads, batch


class _Found(NamedTuple):
    samples: dict[_Work, list[Sample]]
    read: dict[int, list[float]]  # threads -> GB/s of reading
    int8: dict[int, list[float]]  # threads -> G multiply-adds/s


def _rounds(works: Sequence[_Work], prompt: int, gen: int) -> _Found:
    """Measures all combinations, and the machine, in turns, so that a slow minute does not hit one of them alone."""
    counts = dict.fromkeys(threads for _, threads, _ in works)
    isa = works[0][0].model.isa
    found = _Found({work: [] for work in works}, {t: [] for t in counts}, {t: [] for t in counts})
    start = monotonic()
    for i in range(_ROUNDS):
        for threads in counts:
            found.read[threads].append(read_bandwidth(threads))
            found.int8[threads].append(int8_peak(threads, isa=isa))
        for work in works[:: -1 if i % 2 else 1]:
            if i > 0 and monotonic() - start > _PATIENCE:
                break
            worker, threads, batch = work
            _progress(f"round {i + 1} of {_ROUNDS}: {worker.model.dtype}, threads {threads}, batch {batch}")
            found.samples[work] += worker.measure(threads, batch, prompt, gen)
    _progress("")
    return found


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _report(found: _Found, work: _Work, prompt: int, gen: int) -> dict[str, Any]:
    (worker, threads, batch), samples = work, found.samples[work]
    model = worker.model
    prefill = batch * prompt / median(s.prefill for s in samples)
    decode = batch * gen / median(s.decode for s in samples)
    weights = decode / batch * model.weight_bytes / 1e9
    read, int8 = median(found.read[threads]), median(found.int8[threads])
    prefill_limit = (
        int8 * 1e9 / (model.layer_work + model.head_work / prompt)
    )  # only the last token of a prompt has logits
    decode_limit = min(
        int8 * 1e9 / (model.layer_work + model.head_work),
        batch * read * 1e9 / model.weight_bytes,
    )
    return {
        "dtype": model.dtype,
        "precise": model.precise,
        "isa": model.isa,
        "threads": threads,
        "batch": batch,
        "prompt": prompt,
        "gen": gen,
        "prefill_tps": prefill,
        "prefill_limit_tps": prefill_limit,
        "decode_tps": decode,
        "decode_limit_tps": decode_limit,
        "weight_bytes": model.weight_bytes,
        "weight_gbps": weights,
        "read_gbps": read,
        "read_share": weights / read,
        "int8_gops": int8,
        "int8_share": prefill / prefill_limit,
        "first_token_s": median(s.first_token for s in samples),
        "rss_mb": samples[0].rss / 1e6,  # of the first run, before larger batches leave memory behind
        "samples": len(samples),
    }
