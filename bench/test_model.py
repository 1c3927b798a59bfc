"""Whole models: a token, a prompt, loading, and the time from the start of a process to the first token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm.bench import Lockstep
from fastllm.decoding import Sampling
from fastllm.weights import store

from . import models

GREEDY = Sampling(temperature=0)
# Starts are timed with compiled bytecode, which pip makes.
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


THREADS = pytest.mark.parametrize("threads", [1, 2], ids=["1 thread", "2 threads"])


@THREADS
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(("stories15M", dtype) for dtype in ("f32", "bf16", "f16", "q8", "q4")),
        *(("110M", dtype) for dtype in ("f32", "q8", "q4")),
        *(("1.1B/4", dtype) for dtype in ("q8", "q4")),
    ],
)
def test_decode(benchmark: Any, shape: str, dtype: str, threads: int) -> None:
    """One greedy token after a hundred others: what a user waits for between two pieces of text."""
    llm = models.llm(shape, dtype, threads)
    prompt = list(range(1, 101))

    def start() -> tuple[tuple[Iterator[int]], dict[str, Any]]:
        tokens = iter(llm.start(prompt, GREEDY, max_tokens=2, seed=0, stop=()))
        next(tokens)  # computed with the prompt, most of which is in the cache from the round before
        return (tokens,), {}

    benchmark.extra_info.update(models.forward_work(llm, len(prompt), 1), threads=threads)
    rounds = 200 if shape == "stories15M" else 40
    benchmark.pedantic(next, setup=start, teardown=_close, rounds=rounds, warmup_rounds=2)


@THREADS
def test_decode_far(benchmark: Any, threads: int) -> None:
    """One token at position 8,000, for which more bytes of keys and values are read than of weights."""
    llm = models.llm("SmolLM2/6", "q8", threads)
    batch = Lockstep(llm, [[i % 1000 for i in range(8000)]])
    batch.prefill()
    benchmark.extra_info.update(models.forward_work(llm, 8000, 1), threads=threads)
    benchmark.pedantic(batch.step, rounds=20, warmup_rounds=2)


@THREADS
@pytest.mark.parametrize(("shape", "dtype"), [("stories15M", "q8"), ("1.1B/4", "q8"), ("1.1B/4", "q4")])
def test_decode_batch(benchmark: Any, shape: str, dtype: str, threads: int) -> None:
    """The next token of each of 16 texts."""
    llm = models.llm(shape, dtype, threads)
    batch = Lockstep(llm, [list(range(i, i + 32)) for i in range(16)])
    batch.prefill()
    benchmark.extra_info.update(models.forward_work(llm, 32, 1, texts=16), threads=threads)
    benchmark.pedantic(batch.step, rounds=20, warmup_rounds=2)


@THREADS
@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [("110M", "q8"), ("stories15M", "f32"), ("stories15M", "q8"), ("1.1B/4", "q8"), ("1.1B/4", "q4")],
)
def test_prefill(benchmark: Any, shape: str, dtype: str, length: int, threads: int) -> None:
    """A prompt, up to its first new token."""
    llm = models.llm(shape, dtype, threads)
    beginnings = count(1)

    def start() -> tuple[tuple[Iterator[int]], dict[str, Any]]:
        # Each prompt begins with another token, so that no part of it is in the cache.
        prompt = [next(beginnings), *range(1, length)]
        return (iter(llm.start(prompt, GREEDY, max_tokens=1, seed=0, stop=())),), {}

    benchmark.extra_info.update(models.forward_work(llm, 0, length), threads=threads)
    # As many rounds of warming up as the cache keeps texts; after them no new memory is touched.
    rounds, warmup = (5, 1) if shape == "1.1B/4" else (10, 5)
    benchmark.pedantic(next, setup=start, teardown=_close, rounds=rounds, warmup_rounds=warmup)


def _close(tokens: Iterator[int]) -> None:
    """Ends a stream, which returns its pages to the cache."""
    tokens.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_load_checkpoint(benchmark: Any, tmp_path: Path, dtype: str) -> None:
    """Loading stories15M from a llama2.c checkpoint in the page cache: reading, permuting and packing."""
    path = tmp_path / "model.bin"
    models.write_llama2c(path, models.CONFIGS["stories15M"])
    benchmark.extra_info.update(bytes=path.stat().st_size)
    benchmark.pedantic(fastllm.load, (path,), {"dtype": dtype, "threads": 1}, rounds=10, warmup_rounds=1)


def test_load_converted(benchmark: Any, tmp_path: Path) -> None:
    """Loading the same model converted: it is mapped, and only its header is read."""
    path = tmp_path / "model.safetensors"
    store.save(path, models.named("stories15M", "q8"))
    benchmark.pedantic(fastllm.load, (path,), {"threads": 1}, rounds=50, warmup_rounds=1)


@pytest.mark.parametrize(
    ("name", "prompt"), [("built-in", ""), ("stories15M", ""), ("stories15M", "Once upon a time"), ("1.1B", "")]
)
def test_start(benchmark: Any, tmp_path: Path, name: str, prompt: str) -> None:
    """From the start of the process to the first byte of text, with the built-in model or a converted file."""
    command = [sys.executable, "-m", "fastllm", "run", "-i", prompt, "--max-tokens", "1"]
    if name != "built-in":
        command[4:4] = [str(models.write_converted(tmp_path / "model.safetensors", name))]

    def first_byte() -> bytes:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=COMPILED) as process:
            assert process.stdout
            byte = process.stdout.read(len(prompt) + 1)[len(prompt) :]
            process.kill()  # the rest of its text and figures does not count
            return byte

    assert benchmark.pedantic(first_byte, rounds=10, warmup_rounds=1)


def test_import(benchmark: Any) -> None:
    """A Python process that imports what `fastllm run` needs, and ends."""
    command = [sys.executable, "-c", "import fastllm.cli, fastllm.llm"]
    benchmark.pedantic(subprocess.run, (command,), {"check": True, "env": COMPILED}, rounds=10, warmup_rounds=1)
