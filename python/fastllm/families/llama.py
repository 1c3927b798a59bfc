"""Llama in Meta's names and layout (Touvron et al., 2023), which llama2.c shares: rotary pairs (2i, 2i + 1)."""

from __future__ import annotations

from array import array

from fastllm.config import Config, rope_freqs
from fastllm.errors import CheckpointError
from fastllm.families import Recipe, Weight
from fastllm.formats import Checkpoint, Tensor

_ATTENTION = {"wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv", "wo": "attention.wo"}
_FFN = {"w1": "feed_forward.w1", "w2": "feed_forward.w2", "w3": "feed_forward.w3"}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Reads the header's dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len."""

    def number(name: str) -> int:
        value = checkpoint.header.get(name)
        if not isinstance(value, int):
            raise CheckpointError(f"{checkpoint.path} has no {name} in its header")
        return value

    def tensor(name: str) -> Tensor:
        if name not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.path} has no tensor {name}")
        return checkpoint.tensors[name]

    head_dim = number("dim") // number("n_heads")
    config = Config(
        dim=number("dim"),
        hidden_dim=number("hidden_dim"),
        head_dim=head_dim,
        n_layers=number("n_layers"),
        n_heads=number("n_heads"),
        n_kv_heads=number("n_kv_heads"),
        vocab_size=number("vocab_size"),
        max_seq=number("max_seq_len"),
        rotary_dim=head_dim,
        norm_eps=1e-5,
        attn_scale=head_dim**-0.5,
    )
    matrices = {"embed": Weight(tensor("tok_embeddings.weight"))}
    vectors: dict[str, memoryview | bytes] = {"rope.freqs": rope_freqs(10000.0, head_dim)}
    halves = {
        "wq": half_split(config.n_heads, head_dim),
        "wk": half_split(config.n_kv_heads, head_dim),
    }
    for i in range(config.n_layers):
        vectors[f"layers.{i}.attn_norm"] = tensor(f"layers.{i}.attention_norm.weight").data
        vectors[f"layers.{i}.ffn_norm"] = tensor(f"layers.{i}.ffn_norm.weight").data
        for ours, theirs in _ATTENTION.items():
            matrix = tensor(f"layers.{i}.{theirs}.weight")
            matrices[f"layers.{i}.attn.{ours}"] = Weight(matrix, halves.get(ours))
        for ours, theirs in _FFN.items():
            matrices[f"layers.{i}.ffn.{ours}"] = Weight(tensor(f"layers.{i}.{theirs}.weight"))
    vectors["final_norm"] = tensor("norm.weight").data
    if "output.weight" in checkpoint.tensors:
        matrices["head"] = Weight(tensor("output.weight"))
    # llama2.c ends a text at BOS, which its stories were separated by, and a turn of a chat at EOS.
    return Recipe(config, matrices, vectors, bos=1, stop=(1,), chat_stop=(1, 2))


def half_split(heads: int, head_dim: int) -> array[int]:
    """Rows that bring rotary pairs (2i, 2i + 1) of each head to (i, i + head_dim / 2)."""
    order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return array("i", [head * head_dim + i for head in range(heads) for i in order])
