"""Command R and A (Cohere, 2024, 2025): LayerNorm without bias, parallel branches, pairs (2i, 2i + 1) rotate.

CohereForCausalLM and Cohere2ForCausalLM; https://arxiv.org/abs/2504.00698 describes Command A.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastllm.config import Config
from fastllm.families._decoder import ONE_BEFORE, attention, decoder, feed_forward, layer_windows, qk_norm, settings
from fastllm.families.source import Recipe, Source

_PARTS = (partial(attention, interleaved=True), partial(qk_norm, interleaved=True), feed_forward)
_COHERE: dict[str, object] = {
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
}


def cohere(source: Source) -> Recipe:
    """CohereForCausalLM: Command R and R+."""
    return _recipe(source, _settings(source, theta=500000.0, qk_norm="head" if source.flag("use_qk_norm") else "none"))


def cohere2(source: Source) -> Recipe:
    """Cohere2ForCausalLM: Command R7B and A. Only the layers with a window rotate."""
    source.defaults = _COHERE
    every = source.integer("sliding_window_pattern", 4) or 4
    windows = layer_windows(source, 4096, lambda i: bool((i + 1) % every))
    return _recipe(source, _settings(source, windows=windows, ropes=tuple(int(w > 0) for w in windows)))


def _settings(source: Source, **flags: Any) -> Config:
    """What both classes share."""
    source.defaults = _COHERE
    return settings(source, norm="layer", parallel=True, logit_scale=source.number("logit_scale", 0.0625), **flags)


def _recipe(source: Source, config: Config) -> Recipe:
    """The recipe of both classes."""
    return decoder(source, config, *_PARTS, norms=ONE_BEFORE, tied=True)
