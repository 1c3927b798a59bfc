"""Granite 3 (Granite Team, 2024), GraniteForCausalLM: Llama with factors of embeddings, attention, residuals, logits.

https://github.com/ibm-granite/granite-3.0-language-models
"""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, feed_forward, positive, settings
from fastllm.families.llama import LLAMA
from fastllm.families.source import Recipe, Source


def granite(source: Source) -> Recipe:
    """GraniteForCausalLM."""
    source.defaults = LLAMA
    config = settings(
        source,
        embed_scale=source.number("embedding_multiplier", 1.0),
        attn_scale=source.number("attention_multiplier", 1.0),
        residual_scale=source.number("residual_multiplier", 1.0),
        logit_scale=1 / positive(source, "logits_scaling", 1.0),
    )
    return decoder(source, config, attention, feed_forward, bos=False)
