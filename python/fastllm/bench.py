"""How fast a model reads and writes on this machine, beside what the machine itself can do."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.decoding import Sampling
from fastllm.engine import CHUNK, Engine, Span
from fastllm.errors import CheckpointWarning, FastLLMError, OptionError, import_error
from fastllm.llm import LLM, load
from fastllm.machine import check_threads, int8_peak, read_bandwidth, thread_count
from fastllm.progress import Bar
from fastllm.weights.store import check_dtype

_ROUNDS = 5  # times that every combination is measured, ...
_PATIENCE = 60.0  # ... but no new one after so many seconds
_VISIT = 0.1  # seconds for which a combination is measured at a time: more than once, where once is short


class Model(NamedTuple):
    """A loaded model, as far as it tells what the machine has to do for a token.

    weight_bytes: read in a forward of one token. layer_work, head_work: multiply-adds of the weights of all layers for
    a token (shared experts, which a model may leave out, not counted), and of the head for one with logits.
    """

    dtype: str
    isa: str
    context: int
    weight_bytes: int
    layer_work: int
    head_work: int


class Sample(NamedTuple):
    """One batch, from its prompts to its last tokens: seconds, and the process's peak of memory in bytes."""

    prefill: float
    first_token: float
    decode: float
    rss: int


def bench(
    path: str | os.PathLike[str],
    *,
    prompt: int | None = None,
    gen: int | None = None,
    batches: Sequence[int] = (1, 4, 16),
    threads: Sequence[int] | None = None,
    dtypes: Sequence[str | None] = (None,),
) -> list[dict[str, Any]]:
    """Measures every combination of dtypes, threads and batches, in that order, and returns a dict for each.

    A batch of n is n texts, each of `prompt` arbitrary tokens, whose next `gen` tokens are computed together: a forward
    takes one token of each. None for prompt and gen: 512 and 128, or what the context has room for. None for threads:
    1, and as many as the machine gives this process. dtypes: as for fastllm.load.

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
        workers = [stack.enter_context(_worker(path, dtype)) for dtype in dtypes]
        prompt, gen = _lengths(path, workers[0].model.context, prompt, gen)
        # Batches ascend: the KV cache of a process grows to the largest so far and does not shrink.
        works = [(w, t, b) for b in sorted(set(batches)) for t in dict.fromkeys(threads) for w in workers]
        found = _rounds(works, prompt, gen)
        works.sort(key=lambda work: (workers.index(work[0]), threads.index(work[1])))
        return [_report(found, work, prompt, gen) for work in works]


def _lengths(path: str | os.PathLike[str], context: int, prompt: int | None, gen: int | None) -> tuple[int, int]:
    """The prompt's and the new text's tokens; where one is not given, what there is room for."""
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
    """A process of its own with a loaded model: what it takes of memory is the model's."""

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
def _worker(path: str | os.PathLike[str], dtype: str | None) -> Iterator[_Worker]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.fspath(path), dtype), daemon=True)
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
    """Measures in turns, the machine too: what makes it slower for a while is no one combination's disadvantage."""
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
    prefill_limit = int8 * 1e9 / (model.layer_work + model.head_work / prompt)  # a prompt's last token has logits
    decode_limit = min(
        int8 * 1e9 / (model.layer_work + model.head_work),
        batch * read * 1e9 / model.weight_bytes,
    )
    return {
        "dtype": model.dtype,
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
        "rss_mb": samples[0].rss / 1e6,  # the first time, before larger batches leave their memory
        "samples": len(samples),
    }


# ---- in the worker -------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, path: str, dtype: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us ends us
    warnings.simplefilter("ignore", CheckpointWarning)  # speed is what is asked for, and each type is loaded anew
    try:
        with Bar("packing") as bar:
            llm = load(path, dtype=dtype, progress=bar)
        pipe.send(_describe(llm))
        while True:
            pipe.send(_visit(llm, *pipe.recv()))
    except (FastLLMError, MemoryError, OSError) as error:
        pipe.send(error)


def _describe(llm: LLM) -> Model:
    config = llm.config
    if not config.causal or not config.head:
        raise OptionError(f"{llm.path} is an encoder, which reads texts but cannot continue them: nothing to measure")
    share = config.n_experts_used / config.n_experts if config.n_experts else 1.0
    layers = sum(
        int(math.prod(shape) * (share if ".experts." in name else 1))
        for name, shape, required in config.matrices()
        if required and name.startswith("layers.")
    )
    head = config.vocab_size * config.dim
    return Model("+".join(llm.dtypes), llm.isa, llm.context, llm.bytes_per_token, layers, head)


def _visit(llm: LLM, threads: int, batch: int, prompt: int, gen: int) -> list[Sample]:
    """Runs a batch at least once, and again while that takes no time worth mentioning."""
    prompts = [random.Random(i).choices(range(llm.config.vocab_size), k=prompt) for i in range(batch)]
    llm._engine.threads = threads
    _reset_peak()
    samples: list[Sample] = []
    start = perf_counter()
    while not samples or perf_counter() - start < _VISIT:
        _, sample = run(llm, prompts, gen)
        samples.append(sample)
    return samples


def run(llm: LLM, prompts: Sequence[Sequence[int]], gen: int) -> tuple[list[list[int]], Sample]:
    """Continues texts of token ids together, greedily: each text's first new token and the `gen` after it."""
    batch = Lockstep(llm, prompts)
    start = perf_counter()
    prefill = batch.prefill()
    first_token = perf_counter()
    for _ in range(gen):
        batch.step()
    decode = perf_counter() - first_token
    return batch.new, Sample(prefill, first_token - start, decode, _peak_rss())


class Lockstep:
    """Texts that advance together; `new` holds what each has got so far.

    Unlike in engine.Batch none is written before all have been read, so that both can be timed.
    """

    def __init__(self, llm: LLM, prompts: Sequence[Sequence[int]]) -> None:
        self._engine: Engine = llm._engine
        self._prompts = prompts
        self._sequences = [self._engine.take(prompt) for prompt in prompts]
        size, greedy = llm.config.vocab_size, Sampling(temperature=0)
        self._samplers = [_core.Sampler(size, greedy, seed=0, isa=llm.isa) for _ in prompts]
        self._logits = self._engine.model.logits(len(prompts))
        self.new: list[list[int]] = [[] for _ in prompts]

    def prefill(self) -> float:
        """Runs the prompts, one behind the other in forwards of CHUNK tokens. Returns the seconds in the model."""
        seconds, spans, texts, room = 0.0, list[Span](), list[int](), CHUNK
        for i, prompt in enumerate(self._prompts):
            at = 0
            while at < len(prompt):
                part = prompt[at : at + room]
                at += len(part)
                room -= len(part)
                last = at == len(prompt)
                spans.append((self._sequences[i], part, int(last)))
                texts += [i] if last else []
                if room == 0 or (last and i == len(self._prompts) - 1):
                    start = perf_counter()
                    self._engine.forward(spans, self._logits)
                    seconds += perf_counter() - start
                    self._draw(texts)
                    spans, texts, room = [], [], CHUNK
            for token in prompt:
                self._samplers[i].accept(token, generated=False)
        return seconds

    def step(self) -> None:
        """One more token of each text."""
        spans: list[Span] = [(s, new[-1:], 1) for s, new in zip(self._sequences, self.new, strict=True)]
        self._engine.forward(spans, self._logits)
        self._draw(range(len(spans)))

    def _draw(self, texts: Sequence[int]) -> None:
        """The next token of texts that have logits, in their order."""
        for row, i in enumerate(texts):
            token = self._samplers[i].draw(self._logits, row)
            self._samplers[i].accept(token, generated=True)
            self.new[i].append(token)


def _reset_peak() -> None:
    """Makes the peak of memory what is in memory now, where Linux lets us; else it stays the whole process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss() -> int:
    """The most resident memory that this process had, in bytes; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- for people ----------------------------------------------------------------------------------------------------

_COLUMNS = ("dtype", "threads", "batch", "prefill", "of int8", "decode", "GB/s", "of reading", "first token", "memory")
_UNITS = ("", "", "", "tokens/s", "", "tokens/s", "weights", "", "s", "MB")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What bench found, as aligned text."""
    cells = [_COLUMNS, _UNITS]
    cells += [
        (
            row["dtype"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['prefill_tps']:,.{1 if row['prefill_tps'] < 100 else 0}f}",
            f"{row['int8_share']:.0%}",
            f"{row['decode_tps']:,.{1 if row['decode_tps'] < 100 else 0}f}",
            f"{row['weight_gbps']:.1f}",
            f"{row['read_share']:.0%}",
            f"{row['first_token_s']:.3g}",
            f"{row['rss_mb']:,.0f}" if row["rss_mb"] else "",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    first = rows[0]
    lines.append(
        f"prompt {first['prompt']:,}, then {first['gen']:,} tokens; {first['isa']}; medians of "
        f"{min(row['samples'] for row in rows)} or more"
    )
    lines += [
        f"{threads} thread{'s' if threads != 1 else ''}: reading alone {row['read_gbps']:.1f} GB/s, "
        f"int8 alone {row['int8_gops']:,.0f} G multiply-adds/s"
        for threads, row in {row["threads"]: row for row in rows}.items()
    ]
    return "\n".join(lines)


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raises OptionError where `plot` could not write: better before an hour of measuring than after."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except (ImportError, OSError) as error:
        missing = OptionError("--plot needs matplotlib: pip install 'fastllm[plot]'")
        raise import_error(error, "matplotlib", missing) from None
    path = Path(path)
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise OptionError(f"--plot {path}: the name must end in one of {', '.join('.' + name for name in known)}")
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise OptionError(f"--plot {path} cannot be written: no such folder, or no right to")


def plot(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str], *, title: str) -> None:
    """Draws what bench found: bars of tokens/s, before what the machine's limits would allow."""
    from matplotlib.figure import Figure

    names = [f"{row['dtype']}, threads {row['threads']}, batch {row['batch']}" for row in rows]
    figure = Figure(figsize=(12, 1.8 + 0.35 * len(rows)), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("decode", "prefill"), strict=True):
        limits = axes.barh(names, [row[f"{kind}_limit_tps"] for row in rows], color="mistyrose", edgecolor="tab:red")
        bars = axes.barh(names, [row[f"{kind}_tps"] for row in rows], height=0.5, color="tab:blue")
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        what = "int8 multiply-adds, or reading the weights, alone" if kind == "decode" else "int8 multiply-adds alone"
        axes.legend([limits], [what], loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        axes.set_xlabel(f"{kind}, tokens/s")
        axes.margins(x=0.15)
    axes.invert_yaxis()
    figure.suptitle(f"{title}: prompt {rows[0]['prompt']}, then {rows[0]['gen']} tokens")
    figure.savefig(path, dpi=120)
