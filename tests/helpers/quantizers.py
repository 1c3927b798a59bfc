"""Quantized matrices as other programs save them, written from the formats' descriptions without the package.

Each quantizer takes a float matrix w [outputs, inputs]. It returns the tensors that are saved, numpy arrays by the last
part of their names, and the float matrix that they stand for.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastllm import CheckpointError
from fastllm.files import map_file
from fastllm.formats import Checkpoint, safetensors
from fastllm.formats.quantized import dequantized
from fastllm.tensors import floats

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs is in each four bits of a word, lowest bits first


def words(values, bits):
    """Packs integers [rows, count] of `bits` bits into uint32 words [rows, words]: a row is one long string of bits."""
    rows = []
    for row in values:
        number = sum(int(v) << bits * i for i, v in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> 32 * i & 0xFFFFFFFF for i in range(count)])
    return np.array(rows, np.uint32)


def levels(w, bits, group_of, groups, symmetric):
    """Rounds w: integers [outputs, inputs], f16 scales [outputs, groups], integer zeros [outputs, groups]."""
    scales, zeros = np.zeros((len(w), groups), np.float16), np.zeros((len(w), groups), np.int64)
    q = np.zeros(w.shape, np.int64)
    top = (1 << bits) - 1
    for g in range(groups):
        part = w[:, group_of == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, g] = (high - low) / top + 1e-4
        zeros[:, g] = (top + 1) // 2 if symmetric else np.clip(np.round(-low / scales[:, g]), 1, top)
        q[:, group_of == g] = np.clip(
            np.round(part / scales[:, g, None].astype(np.float32)) + zeros[:, g, None], 0, top
        )
    return q, scales, zeros


def spread(q, scales, zeros, group_of):
    """The float matrix of levels(): (q - zero) * scale, with each input's group."""
    return scales[:, group_of].astype(np.float32) * (q - zeros[:, group_of]).astype(np.float32)


def groups_of(inputs, size, order=None):
    """The group of each input [inputs], and the number of groups. order: GPTQ's act-order permutes the inputs first."""
    size = inputs if size == -1 else size
    index = np.arange(inputs) // size
    if order is not None:
        index = index[np.argsort(order)]
    return index, -(-inputs // size)


def gptq(w, *, bits=4, group_size=32, desc_act=False, symmetric=False, v2=False, seed=0):
    order = np.random.default_rng(seed).permutation(w.shape[1]) if desc_act else None
    group_of, groups = groups_of(w.shape[1], group_size, order)
    q, scales, zeros = levels(w, bits, group_of, groups, symmetric)
    tensors = {
        "qweight": words(q, bits).T.astype(np.uint32).view(np.int32),
        "qzeros": words(zeros.T - (0 if v2 else 1), bits).view(np.int32),
        "scales": scales.T,
        "g_idx": group_of.astype(np.int32),
    }
    return tensors, spread(q, scales, zeros, group_of)


def awq(w, *, group_size=32):
    group_of, groups = groups_of(w.shape[1], group_size)
    q, scales, zeros = levels(w, 4, group_of, groups, False)

    def packed(values):
        """Packs [rows, outputs], eight outputs in a word, in AWQ's order."""
        return words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), 4).view(np.int32)

    return {"qweight": packed(q.T), "qzeros": packed(zeros.T), "scales": scales.T}, spread(q, scales, zeros, group_of)


def mlx(w, *, bits=4, group_size=32):
    parts = w.reshape(len(w), -1, group_size)
    low = parts.min(-1).astype(np.float16)
    scales = ((parts.max(-1) - low) / ((1 << bits) - 1) + 1e-4).astype(np.float16)
    q = np.round((parts - low[..., None].astype(np.float32)) / scales[..., None].astype(np.float32))
    q = np.clip(q, 0, (1 << bits) - 1).astype(np.int64)
    exact = q * scales[..., None].astype(np.float32) + low[..., None].astype(np.float32)
    return {"weight": words(q.reshape(w.shape), bits), "scales": scales, "biases": low}, exact.reshape(w.shape)


def packed_int(w, *, bits=4, group_size=32, symmetric=True, desc_act=False):
    """The format "pack-quantized" of compressed-tensors."""
    order = np.random.default_rng(1).permutation(w.shape[1]) if desc_act else None
    group_of, groups = groups_of(w.shape[1], group_size, order)
    q, scales, zeros = levels(w, bits, group_of, groups, symmetric)
    tensors = {
        "weight_packed": words(q, bits).view(np.int32),
        "weight_scale": scales,
        "weight_shape": np.array(w.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T).view(np.int32)
    if desc_act:
        tensors["weight_g_idx"] = group_of.astype(np.int32)
    return tensors, spread(q, scales, zeros, group_of)


def int8(w, *, asymmetric=False):
    """The format "int-quantized" of compressed-tensors: int8 with a scale for each row."""
    zeros = np.full((len(w), 1), 3 if asymmetric else 0, np.int8)
    scales = (np.abs(w).max(1, keepdims=True) / 120).astype(np.float32)
    q = np.clip(np.round(w / scales) + zeros, -128, 127).astype(np.int8)
    tensors = {"weight": q, "weight_scale": scales} | ({"weight_zero_point": zeros} if asymmetric else {})
    return tensors, (q.astype(np.float32) - zeros) * scales


W = (np.random.default_rng(0).standard_normal((64, 96)) * 0.1).astype(np.float32)
SMALL = {"head_dim": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def checkpoint(tmp_path, tensors, header=None, base="model.layers.0.mlp.up_proj"):
    """Writes tensors under the name of one matrix, and opens the file."""
    save_file({f"{base}.{k}": np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    found = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    return Checkpoint(tmp_path, "Hugging Face safetensors", "LlamaForCausalLM", header or {}, found)


def matrix(tmp_path, tensors, header=None, base="model.layers.0.mlp.up_proj"):
    """The one dequantized matrix of a checkpoint with these tensors."""
    found = dequantized(checkpoint(tmp_path, tensors, header, base))
    assert [*found.tensors] == [f"{base}.weight"]  # no tensor of the quantized matrix is left over
    tensor = found.tensors[f"{base}.weight"]
    assert tensor.stored
    return tensor


def check(tensor, expected):
    """Asserts a tensor's values, read at once and seven rows at a time: 7 divides no group and no word."""
    assert tensor.shape == expected.shape
    assert np.array_equal(floats(tensor), expected)
    pieces = [floats(tensor, begin, min(begin + 7, tensor.rows)) for begin in range(0, tensor.rows, 7)]
    assert np.array_equal(np.concatenate(pieces), expected)


def llama_folder(tmp_path, change, **config):
    """Writes a tiny Llama after `change` has replaced the dict of its tensors. config: more of its config.json."""
    dim, hidden, vocab = 32, 64, 20
    shapes = {"q_proj": (dim, dim), "k_proj": (16, dim), "v_proj": (16, dim), "o_proj": (dim, dim)}
    tensors = {"model.embed_tokens.weight": (vocab, dim), "lm_head.weight": (vocab, dim), "model.norm.weight": (dim,)}
    layer = "model.layers.0"
    tensors |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {f"{layer}.mlp.{name}.weight": (hidden, dim) for name in ("gate_proj", "up_proj")}
    tensors |= {f"{layer}.mlp.down_proj.weight": (dim, hidden)}
    tensors |= {f"{layer}.{name}.weight": (dim,) for name in ("input_layernorm", "post_attention_layernorm")}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in tensors.items()}
    save_file(change(arrays), tmp_path / "model.safetensors")
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
    }
    settings |= {"max_position_embeddings": 64, **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(settings | config))
    return tmp_path


# ---- whole models


def quantize_all(tensors, scheme, skip=("embed", "lm_head")):
    """Quantizes a model's matrices, except those whose name contains one of `skip`.

    Returns the tensors to save and the float tensors that they stand for, both by name.
    """
    stored, plain = {}, {}
    for name, w in tensors.items():
        if w.ndim == 2 and not any(part in name for part in skip):
            made, plain[name] = scheme(w)
            stored |= {name.removesuffix("weight") + part: np.ascontiguousarray(t) for part, t in made.items()}
        else:
            stored[name] = plain[name] = w
    return stored, plain


def refusal(tmp_path, tensors, header=None):
    """The message of the error that a matrix raises when it is opened or when its values are read."""
    with pytest.raises(CheckpointError) as caught:
        floats(matrix(tmp_path, tensors, header))
    return str(caught.value)
