"""Random models of real shapes, made in memory, because a model's speed does not depend on its weights' values."""

from __future__ import annotations

import random
import struct
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastllm import _core
from fastllm.config import Config, rope_freqs
from fastllm.errors import TokenizerError
from fastllm.families import Recipe, Weight
from fastllm.llm import LLM
from fastllm.machine import thread_count
from fastllm.tensors import mapped
from fastllm.weights import store
from fastllm.weights.packing import assemble

_KV_BYTES = {"f32": 4, "f16": 2, "q8": 1.125}


def config(
    *,
    dim: int,
    hidden_dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    vocab_size: int,
    max_seq: int,
    head_dim: int = 0,
) -> Config:
    """The Config of a Llama. head_dim 0 means dim / n_heads."""
    head_dim = head_dim or dim // n_heads
    return Config(
        dim=dim,
        hidden_dim=hidden_dim,
        head_dim=head_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        max_seq=max_seq,
        rotary_dim=head_dim,
        norm_eps=1e-5,
        attn_scale=head_dim**-0.5,
    )


CONFIGS = {
    "stories15M": config(dim=288, hidden_dim=768, n_layers=6, n_heads=6, n_kv_heads=6, vocab_size=32000, max_seq=1024),
    "110M": config(dim=768, hidden_dim=2048, n_layers=12, n_heads=12, n_kv_heads=12, vocab_size=32000, max_seq=1024),
    "1.1B": config(dim=2048, hidden_dim=5632, n_layers=22, n_heads=32, n_kv_heads=4, vocab_size=32000, max_seq=2048),
    # Of larger models as many layers as exceed the caches, to keep rounds short: 4 of 22, 6 of 30.
    "1.1B/4": config(dim=2048, hidden_dim=5632, n_layers=4, n_heads=32, n_kv_heads=4, vocab_size=32000, max_seq=2048),
    "128k": config(dim=2048, hidden_dim=8192, n_layers=2, n_heads=32, n_kv_heads=8, vocab_size=128256, max_seq=2048),
    "SmolLM2/6": config(dim=576, hidden_dim=1536, n_layers=6, n_heads=9, n_kv_heads=3, vocab_size=49152, max_seq=8192),
}

# The matrices of a model of 1.1 billion parameters: attention, gate and up, down, head. (rows, columns)
MATRICES_1B = ((2048, 2048), (5632, 2048), (2048, 5632), (32000, 2048))


@cache
def _numbers() -> NDArray[np.float32]:
    numbers = np.random.default_rng(1).random(max(prod(shape) for shape in MATRICES_1B), np.float32)
    numbers -= 0.5
    numbers *= 0.1
    return numbers


def weights(*shape: int) -> NDArray[np.float32]:
    """Random f32 in [-0.05, 0.05). Every call returns the beginning of the same numbers, which is enough for timing;
    where a matrix has more, they come again."""
    numbers = _numbers()
    return (numbers[: prod(shape)] if prod(shape) <= len(numbers) else np.resize(numbers, prod(shape))).reshape(shape)


# One model is kept, as tests of the same weights follow each other and a second large model may not fit in memory.
@lru_cache(maxsize=1)
def matrix(dtype: str, d: int, n: int) -> _core.Matrix:
    return _core.pack(dtype, d, n, "f32", _bytes(weights(d, n)), threads=thread_count()[0])


def aligned(*shape: int) -> NDArray[np.float32]:
    """Zeros that begin at a cache line, as the core's activations do."""
    return np.frombuffer(_core.Buffer(prod(shape) * 4), np.float32).reshape(shape)


def _bytes(values: NDArray[np.float32]) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))


def _norms(config: Config) -> list[tuple[str, int]]:
    """Names and lengths of a Llama's norms."""
    return [(name, n) for name, n, _ in config.vectors() if name.endswith((".attn_norm", ".ffn_norm", "final_norm"))]


def stored(config: Config, dtype: str) -> store.Stored:
    """A model with a tied head in one piece of memory, as a loaded one is."""
    matrices = {
        name: Weight(mapped("f32", shape, _bytes(weights(*shape))))
        for name, shape, required in config.matrices()
        if required
    }
    vectors: dict[str, memoryview | bytes] = {name: _bytes(np.ones(n, np.float32)) for name, n in _norms(config)}
    vectors["rope.freqs"] = rope_freqs(10000.0, config.rotary_dim)
    plan = Recipe(config, matrices, vectors, bos=1, stop=(1,), chat_stop=(1,))
    return assemble(plan, dtype=dtype, threads=thread_count()[0])


@lru_cache(maxsize=1)
def named(name: str, dtype: str) -> store.Stored:
    return stored(CONFIGS[name], dtype)


def llm(name: str, dtype: str, threads: int) -> LLM:
    """An LLM without a tokenizer: its texts are token ids."""
    return LLM(named(name, dtype), TokenizerError("none"), threads=threads, context=None, path=Path(name))


def write_llama2c(path: Path, config: Config) -> None:
    """Writes a llama2.c checkpoint, version 0, with random weights."""
    fields = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq")
    count = sum(prod(shape) for _, shape, required in config.matrices() if required)
    count += sum(n for _, n in _norms(config))
    count += config.max_seq * config.head_dim  # the tables of rotations
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", *(getattr(config, name) for name in fields)))
        file.write(_bytes(weights(count)))


def write_words(path: Path, vocab_size: int) -> None:
    """Writes a tokenizer.bin: llama2.c's special tokens and bytes, then random words of ordinary lengths."""
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    while len(words) < vocab_size:
        words.append("".join(draw.choices(letters, k=draw.randint(1, 10))).encode())
    with open(path, "wb") as file:
        file.write(struct.pack("<i", max(map(len, words))))
        for i, word in enumerate(words):
            file.write(struct.pack("<fi", -float(i), len(word)) + word)


def write_converted(path: Path, name: str, dtype: str = "q8") -> Path:
    """Writes a converted file with a tokenizer as large as the model's vocabulary."""
    words = path.with_suffix(".words")
    write_words(words, CONFIGS[name].vocab_size)
    store.save(path, named(name, dtype)._replace(tokenizer=("llama2.c", words.read_bytes())))
    return path


# ---- what a forward does -------------------------------------------------------------------------------------------


def attention_work(config: Config, start: int, tokens: int, kv_dtype: str) -> dict[str, int]:
    """What attention of `tokens` new tokens after `start` others does: bytes of keys and values, and multiply-adds."""
    kv_width, q_width = config.n_kv_heads * config.head_dim, config.n_heads * config.head_dim
    seen = sum(range(start + 1, start + tokens + 1))
    return {
        "bytes": int(config.n_layers * (start + tokens) * 2 * kv_width * _KV_BYTES[kv_dtype]),
        "multiply_adds": config.n_layers * seen * 2 * q_width,
    }


def forward_work(llm: LLM, start: int, tokens: int, texts: int = 1) -> dict[str, int]:
    """What a forward does: `tokens` new tokens of each text after `start` others, and logits for the last of each."""
    work = attention_work(llm.config, start, tokens, "f32" if "f32" in llm.dtypes else "f16")
    layers = sum(prod(shape) for name, shape, _ in llm.config.matrices() if name.startswith("layers."))
    head = llm.config.vocab_size * llm.config.dim
    return {
        "bytes": work["bytes"] * texts + llm.bytes_per_token,
        "multiply_adds": (work["multiply_adds"] + layers * tokens + head) * texts,
    }
