"""Small random models of every kind of transformer that a Config can describe. No size is a multiple of a tile's."""

from pathlib import Path
from typing import NamedTuple

from fastllm.config import Config
from fastllm.errors import TokenizerError
from fastllm.llm import LLM
from fastllm.weights.store import Stored
from helpers import writers

PRE = ("attn_norm", "ffn_norm", "final_norm")
POST = ("post_attn_norm", "post_ffn_norm")


class Architecture(NamedTuple):
    config: Config
    optional: tuple[str, ...]  # see writers.random_weights
    tied: bool = False


def _config(*, hidden_dim=57, **more):
    return writers.config(40, hidden_dim, 4, 2, 61, **more)


MOE = {"n_experts": 5, "n_experts_used": 2, "expert_dim": 37}

ARCHITECTURES = {
    "gpt2": Architecture(
        _config(norm="layer", act="gelu_tanh", gated=False, positions=256, rotary_dim=0), (*PRE, "bias"), tied=True
    ),
    "gpt_neo": Architecture(
        _config(
            norm="layer", act="gelu_tanh", gated=False, positions=300, rotary_dim=0, attn_scale=1.0, windows=(0, 50)
        ),
        (*PRE, "bias", "head"),
    ),
    "neox": Architecture(
        _config(norm="layer", act="gelu_erf", gated=False, parallel=True, rotary_dim=4), (*PRE, "bias", "head")
    ),
    "qwen": Architecture(_config(qk_norm="head", head_dim=14), (*PRE, "attn.wq.bias", "attn.wk.bias", "attn.wv.bias")),
    "gemma": Architecture(
        _config(
            act="gelu_tanh",
            qk_norm="head",
            embed_scale=6.3,
            attn_softcap=5.0,
            logit_softcap=3.0,
            windows=(20, 0, 70),
            ropes=(2, 1, 2),
            n_layers=3,
        ),
        (*PRE, *POST),
        tied=True,
    ),
    "embedding_gemma": Architecture(
        _config(act="gelu_tanh", qk_norm="head", causal=False, head=False, windows=(7, 0, 70), n_layers=3),
        (*PRE, *POST),
    ),
    "olmo2": Architecture(_config(qk_norm="row"), (*POST, "final_norm", "head")),
    "cohere": Architecture(
        _config(norm="layer", qk_norm="head", parallel=True, logit_scale=0.25, windows=(33, 0), ropes=(1, 0)),
        ("attn_norm", "final_norm"),
        tied=True,
    ),
    "granite": Architecture(_config(residual_scale=0.22, embed_scale=12.0, logit_scale=0.125, attn_scale=0.1), PRE),
    "longrope": Architecture(_config(rope_scale=1.19, rotary_dim=8), (*PRE, "head")),
    "opt": Architecture(_config(norm="layer", act="relu", gated=False), (*PRE, "bias")),
    "clip": Architecture(
        _config(norm="layer", act="quick_gelu", gated=False, positions=256, rotary_dim=0, head=False), (*PRE, "bias")
    ),
    "bert": Architecture(
        _config(
            norm="layer",
            act="gelu_erf",
            gated=False,
            causal=False,
            norm_after=True,
            positions=256,
            rotary_dim=0,
        ),
        ("attn_norm", "ffn_norm", "embed_norm", "head.dense", "head.norm", "bias"),
        tied=True,
    ),
    "esm": Architecture(
        _config(norm="layer", act="gelu_erf", gated=False, causal=False, mask_token=3),
        (*PRE, "embed_norm", "head.dense", "head.norm", "bias"),
    ),
    "amplify": Architecture(_config(causal=False), (*PRE, "embed_norm", "head", "head.bias")),
    "grok": Architecture(
        _config(
            **MOE,
            hidden_dim=0,
            act="gelu_tanh",
            attn_softcap=7.0,
            embed_scale=6.3,
            logit_scale=0.57,
            pad_token=5,
        ),
        (*PRE, *POST),
        tied=True,
    ),
    "mixtral": Architecture(_config(**MOE, hidden_dim=0, moe_renormalize=True, moe=(1, 1)), (*PRE, "head")),
    "qwen_moe": Architecture(
        _config(**MOE, moe_renormalize=True, moe=(0, 1, 1), n_layers=3),
        (*PRE, "head", "ffn.w1", "ffn.w3", "ffn.w2", "ffn.gate"),
    ),
    "many_experts": Architecture(
        _config(n_experts=300, n_experts_used=3, expert_dim=17, hidden_dim=0, gated=False), (*PRE, "head")
    ),
}


def random_llm(name, dtype, *, threads=1):
    """An LLM with random weights of ARCHITECTURES[name]. It has no tokenizer: its texts are token ids."""
    config, optional, tied = ARCHITECTURES[name]
    tensors = writers.core_tensors(config, writers.random_weights(config, 3, tied=tied, optional=optional), dtype)
    stored = Stored(config, tensors, bos=1, stop=(), chat_stop=())
    return LLM(stored, TokenizerError("none"), threads=threads, context=None, path=Path(name))
