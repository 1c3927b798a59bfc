"""Mistral 7B and its successors (Jiang et al., 2023), MistralForCausalLM: Llama with a sliding window in all layers.

https://arxiv.org/abs/2310.06825
"""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, feed_forward, same_window, settings
from fastllm.families.llama import LLAMA
from fastllm.families.source import Recipe, Source

MISTRAL: dict[str, object] = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


def mistral(source: Source) -> Recipe:
    """MistralForCausalLM."""
    source.defaults = MISTRAL
    source.refuse("layer_types")
    return decoder(source, settings(source, windows=same_window(source, 4096)), attention, feed_forward)
