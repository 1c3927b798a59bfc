"""Llama 1 to 3.3 (Touvron et al., 2023; Grattafiori et al., 2024) and what shares its class."""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, feed_forward, settings
from fastllm.families.source import Recipe, Source

# What configs leave out where it is the default of transformers' class; so in each family.
LLAMA: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def llama(source: Source) -> Recipe:
    """Llama (Touvron et al., 2023), with biases where the config has them."""
    source.defaults = LLAMA
    return decoder(source, settings(source), attention, feed_forward)
