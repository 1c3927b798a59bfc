"""Phi-3, 3.5 and 4-mini (Abdin et al., 2024), Phi3ForCausalLM: one matrix for queries, keys and values, one for gate
and up.

https://arxiv.org/abs/2404.14219, https://arxiv.org/abs/2503.01743
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._decoder import decoder, same_window, settings
from fastllm.families._rope import parameters
from fastllm.families.llama import LLAMA
from fastllm.families.source import Recipe, Source
from fastllm.tensors import parted


def phi3(source: Source) -> Recipe:
    """Phi3ForCausalLM. The first configs call LongRoPE "su" or "yarn"."""
    source.defaults = {
        **LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    source.refuse("lm_head_bias", False)
    rope = parameters(source, partial=1.0)
    if rope.get("rope_type", rope.get("type")) in ("su", "yarn"):
        rope.header = {**rope.header, "rope_type": "longrope"}
    config = settings(source, rope=rope, windows=same_window(source))
    return decoder(source, config, _attention, _feed_forward, bos=False)


def _attention(source: Source, config: Config, i: int) -> None:
    theirs = f"model.layers.{i}.self_attn"
    qkv = source.tensor(f"{theirs}.qkv_proj.weight")
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for name, tensor in zip(("wq", "wk", "wv"), parted(qkv, q, kv, kv), strict=True):
        source.matrix(f"layers.{i}.attn.{name}", tensor)
    source.linear(f"layers.{i}.attn.wo", f"{theirs}.o_proj", bias=False)


def _feed_forward(source: Source, config: Config, i: int) -> None:
    theirs, width = f"model.layers.{i}.mlp", config.hidden_dim
    both = source.tensor(f"{theirs}.gate_up_proj.weight")
    for name, tensor in zip(("w1", "w3"), parted(both, width, width), strict=True):
        source.matrix(f"layers.{i}.ffn.{name}", tensor)
    source.linear(f"layers.{i}.ffn.w2", f"{theirs}.down_proj", bias=False)
