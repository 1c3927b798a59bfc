"""Tiny random decoders of the transformers library."""

import json

from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.weights.packing import plan
from helpers import reference
from helpers.reference import transformers

SIZES = {
    "vocab_size": 131,
    "hidden_size": 40,
    "intermediate_size": 57,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
# The config of a vision tower, which fastllm leaves out.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def architecture(family):
    return f"{family.removesuffix('Text')}ForCausalLM"


def build(family, seed=0, **values):
    """A random model for causal language modelling. values: of its config, beside SIZES."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **values})
    return reference.build(architecture(family), config, seed=seed)


MODULES = (
    "cohere",
    "gemma",
    "granite",
    "helium",
    "llama",
    "mistral",
    "moe",
    "olmo",
    "phi",
    "qwen",
    "smollm3",
    "stablelm",
)

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0],
    "original_max_position_embeddings": 64,
}


def rope(kind, **values):
    """The part of a config that says how positions rotate."""
    return {"rope_parameters": {"rope_theta": 10000.0, **kind, **values}}


CASES = {
    "llama": ("Llama", {}),
    "llama tied biases head_dim": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 14, "hidden_act": "gelu"},
    ),
    "llama one kv head": ("Llama", {"num_key_value_heads": 1, "hidden_act": "relu"}),
    "llama linear": ("Llama", rope({"rope_type": "linear", "factor": 3.0})),
    "llama dynamic": ("Llama", rope({"rope_type": "dynamic", "factor": 4.0})),
    "llama llama3": ("Llama", rope(LLAMA3, rope_theta=500000.0)),
    "llama yarn": ("Llama", rope(YARN)),
    "llama yarn mscale": ("Llama", rope(YARN, mscale=0.7, mscale_all_dim=0.4, beta_fast=20, beta_slow=2)),
    "llama yarn attention_factor": ("Llama", rope(YARN, attention_factor=1.3, truncate=False)),
    "mistral": ("Mistral", {"sliding_window": 37}),
    "mistral no window": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "mixtral window": ("Mixtral", {"num_local_experts": 4, "sliding_window": 50}),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1}),
    "qwen2 layer_types": ("Qwen2", {"use_sliding_window": True, "sliding_window": 37, "layer_types": SLIDING}),
    "qwen3": ("Qwen3", {"head_dim": 14, "attention_bias": True}),
    "qwen3 window": (
        "Qwen3",
        {"head_dim": 12, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
    ),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "moe_intermediate_size": 33, "shared_expert_intermediate_size": 21}),
    "qwen2_moe mixed": (
        "Qwen2Moe",
        {
            **EXPERTS,
            "moe_intermediate_size": 33,
            "shared_expert_intermediate_size": 57,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 37,
            "max_window_layers": 2,
        },
    ),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 33, "norm_topk_prob": True, "head_dim": 12}),
    "qwen3_moe mixed": ("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 33, "decoder_sparse_step": 2}),
    "qwen3_moe window": (
        "Qwen3Moe",
        {**EXPERTS, "moe_intermediate_size": 33, "use_sliding_window": True, "sliding_window": 37},
    ),
    "gemma": ("Gemma", {"head_dim": 14}),
    "gemma2": ("Gemma2", {"head_dim": 12, "sliding_window": 37, "query_pre_attn_scalar": 20}),
    "gemma2 no caps": (
        "Gemma2",
        {"head_dim": 12, "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    ),
    "gemma2 low caps": ("Gemma2", {"head_dim": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 12, "sliding_window": 37, "query_pre_attn_scalar": 9, "layer_types": SLIDING},
    ),
    "gemma3 linear": (
        "Gemma3Text",
        {
            "head_dim": 12,
            "sliding_window": 37,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": ("Phi3", {}),
    "phi3 window": ("Phi3", {"sliding_window": 37}),
    "phi3 partial tied": ("Phi3", {**rope({}, partial_rotary_factor=0.6), "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {}),
    "olmo2 bias": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "olmoe": ("Olmoe", EXPERTS),
    "olmoe renormalized": ("Olmoe", {**EXPERTS, "norm_topk_prob": True, "attention_bias": True}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 2.5,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.7,
            "logits_scaling": 0.6,
            "attention_bias": True,
        },
    ),
    "stablelm": ("StableLm", {"hidden_size": 64}),
    "stablelm parallel": ("StableLm", {"use_parallel_residual": True, **rope({}, partial_rotary_factor=0.6)}),
    "stablelm norms biases": (
        "StableLm",
        {"qk_layernorm": True, "use_qkv_bias": True, **rope({}, partial_rotary_factor=0.4)},
    ),
    "cohere": ("Cohere", {"logit_scale": 1.1}),
    "cohere norms biases": ("Cohere", {"logit_scale": 1.5, "use_qk_norm": True, "attention_bias": True}),
    "cohere untied": ("Cohere", {"logit_scale": 0.9, "tie_word_embeddings": False}),
    "cohere2": ("Cohere2", {"logit_scale": 1.1, "sliding_window": 37, "num_hidden_layers": 5}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3 window": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 37, "attention_bias": True},
    ),
    "helium": ("Helium", {"head_dim": 10}),
}


class Recorder(dict):
    """A dict of tensors that records which of them were read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.asked = set()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)


def plan_of(folder):
    """The recipe of a folder. Asserts that its names and shapes fit the config and that it uses every tensor."""
    checkpoint = open_checkpoint(folder)
    tensors = Recorder(checkpoint.tensors)
    made = recipe(checkpoint._replace(tensors=tensors))
    plan(made, "f32")
    lengths = {name: (n, required) for name, n, required in made.config.vectors()}
    assert all(len(memoryview(v).cast("B")) == 4 * lengths[name][0] for name, v in made.vectors.items())
    assert all(name in made.vectors for name, (_, required) in lengths.items() if required)
    assert tensors.asked == set(tensors)
    return made


def edit(folder, name="config.json", **values):
    """Changes values of a folder's JSON file; None removes the key."""
    old = json.loads((folder / name).read_text())
    new = {key: value for key, value in {**old, **values}.items() if value is not None}
    (folder / name).write_text(json.dumps(new))


def same_recipe(a, b):
    """Asserts equal configs, names of matrices, and vectors."""
    assert a.config == b.config
    assert a.matrices.keys() == b.matrices.keys()
    assert {k: bytes(v) for k, v in a.vectors.items()} == {k: bytes(v) for k, v in b.vectors.items()}
