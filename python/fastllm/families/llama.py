"""Llama 1 to 3.3 (Touvron et al., 2023; Grattafiori et al., 2024), LlamaForCausalLM, and models that share the class.

https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783. Meta's own files
are in meta_llama.py.
"""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, feed_forward, settings
from fastllm.families.source import Recipe, Source

# The defaults of transformers' class, which configs may leave out. Each family has those of its own class.
LLAMA: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def llama(source: Source) -> Recipe:
    """LlamaForCausalLM."""
    source.defaults = LLAMA
    return decoder(source, settings(source), attention, feed_forward)
