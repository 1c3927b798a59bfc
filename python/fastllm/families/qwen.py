"""Qwen 2, 2.5 and 3 (Qwen Team, 2024, 2025) without experts; those with experts are in moe.py."""

from __future__ import annotations

from functools import partial

from fastllm.families import Recipe, Source
from fastllm.families.llama import attention, decoder, feed_forward, layer_windows, qk_norm, settings


def qwen2(source: Source) -> Recipe:
    """Qwen2ForCausalLM: queries, keys and values have biases."""
    parts = (partial(attention, bias=True, out_bias=False), feed_forward)
    return decoder(source, settings(source, windows=_windows(source)), *parts, bos=False)


def qwen3(source: Source) -> Recipe:
    """Qwen3ForCausalLM: norms of queries and keys."""
    config = settings(source, head_dim=128, qk_norm="head", windows=_windows(source))
    return decoder(source, config, attention, qk_norm, feed_forward, bos=False)


def _windows(source: Source) -> tuple[int, ...]:
    if not source.flag("use_sliding_window"):
        return ()
    first = source.integer("max_window_layers", 28)
    return layer_windows(source, 4096, lambda i: i >= first)
