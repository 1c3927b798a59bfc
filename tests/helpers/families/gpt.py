"""Tiny random models of GPT-2, GPT-Neo and GPT-NeoX."""

from helpers import reference
from helpers.reference import transformers

SIZES = {"vocab_size": 97}

GPT2 = SIZES | {"n_positions": 200, "n_embd": 36, "n_layer": 3, "n_head": 3}
NEO = SIZES | {
    "max_position_embeddings": 200,
    "hidden_size": 36,
    "num_layers": 3,
    "num_heads": 3,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": 7,
}
NEOX = SIZES | {
    "max_position_embeddings": 200,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 57,
}

CASES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2 of its own width": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"n_inner": 57, "activation_function": "relu"}),
    "gpt2 scaled by layer": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt2 not scaled, untied": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2 | {"scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO),
    "gpt_neo of its own width": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        NEO | {"intermediate_size": 57, "activation_function": "gelu", "window_size": 100},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "gpt_neox one after the other": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        NEOX
        | {
            "use_parallel_residual": False,
            "hidden_act": "gelu_fast",
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt_neox tied, no biases": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        NEOX | {"attention_bias": False, "tie_word_embeddings": True},
    ),
}


def built(architecture, config, values, *, seed=0):
    return reference.build(architecture, getattr(transformers, config)(**values), seed=seed)
