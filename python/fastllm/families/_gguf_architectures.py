"""llama.cpp's architectures: the class of the transformers library that each is, and what only it has.

https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py lists their names and tensors. A new one
takes a line in _ARCHITECTURES and its name in the table of architectures.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastllm.families.source import Source
from fastllm.tensors import Tensor, columns, floats, joined_rows, part, reshaped, transposed

Header = dict[str, object]


class Architecture(NamedTuple):
    """One of llama.cpp's architectures in the terms of the transformers library.

    name: the class. header(meta): its keys beside those that all architectures share, by Hugging Face's names; meta is
    the file with the metadata of the architecture. names: modules with other names than in gguf.py. interleaved:
    whether the converter reordered rows for rotary pairs (2i, 2i + 1). turn(name, tensor, meta): undoes other changes
    of the converter to a tensor of that name in the file.
    """

    name: str
    header: Callable[[Source], Header] = lambda _: {}
    names: dict[str, str] = {}  # noqa: RUF012  # never changed
    interleaved: bool = False
    turn: Callable[[str, Tensor, Source], Tensor] = lambda _, tensor, __: tensor


def head_dim(meta: Source) -> int:
    """Channels of a head."""
    heads = meta.integer("attention.head_count")
    return meta.integer("attention.key_length", meta.integer("embedding_length") // max(heads, 1))


def _whole(meta: Source) -> Header:
    """For classes whose whole heads rotate. Raises CheckpointError where they do not."""
    meta.refuse("rope.dimension_count", head_dim(meta))
    return {}


def _partial(meta: Source) -> Header:
    """For classes where a part of each head may rotate."""
    width = head_dim(meta)
    return {"partial_rotary_factor": meta.integer("rope.dimension_count", width) / max(width, 1)}


def _mixtral(meta: Source) -> Header:
    return _whole(meta) | {"num_local_experts": meta.integer("expert_count")}


def _gemma2(meta: Source) -> Header:
    return {"query_pre_attn_scalar": _query_scalar(meta, 46)}


def _gemma3(meta: Source) -> Header:
    return {
        "query_pre_attn_scalar": _query_scalar(meta, 62),
        "rope_theta": meta.number("rope.freq_base", 1000000.0),
        "rope_local_base_freq": meta.number("rope.freq_base_swa", 10000.0),
    }


def _gemma_embedding(meta: Source) -> Header:
    return _gemma3(meta) | {"is_causal": None, "use_bidirectional_attention": True}


def _query_scalar(meta: Source, layers: int) -> int:
    """query_pre_attn_scalar, which files lack: head_dim, but dim / heads in the models of 27B, which have `layers`."""
    if meta.integer("block_count") == layers:
        return meta.integer("embedding_length") // max(meta.integer("attention.head_count"), 1)
    return head_dim(meta)


def _phi3(meta: Source) -> Header:
    header = {**_partial(meta), "original_max_position_embeddings": meta.get("rope.scaling.original_context_length")}
    if "rope_factors_long.weight" not in meta.tensors:
        return header
    factors = {}
    for length in ("short", "long"):
        table = meta.tensor(f"rope_factors_{length}.weight")
        if table.shape != (meta.integer("rope.dimension_count", head_dim(meta)) // 2,) or table.width > 2048:
            raise meta.error(f"has rope_factors_{length}.weight of {table.shape}, not one for each pair that rotates")
        factors[f"{length}_factor"] = floats(table).reshape(-1).tolist()
    scaling = {
        **factors,
        "rope_type": "longrope",
        "original_max_position_embeddings": meta.integer("rope.scaling.original_context_length"),
        "attention_factor": meta.get("rope.scaling.attn_factor"),
    }
    return header | {"rope_scaling": scaling}


def _granite(meta: Source) -> Header:
    return _whole(meta) | {
        "embedding_multiplier": meta.number("embedding_scale", 1.0),
        "attention_multiplier": meta.number("attention.scale", max(head_dim(meta), 1) ** -0.5),
        "residual_multiplier": meta.number("residual_scale", 1.0),
        "logits_scaling": meta.number("logit_scale", 1.0),
    }


def _stablelm(meta: Source) -> Header:
    return _partial(meta) | {
        "qk_layernorm": "blk.0.attn_q_norm.weight" in meta.tensors,
        "use_qkv_bias": "blk.0.attn_q.bias" in meta.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in meta.tensors,
    }


def _cohere(meta: Source) -> Header:
    return {"use_qk_norm": "blk.0.attn_q_norm.weight" in meta.tensors}


def _gpt2(meta: Source) -> Header:
    return {
        "n_embd": meta.integer("embedding_length"),
        "n_inner": meta.integer("feed_forward_length"),
        "n_head": meta.integer("attention.head_count"),
        "n_layer": meta.integer("block_count"),
        "n_positions": meta.integer("context_length"),
        "layer_norm_epsilon": meta.number("attention.layer_norm_epsilon"),
    }


def _gptneox(meta: Source) -> Header:
    theta = meta.number("rope.freq_base", 10000.0)
    return {"rotary_pct": _partial(meta)["partial_rotary_factor"], "rotary_emb_base": theta}


def _less_one(name: str, tensor: Tensor, _: Source) -> Tensor:
    """Gemma's norms, to which the converter added 1."""
    if not name.endswith("norm.weight"):
        return tensor
    return Tensor("f32", tensor.shape, lambda begin, end: floats(tensor, begin, end) - 1)


def _turned(name: str, tensor: Tensor, _: Source) -> Tensor:
    """GPT-2's matrices, which the converter transposed; the class has them as (inputs, outputs), unless quantized."""
    turned = name.startswith("blk.") and len(tensor.shape) == 2 and not tensor.stored
    return transposed(tensor) if turned else tensor


def _by_head(name: str, tensor: Tensor, meta: Source) -> Tensor:
    """GPT-NeoX's queries, keys and values: rows (3, heads, head_dim) become (heads, 3, head_dim)."""
    if ".attn_qkv." not in name:
        return tensor
    heads, width = meta.integer("attention.head_count"), head_dim(meta)
    if tensor.shape[0] != 3 * heads * width:
        raise meta.error(f"has {name} of {tensor.shape}, which are not 3 x {heads} heads of {width}")
    starts = [width * (heads * n + head) for head in range(heads) for n in range(3)]
    cut = part if len(tensor.shape) == 2 else columns
    return joined_rows([cut(tensor, start, start + width) for start in starts])


def _one_row(name: str, tensor: Tensor, _: Source) -> Tensor:
    """The gate of Qwen2-MoE's shared expert, a vector in the file, as a matrix of one row."""
    return reshaped(tensor, (1, tensor.width)) if name.endswith("ffn_gate_inp_shexp.weight") else tensor


_GEMMA = {"ffn_norm": "pre_feedforward_layernorm"}
_STABLELM = {"attn_q_norm": "self_attn.q_layernorm.norms.{}", "attn_k_norm": "self_attn.k_layernorm.norms.{}"}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "blk": "transformer.h",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPTNEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "blk": "gpt_neox.layers",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk": "encoder.layer",
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
# By general.architecture in the file, and those that `architecture` tells apart from one of these.
_ARCHITECTURES = {
    "bert": Architecture("BertModel", names=_BERT),
    "cohere2": Architecture("Cohere2ForCausalLM"),
    "command-r": Architecture("CohereForCausalLM", _cohere),
    "gemma": Architecture("GemmaForCausalLM", turn=_less_one),
    "gemma-embedding": Architecture("Gemma3ForCausalLM", _gemma_embedding, _GEMMA, turn=_less_one),
    "gemma2": Architecture("Gemma2ForCausalLM", _gemma2, _GEMMA, turn=_less_one),
    "gemma3": Architecture("Gemma3ForCausalLM", _gemma3, _GEMMA, turn=_less_one),
    "gpt2": Architecture("GPT2LMHeadModel", _gpt2, _GPT2, turn=_turned),
    "gptneox": Architecture("GPTNeoXForCausalLM", _gptneox, _GPTNEOX, turn=_by_head),
    "granite": Architecture("GraniteForCausalLM", _granite, interleaved=True),
    "llama": Architecture("LlamaForCausalLM", _whole, interleaved=True),
    "mixtral": Architecture("MixtralForCausalLM", _mixtral, interleaved=True),
    "olmo2": Architecture("Olmo2ForCausalLM", _whole),
    "olmoe": Architecture("OlmoeForCausalLM", _whole),
    "phi3": Architecture("Phi3ForCausalLM", _phi3, {"ffn_up": "mlp.gate_up_proj"}),
    "qwen2": Architecture("Qwen2ForCausalLM", _whole),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", _whole, turn=_one_row),
    "qwen3": Architecture("Qwen3ForCausalLM", _whole),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", lambda meta: _whole(meta) | {"norm_topk_prob": True}),
    "smollm3": Architecture("SmolLM3ForCausalLM", _whole, interleaved=True),
    "stablelm": Architecture("StableLmForCausalLM", _stablelm, _STABLELM),
}


def architecture(name: str, meta: Source) -> Architecture:
    """The architecture of that name in general.architecture. Two such names stand for two classes each."""
    if name == "llama" and meta.integer("expert_count", 0):
        name = "mixtral"
    if name == "gemma3" and "dense.0.weight" in meta.tensors:  # EmbeddingGemma, as Ollama names it
        name = "gemma-embedding"
    return _ARCHITECTURES[name]
