"""Attention in a long context, where a token's time is spent on reading keys and values."""

from typing import Any

import pytest

from fastllm import _core

from . import models

POSITION = 8000
BYTES = {"f32": 4.0, "f16": 2.0, "q8": 1.09375, "q4": 0.6875}  # bytes per number, with scales


@pytest.mark.parametrize("threads", [1, 2], ids=["1 thread", "2 threads"])
@pytest.mark.parametrize("kv_dtype", BYTES)
def test_long_context(benchmark: Any, kv_dtype: str, threads: int) -> None:
    """One token, four layers with SmolLM2-135M's heads and a stream so narrow that nearly all work is attention."""
    config = models.config(
        dim=32,
        hidden_dim=32,
        n_layers=4,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        vocab_size=64,
        max_seq=POSITION + 1,
    )
    model = _core.Model(config, dict(models.stored(config, "f16").tensors), kv_dtype=kv_dtype)
    sequence = _core.KVCache(model).sequence()
    for at in range(0, POSITION, 500):
        model.forward([(sequence, [i % 64 for i in range(at, at + 500)], 0)], threads=threads)
    logits = model.logits()

    def step() -> None:
        sequence.truncate(POSITION)
        model.forward([(sequence, [1], 1)], logits, threads=threads)

    numbers = config.n_layers * POSITION * 2 * config.n_kv_heads * config.head_dim
    benchmark.extra_info.update(bytes=int(numbers * BYTES[kv_dtype]), threads=threads)
    benchmark.pedantic(step, rounds=20, warmup_rounds=2)
