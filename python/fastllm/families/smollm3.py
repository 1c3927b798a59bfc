"""SmolLM3 (Bakouch et al., 2025), SmolLM3ForCausalLM: Llama in which every fourth layer does not rotate (NoPE).

https://huggingface.co/blog/smollm3
"""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, depth, feed_forward, layer_windows, settings
from fastllm.families.llama import LLAMA
from fastllm.families.source import Recipe, Source


def smollm3(source: Source) -> Recipe:
    """SmolLM3ForCausalLM."""
    source.defaults = {
        **LLAMA,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    }
    n = depth(source)
    interval = source.integer("no_rope_layer_interval", 4) or n + 1
    ropes = source.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(n)])
    if not isinstance(ropes, list) or len(ropes) != n or any(rope not in (0, 1) for rope in ropes):
        raise source.error(f"has no_rope_layers that are not 0 or 1 for each of {n} layers")
    windows = layer_windows(source, None, lambda i: not ropes[i]) if source.flag("use_sliding_window") else ()
    config = settings(source, theta=2000000.0, ropes=tuple(map(int, ropes)), windows=windows)
    return decoder(source, config, attention, feed_forward, tied=True, bos=False)
