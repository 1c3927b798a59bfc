"""Single parts of a forward: matrix products, attention, sampling."""

from typing import Any

import numpy as np
import pytest

from fastllm import _core
from fastllm.decoding import Sampling
from fastllm.machine import thread_count

from . import models

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.4)


@pytest.mark.parametrize("tokens", [1, 64], ids=lambda t: f"{t}t")
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "q8"])
@pytest.mark.parametrize("shape", models.MATRICES_1B, ids=lambda s: f"{s[0]}x{s[1]}")
def test_multiply(benchmark: Any, shape: tuple[int, int], dtype: str, tokens: int) -> None:
    """One product on one thread, with the copy of its inputs and their rounding to int8.

    A model shares these between several products. The smaller matrices stay in a cache between calls, unlike a model's.
    """
    d, n = shape
    matrix = models.matrix(dtype, d, n)
    x, out = models.aligned(tokens, n), models.aligned(tokens, -(-d // _core.LANES) * _core.LANES)
    x[:] = models.weights(tokens, n)
    benchmark.extra_info.update(bytes=matrix.nbytes, multiply_adds=d * n * tokens)
    benchmark(matrix.multiply, x, out)


# _core.attend first copies all keys and values into the cache's layout, which for one row is most of the work. So
# attention is measured in a forward of one layer, with the heads of a 1B model and a stream so narrow (32) that
# attention does at least 96 % of the multiply-adds and reads 86 % of the bytes.
@pytest.mark.parametrize("tokens", [(2047, 1), (960, 64)], ids=["1t-of-2048", "64t-of-1024"])
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize("heads", [(32, 64), (16, 128)], ids=["32x64", "16x128"])
def test_attention(benchmark: Any, heads: tuple[int, int], kv_dtype: str, tokens: tuple[int, int]) -> None:
    (n_heads, head_dim), (start, new) = heads, tokens
    config = models.config(
        dim=32,
        hidden_dim=32,
        n_layers=1,
        n_heads=n_heads,
        n_kv_heads=n_heads // 4,
        head_dim=head_dim,
        vocab_size=64,
        max_seq=2048,
    )
    model = _core.Model(config, dict(models.stored(config, "f16").tensors), kv_dtype=kv_dtype)
    sequence = _core.KVCache(model).sequence()
    ids = [i % config.vocab_size for i in range(start + new)]
    for at in range(0, start, 256):
        model.forward([(sequence, ids[at : min(at + 256, start)], 0)], threads=thread_count()[0])
    logits = model.logits()

    def step() -> None:
        sequence.truncate(start)
        model.forward([(sequence, ids[start:], 1)], logits)

    benchmark.extra_info.update(models.attention_work(config, start, new, kv_dtype))
    benchmark(step)


# With this standard deviation of logits 1 % of the vocabulary has 90 % of the probability, as in a text.
SPREAD = 3.5

SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "temperature": Sampling(temperature=0.8, top_p=1.0),
    "top-p": Sampling(top_p=0.9),
    "top-k": Sampling(top_p=1.0, top_k=40),
    "all": Sampling(
        temperature=0.8,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
    ),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("vocab_size", [32000, 128256])
def test_sampler(benchmark: Any, vocab_size: int, kind: str) -> None:
    """One draw from logits that are distributed as in a text. Of the model only its working memory is used."""
    rng = np.random.default_rng(1)
    config = models.config(
        dim=32, hidden_dim=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, vocab_size=vocab_size, max_seq=64
    )
    model = _core.Model(config, dict(models.stored(config, "f16").tensors))
    logits = model.logits()
    np.frombuffer(memoryview(logits), np.float32)[:vocab_size] = rng.standard_normal(vocab_size, np.float32) * SPREAD
    sampler = _core.Sampler(vocab_size, SAMPLINGS[kind], seed=1)
    for token in rng.integers(vocab_size, size=256):  # tokens that the penalties apply to
        sampler.accept(int(token), generated=True)
    benchmark.extra_info.update(bytes=vocab_size * 4)
    benchmark(model.draw, [(sampler, 0, ())], logits)
