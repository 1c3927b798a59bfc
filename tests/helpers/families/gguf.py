"""GGUF files of tiny random models, written with the gguf package, whose tables give the tensors' names.

The changes that llama.cpp's converter makes to tensors besides their names are made here.
"""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

from helpers.reference import build  # noqa: E402

WIDE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def interleaved(array, heads):
    """Reorders the rows of each head from rotary pairs (i, i + half) to pairs (2i, 2i + 1)."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def merged(state):
    """A state_dict as numpy arrays, with the experts of a layer, and the norms of its heads, stacked into one array."""
    out, groups = {}, {}
    for name, tensor in state.items():
        array = tensor.float().numpy()
        for mark in (".experts.", "_layernorm.norms."):
            if mark in name:
                before, rest = name.split(mark)
                number, rest = rest.split(".", 1)
                key = f"{before}{mark.removesuffix('.')}.{rest}" if "experts" in mark else f"{before}_layernorm.{rest}"
                groups.setdefault(key, {})[int(number)] = array
                break
        else:
            out[name] = array
    return out | {key: np.stack([parts[i] for i in range(len(parts))]) for key, parts in groups.items()}


def changed(arch, name, array, config):
    """A tensor as llama.cpp's converter writes it for an architecture: rows reordered, transposed, one added."""
    heads = config.num_attention_heads
    if arch in ("llama", "granite", "smollm3") and ("q_proj" in name or "k_proj" in name):
        array = interleaved(array, heads if "q_proj" in name else config.num_key_value_heads)
    elif arch in ("gemma", "gemma2", "gemma3", "gemma-embedding") and "norm" in name:
        array = array + 1
    elif arch == "gpt2" and any(f"{part}.weight" in name for part in ("c_attn", "c_proj", "c_fc")):
        array = array.T
    elif arch == "gptneox" and "query_key_value" in name:
        array = array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    elif "shared_expert_gate" in name:
        array = array.reshape(-1)
    return array


def write(path, arch, model, tensors=None, **more):
    """Writes a model as a GGUF file.

    arch: llama.cpp's name of the architecture. more: its settings besides those that all architectures have.
    tensors: more tensors, by their names in the file.
    """
    model.save_pretrained(path.parent / "hf")
    state = merged(load_file(path.parent / "hf" / "model.safetensors"))
    c = model.config
    writer = gguf.GGUFWriter(path, arch)
    by_name = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], c.num_hidden_layers)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(getattr(c, "intermediate_size", None) or 4 * c.hidden_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(getattr(c, "num_key_value_heads", c.num_attention_heads))
    for key, value in more.items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}
        add[type(value)](f"{arch}.{key.replace('__', '.')}", value)
    for name, array in state.items():
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if ours is None and "pooler" in name:
            continue
        assert ours is not None, name
        writer.add_tensor(ours, np.ascontiguousarray(changed(arch, name, array, c), np.float32))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    for length in ("short", "long"):
        if (factors := (getattr(c, "rope_parameters", None) or {}).get(f"{length}_factor")) is not None:
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(factors, np.float32))
    if (getattr(c, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        theta = c.rope_parameters["rope_theta"]
        plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


RMS = {"attention__layer_norm_rms_epsilon": 1e-6}
LAYER = {"attention__layer_norm_epsilon": 1e-5}
FACTORS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.5]}

# Name -> llama.cpp's architecture, transformers' class, its config beyond PLAIN, the file's settings.
MODELS = {
    "llama": ("llama", "Llama", {"rms_norm_eps": 1e-6}, {**RMS, "rope__dimension_count": 12}),
    "llama_bias": ("llama", "Llama", {"rms_norm_eps": 1e-6, "attention_bias": True}, RMS),
    "llama31": ("llama", "Llama", {"rms_norm_eps": 1e-6, "rope_parameters": LLAMA3}, {**RMS, "rope__freq_base": 5e5}),
    "mixtral": (
        "llama",
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6, "sliding_window": None},
        {**RMS, "expert_count": 5, "expert_used_count": 2, "rope__freq_base": 1e6},
    ),
    "qwen2": (
        "qwen2",
        "Qwen2",
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {**RMS, "rope__freq_base": 1e6},
    ),
    "qwen2_yarn": (
        "qwen2",
        "Qwen2",
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {
            **RMS,
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
        },
    ),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2Moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        {
            **RMS,
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 40,
        },
    ),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}, {**RMS, "attention__key_length": 16}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
        {
            **RMS,
            "attention__key_length": 16,
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
        },
    ),
    "gemma": ("gemma", "Gemma", {"head_dim": 16, "tie_word_embeddings": True}, {**RMS, "attention__key_length": 16}),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 30, "tie_word_embeddings": True},
        {
            **RMS,
            "attention__key_length": 16,
            "attention__sliding_window": 30,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 30,
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
        },
        {**RMS, "attention__key_length": 16, "attention__sliding_window": 30, "rope__freq_base": 1e6},
    ),
    "phi3": (
        "phi3",
        "Phi3",
        {"rms_norm_eps": 1e-6, "sliding_window": 40, "pad_token_id": None},
        {**RMS, "attention__sliding_window": 40},
    ),
    "phi3_long": (
        "phi3",
        "Phi3",
        {
            "rms_norm_eps": 1e-6,
            "pad_token_id": None,
            "original_max_position_embeddings": 64,
            "rope_parameters": {**LONG, **FACTORS, "partial_rotary_factor": 0.5},
        },
        {
            **RMS,
            "rope__dimension_count": 6,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__attn_factor": float(np.sqrt(1 + np.log(4) / np.log(64))),
        },
    ),
    "olmo2": ("olmo2", "Olmo2", {"rms_norm_eps": 1e-6}, RMS),
    "olmoe": (
        "olmoe",
        "Olmoe",
        {"num_experts": 5, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6},
        {**RMS, "expert_count": 5, "expert_used_count": 2},
    ),
    "granite": (
        "granite",
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.3, "logits_scaling": 4.0},
        {**RMS, "embedding_scale": 3.0, "attention__scale": 0.4, "residual_scale": 0.3, "logit_scale": 4.0},
    ),
    "stablelm": (
        "stablelm",
        "StableLm",
        {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
        {**LAYER, "rope__dimension_count": 6},
    ),
    "stablelm_12b": (
        "stablelm",
        "StableLm",
        {"partial_rotary_factor": 0.5, "qk_layernorm": True, "use_parallel_residual": True},
        {**LAYER, "rope__dimension_count": 6},
    ),
    "cohere": (
        "command-r",
        "Cohere",
        {"logit_scale": 0.25, "use_qk_norm": True, "tie_word_embeddings": True},
        {**LAYER, "logit_scale": 0.25, "rope__freq_base": 5e5},
    ),
    "cohere2": (
        "cohere2",
        "Cohere2",
        {"logit_scale": 0.25, "sliding_window": 30, "tie_word_embeddings": True},
        {**LAYER, "logit_scale": 0.25, "attention__sliding_window": 30},
    ),
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 5, "pad_token_id": None}, {**RMS, "rope__freq_base": 2e6}),
    "gpt2": ("gpt2", "GPT2", {"activation_function": "gelu_new"}, LAYER),
    "gptneox": (
        "gptneox",
        "GPTNeoX",
        {"rotary_pct": 0.5, "use_parallel_residual": True},
        {**LAYER, "rope__dimension_count": 6, "use_parallel_residual": True},
    ),
}


def model_of(name, seed=0):
    arch, there, more, _ = MODELS[name]
    sizes = PLAIN | more
    if arch == "gpt2":
        sizes = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, **more}
    class_name = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}.get(there, f"{there}ForCausalLM")
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(there, f"{there}Config")
    return build(class_name, getattr(transformers, config_name)(**sizes), seed=seed)
