"""Qwen 2, 2.5 and 3 (Qwen Team, 2024, 2025), and the language models of Qwen-VL; those with experts are in moe.py.

https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115, https://arxiv.org/abs/2505.09388
"""

from __future__ import annotations

from functools import partial

from fastllm.config import Config
from fastllm.families._decoder import attention, decoder, feed_forward, layer_windows, qk_norm, settings
from fastllm.families._rope import parameters
from fastllm.families.source import Recipe, Source

_QWEN: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}


def qwen2(source: Source) -> Recipe:
    """Qwen2ForCausalLM: queries, keys and values have biases."""
    source.defaults = _QWEN
    return _qwen2(source, settings(source, windows=_windows(source)))


def qwen2_vl(source: Source) -> Recipe:
    """The language model of Qwen2VLForConditionalGeneration and Qwen2_5_VLForConditionalGeneration."""
    source.defaults = {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
    }
    return _qwen2(source, settings(source, rope=multimodal_rope(source, 1000000.0), windows=_windows(source, 80)))


def _qwen2(source: Source, config: Config) -> Recipe:
    parts = (partial(attention, bias=True, out_bias=False), feed_forward)
    return decoder(source, config, *parts, bos=False)


def qwen3(source: Source) -> Recipe:
    """Qwen3ForCausalLM: norms of queries and keys, no biases."""
    source.defaults = _QWEN
    config = settings(source, head_dim=128, qk_norm="head", windows=_windows(source))
    return decoder(source, config, attention, qk_norm, feed_forward, bos=False)


def qwen3_vl(source: Source) -> Recipe:
    """The language model of Qwen3VLForConditionalGeneration."""
    source.defaults = {**_QWEN, "max_position_embeddings": 128000}
    config = settings(source, rope=multimodal_rope(source, 500000.0), head_dim=128, qk_norm="head")
    return decoder(source, config, attention, qk_norm, feed_forward, bos=False)


def multimodal_rope(source: Source, theta: float) -> Source:
    """The rotary parameters of a model that sees: M-RoPE is plain RoPE for text (see _multimodal.py)."""
    rope = parameters(source, theta=theta)
    if rope.get("rope_type", rope.get("type")) == "mrope":
        rope.header = {**rope.header, "rope_type": "default"}
    return rope


def _windows(source: Source, first: int = 28) -> tuple[int, ...]:
    """Config.windows. first: the class's default of the first layer with a window."""
    if not source.flag("use_sliding_window"):
        return ()
    first = source.integer("max_window_layers", first)
    return layer_windows(source, 4096, lambda i: i >= first)
