"""Decoders with a mixture of experts: Mixtral, OLMoE, Qwen 2 and 3.

A part, `experts`, takes the place of feed_forward: a router, the experts' three matrices as stacks (experts, rows,
columns), and perhaps an expert that every token passes, which is the layer's feed-forward in Config's terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastllm.config import Config
from fastllm.families._decoder import (
    attention,
    decoder,
    depth,
    feed_forward,
    layer_windows,
    qk_norm,
    same_window,
    settings,
)
from fastllm.families.mistral import MISTRAL
from fastllm.families.qwen import multimodal_rope
from fastllm.families.source import Recipe, Source
from fastllm.tensors import at, parted, stacked, transposed


def mixtral(source: Source) -> Recipe:
    """MixtralForCausalLM (Jiang et al., 2024, https://arxiv.org/abs/2401.04088)."""
    source.defaults = {**MISTRAL, "rms_norm_eps": 1e-5}
    config = settings(
        source,
        theta=1000000.0,
        windows=same_window(source),
        hidden_dim=0,
        n_experts=source.integer("num_local_experts", 8),
        n_experts_used=source.integer("num_experts_per_tok", 2),
        expert_dim=source.integer("intermediate_size"),
        moe_renormalize=True,
    )
    if "model.layers.0.mlp.gate.weight" in source.tensors:  # names of transformers 5, in memory
        return decoder(source, config, attention, experts)
    named = partial(experts, theirs="block_sparse_moe", names=("w1", "w3", "w2"))
    return decoder(source, config, attention, named)


def olmoe(source: Source) -> Recipe:
    """OlmoeForCausalLM (Muennighoff et al., 2024, https://arxiv.org/abs/2409.02060): norms over all queries, keys."""
    source.defaults = {
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
    }
    source.refuse("clip_qkv")
    config = settings(
        source,
        qk_norm="row",
        hidden_dim=0,
        **_routing(source, used=8),
        expert_dim=source.integer("intermediate_size"),
    )
    return decoder(source, config, attention, qk_norm, experts, bos=False)


def qwen2_moe(source: Source) -> Recipe:
    """Qwen2MoeForCausalLM (Qwen Team, 2024): a shared expert, which every token passes, with a gate."""
    source.defaults = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "num_experts": 60,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }
    windows: tuple[int, ...] = ()
    if source.flag("use_sliding_window"):
        end = source.integer("max_window_layers", 28)
        windows = layer_windows(source, 4096, lambda i: i % 2 == 0 and i < end)
    moe = _sparse_layers(source)
    shared, dense = source.integer("shared_expert_intermediate_size"), source.integer("intermediate_size")
    if not all(moe) and shared != dense:
        raise source.error(
            f"has layers without experts as wide as {dense} and shared experts as wide as {shared}, "
            "which fastllm supports only when they are equal"
        )
    config = settings(
        source,
        windows=windows,
        hidden_dim=shared,
        **_routing(source, used=4),
        expert_dim=source.integer("moe_intermediate_size"),
        moe=moe,
    )
    parts = (partial(attention, bias=source.flag("qkv_bias", True), out_bias=False), partial(experts, shared=True))
    return decoder(source, config, *parts, bos=False)


def qwen3_moe(source: Source) -> Recipe:
    """Qwen3MoeForCausalLM (Qwen Team, 2025, https://arxiv.org/abs/2505.09388)."""
    source.defaults = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "num_experts": 128,
        "moe_intermediate_size": 768,
    }
    windows = same_window(source, 4096) if source.flag("use_sliding_window") else ()
    config = _qwen3_settings(source, windows=windows, **_routing(source, used=8))
    return decoder(source, config, attention, qk_norm, experts, bos=False)


def qwen3_vl_moe(source: Source) -> Recipe:
    """The language model of Qwen3VLMoeForConditionalGeneration, whose files have experts as (inputs, outputs)."""
    source.defaults = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "num_experts": 60,
        "moe_intermediate_size": 1408,
    }
    routing = _routing(source, used=4) | {"moe_renormalize": True}
    config = _qwen3_settings(source, rope=multimodal_rope(source, 500000.0), **routing)
    parts = (attention, qk_norm, partial(experts, turned=True))
    return decoder(source, config, *parts, tied=True, bos=False)


def _qwen3_settings(source: Source, **flags: Any) -> Config:
    """What the two Qwen 3 have in common."""
    moe = _sparse_layers(source)
    return settings(
        source,
        qk_norm="head",
        hidden_dim=0 if all(moe) else source.integer("intermediate_size"),
        expert_dim=source.integer("moe_intermediate_size"),
        moe=moe,
        **flags,
    )


def _routing(source: Source, *, used: int) -> dict[str, Any]:
    """Config's numbers of experts. used: the class's default of experts a token."""
    named = [key for key in ("num_experts", "num_local_experts") if source.header.get(key) is not None]
    return {
        "n_experts": source.integer(named[0] if named else "num_experts"),
        "n_experts_used": source.integer("num_experts_per_tok", used),
        "moe_renormalize": source.flag("norm_topk_prob"),
    }


def _sparse_layers(source: Source) -> tuple[int, ...]:
    """Config.moe, by decoder_sparse_step and mlp_only_layers."""
    step, dense = source.integer("decoder_sparse_step", 1), source.get("mlp_only_layers", [])
    if step < 1 or not isinstance(dense, list) or not all(type(i) is int for i in dense):
        raise source.error(f"has decoder_sparse_step {step} and mlp_only_layers {dense!r}")
    skipped = frozenset(dense)
    return tuple(int(i not in skipped and (i + 1) % step == 0) for i in range(depth(source)))


def experts(
    source: Source,
    config: Config,
    i: int,
    *,
    theirs: str = "mlp",
    names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    shared: bool = False,
    turned: bool = False,
) -> None:
    """The part of a layer's experts, or of the feed-forward in a layer without experts.

    A file has a tensor for each matrix of each expert, or all gates and ups in one and all downs in another.
    theirs: the module that they are in. names: of w1, w3 and w2 of an expert. shared: whether there is a shared expert.
    turned: whether experts in one tensor may be (inputs, outputs), which their shape then tells.
    """
    if not config.layer_moe(i):
        feed_forward(source, config, i)
        return
    ours, module, n, width = f"layers.{i}", f"model.layers.{i}.{theirs}", config.n_experts, config.expert_dim
    source.matrix(f"{ours}.router", f"{module}.gate.weight")
    if f"{module}.experts.gate_up_proj" in source.tensors:
        both, down = (source.tensor(f"{module}.experts.{name}") for name in ("gate_up_proj", "down_proj"))
        if turned and both.shape[1:] != (2 * width, config.dim):
            both = transposed(both)
        if turned and down.shape[1:] != (config.dim, width):
            down = transposed(down)
        # both: (experts, 2 * width, dim)
        gates, ups = zip(*(parted(at(both, e), width, width) for e in range(n)), strict=True)
        source.matrix(f"{ours}.experts.w1", stacked(gates))
        source.matrix(f"{ours}.experts.w3", stacked(ups))
        source.matrix(f"{ours}.experts.w2", down)
    else:
        for w, name in zip(("w1", "w3", "w2"), names, strict=True):
            each = [source.tensor(f"{module}.experts.{e}.{name}.weight") for e in range(n)]
            source.matrix(f"{ours}.experts.{w}", stacked(each))
    if shared:
        feed_forward(source, config, i, theirs=f"{theirs}.shared_expert")
        source.matrix(f"{ours}.ffn.gate", f"{module}.shared_expert_gate.weight")
