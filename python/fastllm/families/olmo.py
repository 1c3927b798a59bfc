"""OLMo 2 (OLMo Team, 2024), Olmo2ForCausalLM: norms after each branch, over all queries, and over all keys.

https://arxiv.org/abs/2501.00656
"""

from __future__ import annotations

from fastllm.families._decoder import attention, decoder, feed_forward, qk_norm, settings
from fastllm.families.llama import LLAMA
from fastllm.families.source import Recipe, Source

_AFTER = {"post_attn_norm": "post_attention_layernorm", "post_ffn_norm": "post_feedforward_layernorm"}


def olmo2(source: Source) -> Recipe:
    """Olmo2ForCausalLM."""
    source.defaults = {**LLAMA, "rms_norm_eps": 1e-5}
    config = settings(source, qk_norm="row")
    return decoder(source, config, attention, qk_norm, feed_forward, norms=_AFTER, bos=False)
