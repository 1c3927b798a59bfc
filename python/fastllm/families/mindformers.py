"""Llama as MindSpore's mindformers saves it: Meta's names with the rows and the rotation of transformers' class.

https://gitee.com/mindspore/mindformers. So it is translated to that class's names and config.
"""

from __future__ import annotations

import re

from fastllm.families._translation import translated
from fastllm.families.source import Recipe, Source

_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "model.tok_embeddings.embedding_weight": "model.embed_tokens.weight",
    "model.norm_out.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
# dim and hidden_dim of the released Llama 1 and 2, whose heads have 128 channels; they are read without a config.
_LLAMA_2 = {(4096, 11008), (5120, 13824), (6656, 17920), (8192, 22016), (8192, 28672)}


def mindformers(source: Source) -> Recipe:
    """The config is model.model_config of mindformers' yaml. The state of an optimizer in the file is ignored."""
    if not source.header:
        source.header = _llama_2(source)
    source.refuse("qkv_concat", False)
    dim, heads = source.integer("hidden_size"), source.integer("num_heads")
    length = source.integer("seq_length", 2048)
    header = {
        "hidden_size": dim,
        "intermediate_size": _hidden_dim(source, dim),
        "num_hidden_layers": source.integer("num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.integer("n_kv_heads", heads),
        "vocab_size": source.integer("vocab_size"),
        "max_position_embeddings": max(length, source.integer("max_position_embedding", length)),
        "rms_norm_eps": source.number("rms_norm_eps", 1e-5),
        "tie_word_embeddings": source.flag("tie_word_embeddings", False),
        "bos_token_id": source.integer("bos_token_id", 1),
        "eos_token_id": source.get("eos_token_id", 2),
        **_rope(source),
    }
    origins = {ours: theirs for theirs in source.tensors if (ours := _name(theirs))}
    tensors = {ours: source.tensors.file[theirs] for ours, theirs in origins.items()}
    header["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in tensors
    header["attention_out_bias"] = "model.layers.0.self_attn.o_proj.bias" in tensors
    header["mlp_bias"] = "model.layers.0.mlp.up_proj.bias" in tensors
    return translated(source, "LlamaForCausalLM", header, tensors, origins)


def _name(theirs: str) -> str | None:
    """Hugging Face's name of a tensor; None if it is not part of the model."""
    place = re.fullmatch(r"(model\.layers\.\d+\.)(.+)(\.weight|\.bias)", theirs)
    if place and place[2] in _NAMES:
        return f"{place[1]}{_NAMES[place[2]]}{place[3]}"
    return _NAMES.get(theirs)


def _hidden_dim(source: Source, dim: int) -> int:
    """The width of the feed-forward: intermediate_size, or 8/3 dim times a factor, rounded up to a multiple."""
    if source.get("intermediate_size") is not None:
        return source.integer("intermediate_size")
    hidden = 4 * dim
    if source.get("ffn_dim_multiplier") is not None:
        hidden = int(min(source.number("ffn_dim_multiplier") + 0.01, 100) * hidden)
    hidden, multiple = int(2 * hidden / 3), source.integer("multiple_of", 256)
    if multiple < 1:
        raise source.error(f"has multiple_of {multiple}")
    return (hidden + multiple - 1) // multiple * multiple


def _rope(source: Source) -> dict[str, object]:
    """Hugging Face's keys of the rotation. scaling_factor is a number, or for LLAMA3 a section of four."""
    theta, method, factor = source.number("theta", 10000.0), source.text("extend_method", "None"), "scaling_factor"
    if method == "None":
        return {"rope_theta": theta}
    if method == "NTK":
        return {"rope_theta": theta * source.number(factor, 1.0)}
    if method == "PI":
        return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": source.number(factor, 1.0)}}
    values = source.get(factor)
    if method != "LLAMA3" or not isinstance(values, dict):
        raise source.error(
            f"has extend_method {method!r} with scaling_factor {values!r}, which fastllm does not support"
        )
    return {"rope_theta": theta, "rope_scaling": {**values, "rope_type": "llama3"}}


def _llama_2(source: Source) -> dict[str, object]:
    """A config by the tensors' shapes. Raises CheckpointError unless they are a released Llama 1 or 2's."""
    shape = source.tensor("model.tok_embeddings.embedding_weight").shape
    hidden = source.tensor("model.layers.0.feed_forward.w1.weight").shape[0]
    if shape[0] != 32000 or (shape[-1], hidden) not in _LLAMA_2:
        raise source.error("has no mindformers .yaml beside it, whose model.model_config says what the model is")
    norms = [name for name in source.tensors if re.fullmatch(r"model\.layers\.\d+\.attention_norm\.weight", name)]
    return {
        "hidden_size": shape[-1],
        "intermediate_size": hidden,
        "num_layers": len(norms),
        "num_heads": shape[-1] // 128,
        "n_kv_heads": source.tensor("model.layers.0.attention.wk.weight").shape[0] // 128,
        "vocab_size": 32000,
        "seq_length": 4096,
    }
