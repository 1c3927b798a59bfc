"""What runs in the process in which a model is measured."""

from __future__ import annotations

import math
import random
import signal
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from fastllm import _core
from fastllm.decoding import Sampling
from fastllm.engine import CHUNK, Engine, Span
from fastllm.errors import CheckpointWarning, FastLLMError, OptionError
from fastllm.llm import LLM, load
from fastllm.progress import Bar

_VISIT = 0.1  # seconds: a combination that takes less is run again, in the same visit


class Model(NamedTuple):
    """How much work a loaded model makes for each token.

    weight_bytes: read in a forward of one token. layer_work, head_work: multiply-adds of the weights of all layers for
    a token (shared experts, which a model may leave out, not counted), and of the head for one with logits.
    """

    dtype: str
    precise: bool
    isa: str
    context: int
    weight_bytes: int
    layer_work: int
    head_work: int


class Sample(NamedTuple):
    """One run of a batch, from prompts to last tokens: seconds, and the process's peak memory in bytes."""

    prefill: float
    first_token: float
    decode: float
    rss: int


def serve(pipe: Connection, path: str, dtype: str | None, precise: bool | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    warnings.simplefilter(
        "ignore", CheckpointWarning
    )  # they would be repeated for each type, and say nothing about speed
    try:
        with Bar("packing") as bar:
            llm = load(path, dtype=dtype, calibrate=False, precise=precise, progress=bar)  # as fast, sooner packed
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
    return Model("+".join(llm.dtypes), config.precise, llm.isa, llm.context, llm.bytes_per_token, layers, head)


def _visit(llm: LLM, threads: int, batch: int, prompt: int, gen: int) -> list[Sample]:
    """Runs a batch once, and again until _VISIT seconds have passed."""
    prompts = [random.Random(i).choices(range(llm.config.vocab_size), k=prompt) for i in range(batch)]
    llm._engine.threads = threads
    reset_peak()
    samples: list[Sample] = []
    start = perf_counter()
    while not samples or perf_counter() - start < _VISIT:
        _, sample = run(llm, prompts, gen)
        samples.append(sample)
    return samples


def run(llm: LLM, prompts: Sequence[Sequence[int]], gen: int) -> tuple[list[list[int]], Sample]:
    """Continues texts of token ids together, greedily, by 1 + `gen` tokens each."""
    batch = Lockstep(llm, prompts)
    start = perf_counter()
    prefill = batch.prefill()
    first_token = perf_counter()
    for _ in range(gen):
        batch.step()
    decode = perf_counter() - first_token
    return batch.new, Sample(prefill, first_token - start, decode, peak_rss())


class Lockstep:
    """Texts that advance in step; `new` holds the new tokens of each.

    Unlike in the scheduler's steps none is written before all have been read, so that both can be timed.
    """

    def __init__(self, llm: LLM, prompts: Sequence[Sequence[int]]) -> None:
        self._engine: Engine = llm._engine
        self._prompts = prompts
        self._sequences = [self._engine.sequence() for _ in prompts]
        size, greedy = llm.config.vocab_size, Sampling(temperature=0)
        self._samplers = [_core.Sampler(size, greedy, seed=0, isa=llm.isa) for _ in prompts]
        self._logits = self._engine.model.logits(len(prompts))
        self.new: list[list[int]] = [[] for _ in prompts]

    def prefill(self) -> float:
        """Runs the prompts one after the other in forwards of CHUNK tokens. Returns the seconds in the model."""
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
        """Draws the next token of each text that has logits; `texts` are their indices, in the order of the rows."""
        draws = [(self._samplers[i], row, ()) for row, i in enumerate(texts)]
        found = self._engine.model.draw(draws, self._logits, threads=self._engine.threads)
        for i, drawn in zip(texts, found, strict=True):
            if isinstance(drawn, Exception):
                raise drawn
            self.new[i] += drawn


def reset_peak() -> None:
    """Resets the peak to what is in memory now; only Linux can, elsewhere it stays the process's whole peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss() -> int:
    """The peak resident memory of this process in bytes; 0 where the system does not say."""
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
