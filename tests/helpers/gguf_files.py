"""GGUF files, written by hand from their specification, and Llamas of random blocks in such files."""

import struct

import numpy as np

from fastllm import _core
from helpers import writers
from helpers.blocks import DECODE

# The types of metadata: struct's letter -> the type's number in the GGUF specification.
NUMBERS = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11, "d": 12}
# The numbers of tensors' types (enum ggml_type).
TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ2_XXS": 16, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30, "MXFP4": 39,
}  # fmt: skip


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(of):
    """The bytes of a metadata value: a text, a pair (struct's letter, number), or a list of either, all of one type."""
    if isinstance(of, (str, bytes)):
        return 8, string(of)
    if isinstance(of, list):
        kind = value(of[0])[0] if of else 8
        return 9, struct.pack("<IQ", kind, len(of)) + b"".join(value(v)[1] for v in of)
    letter, number = of
    return NUMBERS[letter], struct.pack("<" + letter, number)


def gguf_bytes(metadata, tensors, *, version=3, alignment=32, n_tensors=None, n_values=None):
    """The bytes of a GGUF file. tensors: name -> (type, shape in the file's order, bytes)."""
    out = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(metadata) if n_values is None else n_values,
    )
    for key, of in metadata.items():
        kind, data = value(of)
        out += string(key) + struct.pack("<I", kind) + data
    body = b""
    for name, (kind, shape, data) in tensors.items():
        out += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPES.get(kind, kind), len(body))
        body += data + bytes(-len(data) % alignment)
    return out + bytes(-len(out) % alignment) + body


# ---- Llamas ----------------------------------------------------------------------------------------------------------

# Bytes of a block where its f16 scale is, its f16 minimum is, and the usual size of a weight beside the scale.
_HALVES = {
    "Q4_0": (0, None, 4.6), "Q4_1": (0, 2, 4.6), "Q5_0": (0, None, 9), "Q5_1": (0, 2, 9), "Q8_0": (0, None, 74),
    "Q4_K": (0, 2, 150), "Q5_K": (0, 2, 300), "Q6_K": (208, None, 1400), "IQ4_NL": (0, None, 66),
    "IQ4_XS": (0, None, 1200),
}  # fmt: skip
# Canonical name, without the layer -> llama.cpp's.
_NAMES = {
    "attn_norm": "attn_norm", "attn.wq": "attn_q", "attn.wk": "attn_k", "attn.wv": "attn_v", "attn.wo": "attn_output",
    "ffn_norm": "ffn_norm", "ffn.w1": "ffn_gate", "ffn.w2": "ffn_down", "ffn.w3": "ffn_up", "router": "ffn_gate_inp",
    "experts.w1": "ffn_gate_exps", "experts.w2": "ffn_down_exps", "experts.w3": "ffn_up_exps", "embed": "token_embd",
    "final_norm": "output_norm", "head": "output",
}  # fmt: skip


def random_blocks(kind, count, rng, size):
    """uint8 (count, bytes of a block): random weights of about that size."""
    blocks = rng.integers(0, 256, (count, _core.block_types()[kind][1]), np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = round(np.log2(size / 6)) + 128 - rng.integers(0, 2, count)
        return blocks
    at, minimum, usual = _HALVES[kind]
    scales = (size / usual * rng.uniform(0.5, 1, count)).astype("<f2")
    blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    if minimum is not None:  # of Q4_1 it is added, of Q4_K subtracted
        middle = {"Q4_1": -7.5, "Q5_1": -15.5, "Q4_K": 7.5, "Q5_K": 15.5}[kind]
        blocks[:, minimum : minimum + 2] = (scales * middle).astype("<f2")[:, None].view(np.uint8)
    return blocks


def llama(cfg, kinds, *, seed=1, tied=False):
    """A random Llama of a config as two GGUF files' bytes, and its weights by canonical name: f32.

    kinds: the types of its matrices, in turn: of blocks, or F16. The second file has the same weights as f32. A config
    with experts is a Mixtral.
    """
    rng = np.random.default_rng(seed)
    experts = ("router", "experts.w1", "experts.w2", "experts.w3") if cfg.n_experts else ()
    weights = writers.random_weights(cfg, seed, tied=tied, optional=(*writers.LLAMA, *experts))
    files, number = ({}, {}), 0
    for name, w in weights.items():
        layer, short = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
        label = f"blk.{layer}.{_NAMES[short]}.weight" if layer else f"{_NAMES[short]}.weight"
        plain = ("F32", w.shape[::-1], w.astype("<f4").tobytes())
        if w.ndim == 1 or short == "router":
            files[0][label] = files[1][label] = plain
            continue
        kind = kinds[number % len(kinds)]
        number += 1
        if kind == "F16":
            weights[name] = w.astype("<f2").astype("<f4")
            files[0][label] = (kind, w.shape[::-1], w.astype("<f2").tobytes())
            files[1][label] = ("F32", w.shape[::-1], weights[name].tobytes())
            continue
        blocks = random_blocks(kind, w.size // _core.block_types()[kind][0], rng, float(w.std()))
        weights[name] = DECODE[kind](blocks).astype("<f4").reshape(w.shape)
        files[0][label] = (kind, w.shape[::-1], blocks.tobytes())
        files[1][label] = ("F32", w.shape[::-1], weights[name].tobytes())
    about = {"embedding_length": cfg.dim, "feed_forward_length": cfg.hidden_dim or cfg.expert_dim}
    about |= {"block_count": cfg.n_layers, "attention.head_count": cfg.n_heads, "context_length": cfg.max_seq}
    about["attention.head_count_kv"] = cfg.n_kv_heads
    if cfg.n_experts:
        about |= {"expert_count": cfg.n_experts, "expert_used_count": cfg.n_experts_used}
    metadata = {"general.architecture": "llama"} | {f"llama.{key}": ("I", value) for key, value in about.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = ("f", cfg.norm_eps)
    return *(gguf_bytes(metadata, tensors) for tensors in files), weights
