"""Tokens/s on a busy machine: python bench/busy.py [MODEL...], each a file or a name in bench/models.py.

Writes one text alone, with one thread, beside a process that keeps one core busy, and with eight times as many threads
as there are cores. The four take turns; printed are medians of --rounds and their shares of the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import fastllm
import models
from fastllm.decoding import Sampling
from fastllm.llm import LLM
from fastllm.machine import thread_count

LONGEST = 200  # tokens of a text, so that all tokens have about as many before them


@contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def load(name: str, threads: int) -> LLM:
    return models.llm(name, "q8", threads) if name in models.CONFIGS else fastllm.load(name, threads=threads)


def speed(llm: LLM, seconds: float) -> float:
    """Tokens/s of texts that are written one after the other for about this many seconds."""
    count, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        for _ in llm.start([1, 5, 6, 7], Sampling(temperature=0), max_tokens=LONGEST, seed=1, stop=()):
            count += 1
            if perf_counter() - start > seconds:
                break
    return count / (perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", default=["stories15M", "110M", "1.1B"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    threads = thread_count()[0]
    print(f"{'':12} {threads} threads    1 thread      beside a busy process      {8 * threads} threads")
    for name in args.model:
        llm, single, large = (load(name, count) for count in (threads, 1, 8 * threads))
        rows: list[list[float]] = []
        for _ in range(args.rounds):
            rows.append([speed(llm, args.seconds), speed(single, args.seconds), speed(large, args.seconds)])
            with busy(1):
                rows[-1].insert(2, speed(llm, args.seconds))
            speed(llm, 1)  # lets the engine use all threads again
        alone, *others = (median(column) for column in zip(*rows, strict=True))
        line = "".join(f"{tps:12.1f} {tps / alone:5.0%}" for tps in others)
        print(f"{name if name in models.CONFIGS else Path(name).stem:12.12} {alone:9.1f} {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
