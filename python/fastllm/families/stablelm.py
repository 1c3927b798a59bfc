"""StableLM (Bellagente et al., 2024), StableLmForCausalLM: LayerNorm, and a quarter of each head rotates.

https://arxiv.org/abs/2402.17834
"""

from __future__ import annotations

from functools import partial

from fastllm.config import Config
from fastllm.families._decoder import BEFORE, ONE_BEFORE, attention, decoder, feed_forward, settings
from fastllm.families._rope import parameters
from fastllm.families.source import Recipe, Source
from fastllm.tensors import joined_rows


def stablelm(source: Source) -> Recipe:
    """StableLmForCausalLM: StableLM 3B, 2 1.6B, 2 12B."""
    source.defaults = {
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
    }
    parallel = source.flag("use_parallel_residual")
    config = settings(
        source,
        rope=parameters(source, partial=0.25),
        norm="layer",
        parallel=parallel,
        qk_norm="head" if source.flag("qk_layernorm") else "none",
    )
    parts = (partial(attention, bias=source.flag("use_qkv_bias"), out_bias=False), _qk_norm, feed_forward)
    return decoder(source, config, *parts, norms=ONE_BEFORE if parallel else BEFORE, norm_bias=True, bos=False)


def _qk_norm(source: Source, config: Config, i: int) -> None:
    """The norms of queries and keys, whose weights are in a tensor for each head."""
    if config.qk_norm == "none":
        return
    for name, heads in (("q", config.n_heads), ("k", config.n_kv_heads)):
        theirs = f"model.layers.{i}.self_attn.{name}_layernorm.norms"
        weights = [source.tensor(f"{theirs}.{head}.weight") for head in range(heads)]
        source.vector(f"layers.{i}.attn.{name}_norm", joined_rows(weights))
