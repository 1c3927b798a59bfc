"""Gemma 1, 2 and 3 (Gemma Team, 2024, 2025): norms with weights 1 + w, scaled embeddings, a tied head.

https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118, https://arxiv.org/abs/2503.19786
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from fastllm.config import Config
from fastllm.families._decoder import (
    BEFORE,
    attention,
    decoder,
    depth,
    feed_forward,
    layer_windows,
    positive,
    qk_norm,
    settings,
)
from fastllm.families._huggingface import act
from fastllm.families._rope import rotation
from fastllm.families.source import Recipe, Source

_AROUND = {
    "attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}
_GEMMA: dict[str, object] = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
_GEMMA2: dict[str, object] = {
    **_GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_GEMMA3: dict[str, object] = {
    **_GEMMA2,
    "max_position_embeddings": 131072,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def gemma(source: Source) -> Recipe:
    """GemmaForCausalLM. Its configs say "gelu" and mean the approximation by tanh."""
    source.defaults = _GEMMA
    config = _settings(source, act="gelu_tanh" if source.get("hidden_act") == "gelu" else _act(source, "hidden_act"))
    return decoder(source, config, attention, feed_forward, norms=BEFORE, norm_add=1.0, tied=True)


def gemma2(source: Source) -> Recipe:
    """Gemma2ForCausalLM: norms before and after each branch, soft caps, a window in every second layer."""
    source.defaults = _GEMMA2
    config = _settings(
        source,
        attn_scale=positive(source, "query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=_softcap(source, "attn_logit_softcapping", 50.0),
        logit_softcap=_softcap(source, "final_logit_softcapping", 30.0),
        windows=_windows(source, lambda i: i % 2 == 0),
        act=_act(source, "hidden_activation"),
    )
    return decoder(source, config, attention, feed_forward, norms=_AROUND, norm_add=1.0, tied=True)


def gemma3(source: Source) -> Recipe:
    """Gemma3ForCausalLM: norms of queries and keys; of six layers five have a window and a rotation of their own.

    EmbeddingGemma (https://arxiv.org/abs/2509.20354) is a Gemma 3 that attends in both directions.
    """
    source.defaults = _GEMMA3
    source.refuse("attn_logit_softcapping")
    every = source.integer("sliding_window_pattern", 6) or depth(source) + 1
    windows = _windows(source, lambda i: bool((i + 1) % every))
    causal = not source.flag("use_bidirectional_attention")
    if not causal:  # sliding_window counts the positions on both sides together
        windows = tuple(window and window // 2 + 1 for window in windows)
    whole, local = _ropes(source)
    config = _settings(
        source,
        rope=whole,
        attn_scale=positive(source, "query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=_softcap(source, "final_logit_softcapping", 0.0),
        qk_norm="head",
        windows=windows,
        causal=causal,
        ropes=tuple(2 if window else 1 for window in windows),
        act=_act(source, "hidden_activation"),
    )
    near = rotation(local, config.rotary_dim, config.max_seq)
    if near.switch or near.scale != config.rope_scale:
        raise source.error("scales the rotation of some layers only, which fastllm does not support")
    source.vectors["rope.freqs_local"] = near.freqs
    for name, unused in (("rope.freqs", all(windows)), ("rope.freqs_local", not any(windows))):
        if unused:
            del source.vectors[name]
    parts = (attention, partial(qk_norm, add=1.0), feed_forward)
    return decoder(source, config, *parts, norms=_AROUND, norm_add=1.0, tied=True)


def _windows(source: Source, sliding: Callable[[int], bool]) -> tuple[int, ...]:
    """Config.windows. Unlike in other families, a sliding_window of null is the default, not none."""
    size = source.integer("sliding_window", 4096)
    source.header = {**source.header, "sliding_window": size}
    return layer_windows(source, None, sliding)


def _settings(source: Source, **flags: Any) -> Config:
    """What all Gemmas share: heads of 256 channels by default, and embeddings scaled by the root of the width."""
    config = settings(source, head_dim=256, **flags)
    return config._replace(embed_scale=math.sqrt(config.dim))


def _act(source: Source, key: str) -> str:
    """The activation, with the default of Gemma's classes."""
    return act(source, key, "gelu_pytorch_tanh")


def _softcap(source: Source, key: str, default: float) -> float:
    """A soft cap: null is none (0), a missing key is `default`."""
    return source.number(key, 0.0 if key in source.header else default)


def _ropes(source: Source) -> tuple[Source, Source]:
    """The rotary parameters of the layers without a window, and of those with one."""
    both = source.section("rope_parameters")
    whole, local = both.section("full_attention"), both.section("sliding_attention")
    if source.get("rope_scaling"):
        whole = source.section("rope_scaling", **whole.header)
    for rope, theta in (
        (whole, source.number("rope_theta", 1000000.0)),
        (local, source.number("rope_local_base_freq", 10000.0)),
    ):
        rope.refuse("partial_rotary_factor", 1)
        rope.header = {
            "rope_theta": theta,
            "original_max_position_embeddings": source.integer("max_position_embeddings"),
            **rope.header,
        }
    return whole, local
