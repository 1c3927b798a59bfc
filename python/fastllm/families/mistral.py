"""Mistral 7B and what followed (Jiang et al., 2023): Llama with a sliding window in all layers."""

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
    """Mistral (Jiang et al., 2023): a sliding window in all layers."""
    source.defaults = MISTRAL
    source.refuse("layer_types")
    return decoder(source, settings(source, windows=same_window(source, 4096)), attention, feed_forward)
