"""Helium (Kyutai, 2025), HeliumForCausalLM: Llama with rotary pairs (2i, 2i + 1) and no bias in attention's output.

https://huggingface.co/kyutai/helium-1-preview-2b
"""

from __future__ import annotations

from functools import partial

from fastllm.families._decoder import attention, decoder, feed_forward, settings
from fastllm.families.source import Recipe, Source


def helium(source: Source) -> Recipe:
    """HeliumForCausalLM."""
    source.defaults = {
        "hidden_size": 2560,
        "intermediate_size": 7040,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
    }
    config = settings(source, theta=100000.0, head_dim=128)
    return decoder(source, config, partial(attention, out_bias=False, interleaved=True), feed_forward)
