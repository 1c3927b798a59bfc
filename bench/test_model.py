"""Whole models: a token, a prompt, loading, and from nothing to the first token."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm import store
from fastllm.sampling import Sampling

from . import models

GREEDY = Sampling(temperature=0)
DEMO = Path(fastllm.__file__).parent / "demo" / "stories.safetensors"


@pytest.mark.parametrize("threads", [1, 2], ids=["1 thread", "2 threads"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*(("stories15M", dtype) for dtype in ("f32", "bf16", "f16", "q8")), ("110M", "f32"), ("110M", "q8")],
)
def test_decode(benchmark: Any, shape: str, dtype: str, threads: int) -> None:
    """One token after a hundred, the most likely one taken: what a user waits for between two pieces of text."""
    llm = models.llm(shape, dtype, threads)
    prompt = list(range(1, 101))

    def start() -> tuple[tuple[Iterator[int]], dict[str, Any]]:
        tokens = iter(llm.start(prompt, GREEDY, max_tokens=2, seed=0, stop=()))
        next(tokens)  # comes with the prompt, which the engine still has from the round before, but for its end
        return (tokens,), {}

    benchmark.extra_info.update(models.forward_work(llm, len(prompt), 1), threads=threads)
    rounds = 200 if shape == "stories15M" else 40
    benchmark.pedantic(next, setup=start, teardown=_close, rounds=rounds, warmup_rounds=2)


@pytest.mark.parametrize("threads", [1, 2], ids=["1 thread", "2 threads"])
@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize(("shape", "dtype"), [("110M", "q8"), ("stories15M", "f32"), ("stories15M", "q8")])
def test_prefill(benchmark: Any, shape: str, dtype: str, length: int, threads: int) -> None:
    """A prompt to its first token."""
    llm = models.llm(shape, dtype, threads)
    beginnings = count(1)

    def start() -> tuple[tuple[Iterator[int]], dict[str, Any]]:
        # Each begins with another token, so that no earlier round has left anything of it in the cache.
        prompt = [next(beginnings), *range(1, length)]
        return (iter(llm.start(prompt, GREEDY, max_tokens=1, seed=0, stop=())),), {}

    benchmark.extra_info.update(models.forward_work(llm, 0, length), threads=threads)
    # As many to warm up as the engine keeps texts: from then on the cache's memory is memory used before.
    benchmark.pedantic(next, setup=start, teardown=_close, rounds=10, warmup_rounds=5)


def _close(tokens: Iterator[int]) -> None:
    """Gives the text's part of the cache back to the engine."""
    tokens.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_load_checkpoint(benchmark: Any, tmp_path: Path, dtype: str) -> None:
    """stories15M from a llama2.c checkpoint, which the system has in memory: reading, permuting, packing."""
    path = tmp_path / "model.bin"
    models.write_llama2c(path, models.CONFIGS["stories15M"])
    benchmark.extra_info.update(bytes=path.stat().st_size)
    benchmark.pedantic(fastllm.load, (path,), {"dtype": dtype, "threads": 1}, rounds=10, warmup_rounds=1)


def test_load_converted(benchmark: Any, tmp_path: Path) -> None:
    """The same converted: mapped, and nothing but the header read before the first token needs it."""
    path = tmp_path / "model.safetensors"
    store.save(path, models.named("stories15M", "q8"))
    benchmark.pedantic(fastllm.load, (path,), {"threads": 1}, rounds=50, warmup_rounds=1)


@pytest.mark.skipif(not DEMO.exists(), reason="the built-in model is not there")
def test_start(benchmark: Any) -> None:
    """From the start of the process to the first byte of the built-in model's text."""
    command = [sys.executable, "-m", "fastllm", "run", "-n", "1"]

    def first_byte() -> bytes:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            byte = process.stdout.read(1)
            process.kill()  # what it still measures and prints is not waited for
            return byte

    assert benchmark.pedantic(first_byte, rounds=10, warmup_rounds=1)
