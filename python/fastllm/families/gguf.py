"""GGUF files: llama.cpp's names of settings and tensors become those of Hugging Face, whose families then read them.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md lists the names. llama.cpp's converter (convert_hf_to_gguf.py)
changes some tensors as well, which is undone: it reorders rows of queries and keys where llama.cpp rotates pairs
(2i, 2i + 1) (_rotated), adds 1 to Gemma's norms, transposes GPT-2's matrices, and sorts GPT-NeoX's queries, keys and
values (_gguf_architectures.py, with all that only one architecture has).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastllm.families._gguf_architectures import Header, architecture, head_dim
from fastllm.families._translation import translated
from fastllm.families.source import Recipe, Source, Weight, half_split
from fastllm.formats import Checkpoint
from fastllm.heads import Embedding, Layer
from fastllm.tensors import Tensor, at, floats

# Hugging Face's keys -> llama.cpp's, after the architecture's name.
_HEADER = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "clip_qkv": "attention.clamp_kqv",
    "use_parallel_residual": "use_parallel_residual",
}
# transformers' options of sampling -> llama.cpp's, after "general.sampling.".
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
# enum llama_pooling_type of llama.h.
_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
_UNPOOLED, _RANK = 0, 4
# sentence-transformers' dense layers after pooling, as llama.cpp and as Ollama name them.
_DENSE = ("dense_2.weight", "dense_3.weight"), ("dense.0.weight", "dense.1.weight")
_MOST_PARTS = 1 << 16  # experts or heads in one tensor
_NEEDED = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length")
# llama.cpp's names of modules -> Hugging Face's in Llama and its relatives; {} is the index of an expert.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


def gguf(source: Source) -> Recipe:
    """Any family of a GGUF file, by translation to the names of its class in transformers."""
    name = source.architecture.removeprefix("gguf:")
    meta = Source(Checkpoint(source.path, "", source.architecture, _settings(source, name), source.tensors))
    kind = architecture(name, meta)
    for key in _NEEDED:
        meta.integer(key)
    meta.number("attention.layer_norm_rms_epsilon", meta.get("attention.layer_norm_epsilon"))
    header = {ours: meta.get(key) for ours, key in _HEADER.items() if meta.get(key) is not None}
    header |= _common(source, meta)
    header |= kind.header(meta)
    tensors: dict[str, Tensor] = {}
    origins: dict[str, str] = {}  # our name -> the file's
    for theirs, tensor in source.tensors.file.items():
        turned = kind.turn(theirs, tensor, meta)
        named = dict(_named(theirs, turned, _NAMES | kind.names))
        tensors |= named
        origins |= dict.fromkeys(named, theirs)
    found = translated(source, kind.name, header, tensors, origins)
    found = _rotated(source, found, interleaved=kind.interleaved)
    return _with_embedding(source, found, meta.integer("pooling_type", _UNPOOLED))


def _settings(source: Source, name: str) -> Header:
    """The metadata under the architecture's name, without it. Lists of a value for each layer become that value.

    Raises CheckpointError where layers differ.
    """
    values = {}
    for key, value in source.header.items():
        if not key.startswith(f"{name}."):
            continue
        if isinstance(value, list) and any(v != value[0] for v in value):
            raise source.error(f"has a {key} that differs between layers, which fastllm does not support")
        values[key.removeprefix(f"{name}.")] = value[0] if isinstance(value, list) and value else value
    return values


def _common(source: Source, meta: Source) -> Header:
    """What takes more than a new name: keys that tensors tell, tokens, the rotation."""
    header: Header = {
        "vocab_size": source.tensor("token_embd.weight").shape[0],
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "attention_bias": any(f"blk.0.{name}.bias" in source.tensors for name in ("attn_q", "attn_qkv")),
        "attention_out_bias": "blk.0.attn_output.bias" in source.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in source.tensors,
        "head_dim": head_dim(meta),
        "num_key_value_heads": meta.integer("attention.head_count_kv", meta.integer("attention.head_count")),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "generation_config": {ours: source.get(f"general.sampling.{key}") for ours, key in _SAMPLING.items()},
    }
    ends = [source.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    header["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    if source.flag("tokenizer.ggml.add_bos_token", True):
        header["bos_token_id"] = source.get("tokenizer.ggml.bos_token_id")
    if not meta.flag("attention.causal", True):
        header["is_causal"] = False
    scaling = meta.text("rope.scaling.type", "linear")
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 0.0))  # scale_linear: files of 2023
    if scaling in ("linear", "yarn") and factor:
        header["rope_scaling"] = {
            "rope_type": scaling,
            "factor": factor,
            "original_max_position_embeddings": meta.get("rope.scaling.original_context_length"),
        }
    elif scaling not in ("none", "linear", "yarn", "longrope"):
        raise source.error(f"has the rotary scaling {scaling!r}, which fastllm does not support")
    return header


def _named(theirs: str, tensor: Tensor, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """A tensor under Hugging Face's name, or its parts (experts, heads) under theirs; nothing if it has none."""
    place = re.fullmatch(r"(?:(blk)\.(\d+)\.)?(\w+?)(?:\.(\d+))?\.(weight|bias)", theirs)
    if not place:
        return
    block, layer, name, expert, kind = place.groups()
    ours = names.get(f"{name}_exps" if expert else name)  # old files have a tensor for each expert
    if ours is None:
        return
    if block:
        ours = f"{names['blk']}.{layer}.{ours}"
    if "{}" not in ours:
        yield f"{ours}.{kind}", tensor
    elif expert:
        yield f"{ours.format(expert)}.{kind}", tensor
    elif len(tensor.shape) > 1:
        for i in range(min(tensor.shape[0], _MOST_PARTS)):
            yield f"{ours.format(i)}.{kind}", at(tensor, i)


def _rotated(source: Source, found: Recipe, *, interleaved: bool) -> Recipe:
    """The recipe with rotations as in the file.

    interleaved: whether queries and keys have pairs (2i, 2i + 1), whose rows half_split reorders. rope_freqs.weight: by
    which frequencies are divided (Llama 3.1's scaling).
    """
    import numpy

    matrices, vectors, config = dict(found.matrices), dict(found.vectors), found.config
    for i in range(config.n_layers) if interleaved else ():
        for name, heads in (("wq", config.n_heads), ("wk", config.n_kv_heads)):
            ours, n = f"layers.{i}.attn.{name}", heads * config.head_dim
            tensor = matrices[ours].tensor
            bias = numpy.frombuffer(vectors.get(f"{ours}.bias", bytes(4 * n)), numpy.float32)
            if tensor.rows != n or len(bias) != n:
                raise source.error(f"has {tensor.rows} rows and {len(bias)} biases in {ours}, not {n}")
            rows = half_split(heads, config.head_dim)
            matrices[ours] = Weight(tensor, rows)
            if f"{ours}.bias" in vectors:
                vectors[f"{ours}.bias"] = bias[numpy.asarray(rows)].tobytes()
    if "rope_freqs.weight" in source.tensors and "rope.freqs" in vectors:
        factors = floats(source.tensors["rope_freqs.weight"]).reshape(-1)
        freqs = numpy.frombuffer(vectors["rope.freqs"], numpy.float32)
        if len(factors) != len(freqs) or not numpy.all(factors > 0):
            raise source.error(f"has rope_freqs.weight of {len(factors)} values, not {len(freqs)} above 0")
        vectors["rope.freqs"] = (freqs / factors).tobytes()
    return found._replace(matrices=matrices, vectors=vectors)


def _with_embedding(source: Source, found: Recipe, pooling: int) -> Recipe:
    """The recipe with the file's embedding. pooling: llama.cpp's number; its layers follow the pooling."""
    if pooling not in (_UNPOOLED, *_POOLINGS):
        what = "a reranker" if pooling == _RANK else "a model"
        refused = f"{source.path} is {what} with pooling_type {pooling}, whose vectors fastllm cannot make"
        return found._replace(embedding=Embedding(refused=refused))
    named = next((names for names in _DENSE if any(name in source.tensors for name in names)), ())
    layers = tuple(Layer(source.tensor(name)) for name in named)
    embedding = Embedding(pooling=(_POOLINGS.get(pooling, "mean"),), steps=("pool", *("dense" for _ in layers)))
    return found._replace(embedding=embedding, dense={**found.dense, **({"embedding": layers} if layers else {})})
