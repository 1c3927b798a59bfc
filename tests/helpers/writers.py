"""Random models, as files and as the core's models; files are written from their descriptions without the package."""

import json
import re
import struct

import numpy as np
import safetensors.numpy

from fastllm import _core
from fastllm.config import Config

ATTENTION = ("attn.wq", "attn.wk", "attn.wv", "attn.wo")
FFN = ("ffn.w1", "ffn.w2", "ffn.w3")


def config(dim, hidden_dim, n_heads, n_kv_heads, vocab_size, *, n_layers=2, max_seq=256, rotary_dim=None, **more):
    head_dim = more.pop("head_dim", dim // n_heads)
    return Config(
        **{
            "dim": dim,
            "hidden_dim": hidden_dim,
            "head_dim": head_dim,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "vocab_size": vocab_size,
            "max_seq": max_seq,
            "rotary_dim": head_dim if rotary_dim is None else rotary_dim,
            "norm_eps": 1e-5,
            "attn_scale": head_dim**-0.5,
            **more,
        }
    )


SMALL = config(40, 57, 4, 2, 300, max_seq=160)
LLAMA = ("head", "attn_norm", "ffn_norm", "final_norm")


def random_weights(cfg, seed=0, *, tied=False, optional=LLAMA):
    """Random f32 weights by canonical name. Rows of wq and wk are in llama2.c's order: rotary pairs are (2i, 2i + 1).

    optional: the tensors to make among those that not every model has, by their names within a layer; "bias" means
    every bias.
    """
    rng = np.random.default_rng(seed)

    def wanted(name, required):
        short = re.sub(r"layers\.\d+\.", "", name)
        return required or short in optional or (short.endswith(".bias") and "bias" in optional)

    weights = {}
    for name, shape, required in cfg.matrices():
        if wanted(name, required) and not (name == "head" and tied):
            # Large enough that attention prefers some positions and that logits differ between tokens.
            weights[name] = (1.5 * rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    for name, n, required in cfg.vectors():
        if wanted(name, required) and not name.startswith("rope."):
            middle = 0 if name.endswith(".bias") else 1
            weights[name] = (middle + 0.2 * rng.standard_normal(n)).astype(np.float32)
    return {k: w for k, w in weights.items() if not k.endswith(".bias") or k.removesuffix(".bias") in weights}


# ---- llama2.c's files, as its export.py writes them ------------------------------------------------------------------


def _each(cfg, *parts):
    return [f"layers.{i}.{part}" for part in parts for i in range(cfg.n_layers)]


def _dims(cfg):
    heads = (cfg.n_layers, cfg.n_heads, cfg.n_kv_heads)
    return [cfg.dim, cfg.hidden_dim, *heads, cfg.vocab_size, cfg.max_seq]


def v0(cfg, weights):
    dims, tail = _dims(cfg), ["head"] if "head" in weights else []
    dims[5] *= -1 if tail else 1
    norms_and_layers = _each(cfg, "attn_norm", *ATTENTION, "ffn_norm", *FFN)
    parts = [weights[name].tobytes() for name in ["embed", *norms_and_layers, "final_norm"]]
    rotations = bytes(cfg.max_seq * cfg.head_dim * 4)
    return b"".join([struct.pack("<7i", *dims), *parts, rotations, *(weights[n].tobytes() for n in tail)])


def _header(cfg, weights, version, group):
    fields = struct.pack("<Ii7iBi", 0x616B3432, version, *_dims(cfg), int("head" not in weights), group)
    norms = [*_each(cfg, "attn_norm", "ffn_norm"), "final_norm"]
    return fields.ljust(256, b"\0") + b"".join(weights[name].tobytes() for name in norms)


def _matrices(cfg, weights):
    tail = ["head"] if "head" in weights else []
    return [weights[name] for name in ["embed", *_each(cfg, *ATTENTION, *FFN), *tail]]


def v1(cfg, weights):
    matrices = [w.tobytes() for w in _matrices(cfg, weights)]
    return _header(cfg, weights, 1, 0) + b"".join(matrices)


def q80(w, group):
    """llama2.c's Q8_0: int8 values (d, n), and an f32 scale for each `group` consecutive weights."""
    runs = w.reshape(-1, group)
    scales = (np.abs(runs).max(axis=1) / np.float32(127)).astype(np.float32)
    steps = np.where(scales > 0, scales, 1)[:, None]
    return np.round(runs / steps).astype(np.int8).reshape(w.shape), scales


def v2(cfg, weights, group):
    parts = [part.tobytes() for w in _matrices(cfg, weights) for part in q80(w, group)]
    return _header(cfg, weights, 2, group) + b"".join(parts)


def tokenizer_bin(words):
    """llama2.c's tokenizer.bin of pairs (text, score)."""
    blobs = [(text.encode(), score) for text, score in words]
    parts = [struct.pack("<fi", score, len(blob)) + blob for blob, score in blobs]
    return struct.pack("<i", max(len(blob) for blob, _ in blobs)) + b"".join(parts)


def tokenizer_words(size=300):
    """Pairs (text, score) in the order of SentencePiece: special tokens, bytes, merges, characters, fillers."""
    merges = [" t", "he", " a", "in", " the", "on", "er", "an", "\u00e9t", " o", "nce", "ce", "ing"]
    characters = " tehainorgsdlcupm.,!?\u00e9\u00e7\u4e16\U0001f600"
    words = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    words += [*merges, *characters]
    words += [f"filler{i}" for i in range(size - len(words))]
    return [(word, -float(max(0, i - 259))) for i, word in enumerate(words[:size])]


# ---- models of the core ----------------------------------------------------------------------------------------------


def half_split(heads, head_dim, rotary_dim):
    """For each row of the core's wq or wk, its row in llama2.c's order: pairs (2i, 2i + 1) become (i, i + half)."""
    order = [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2), *range(rotary_dim, head_dim)]
    return (np.arange(heads)[:, None] * head_dim + order).astype(np.int32).ravel()


def pack(dtype, w, rows=None):
    d, n = w.shape
    if dtype != "q4m":
        return _core.pack(dtype, d, n, "f32", w.tobytes(), rows=rows)
    blocks = q4_1(np.pad(w, ((0, 0), (0, -n % 32)), "edge"))
    wide = _core.pack(dtype, d, n + -n % 32, "Q4_1", blocks.tobytes(), rows=rows)
    return _core.Matrix(dtype, d, n, wide.data)


def q4_1(w):
    """GGUF's blocks of type Q4_1: f16 scale and minimum, then 16 bytes of 32 codes."""
    groups = w.reshape(-1, 32)
    low = groups.min(axis=1)
    scales = ((groups.max(axis=1) - low) / 15).astype("<f2")
    steps = np.where(scales > 0, scales, 1).astype(np.float32)
    codes = np.clip(np.round((groups - low[:, None]) / steps[:, None]), 0, 15).astype(np.uint8)
    halves = np.stack([scales, low.astype("<f2")], axis=1).view(np.uint8)
    return np.concatenate([halves, codes[:, :16] | codes[:, 16:] << 4], axis=1)


def rows(matrix):
    """All rows of a packed matrix as f32 (d, n)."""
    out = np.empty(matrix.shape, np.float32)
    for r in range(len(out)):
        matrix.row(r, out[r])
    return out


def core_model(cfg, weights, dtype, *, kv_dtype="f32", isa=None):
    """A core model that is not paced: it uses all threads that a test asks for, on any machine."""
    return _core.Model(cfg, core_tensors(cfg, weights, dtype), kv_dtype=kv_dtype, isa=isa, paced=False)


def logits_after(model, tokens, count=1):
    """The bytes of the logits of the last `count` tokens, of a sequence of its own."""
    sequence, rows = _core.KVCache(model).sequence(), model.logits(count)
    model.forward([(sequence, tokens, count)], rows)
    return bytes(rows)


def core_tensors(cfg, weights, dtype):
    """Packs weights of random_weights for the core, with the rows of rotary pairs half a head apart."""
    rows = {
        "wq": half_split(cfg.n_heads, cfg.head_dim, cfg.rotary_dim),
        "wk": half_split(cfg.n_kv_heads, cfg.head_dim, cfg.rotary_dim),
    }
    turned = {"q_norm": "wq", "k_norm": "wk", "wq.bias": "wq", "wk.bias": "wk"}
    tensors = {}
    for name, w in weights.items():
        short = name.partition(".attn.")[2]
        if w.ndim == 1:
            tensors[name] = _core.Vector((w[rows[turned[short]]] if short in turned else w).tobytes())
        elif w.ndim == 2:
            exact = name.endswith((".router", "ffn.gate")) or name == "positions"
            tensors[name] = pack("f32" if exact else dtype, w, rows.get(short))
        else:
            count, d, n = w.shape
            data = b"".join(bytes(pack(dtype, one).data) for one in w)
            buffer = _core.Buffer(len(data))
            memoryview(buffer)[:] = data
            tensors[name] = _core.Matrix(dtype, d, n, buffer, count=count)
    for name in ("rope.freqs", "rope.freqs_local"):
        tensors[name] = _core.Vector(rope_freqs(cfg, name).astype(np.float32).tobytes())
    return tensors


def rope_freqs(cfg, name="rope.freqs"):
    """The angle in radians by which each rotary pair turns per position. rope.freqs_local has larger ones."""
    theta = {"rope.freqs": 10000.0, "rope.freqs_local": 100.0}[name]
    r = max(cfg.rotary_dim, 2)
    return theta ** (-np.arange(0, r, 2) / r)


def read_logits(model, buffer, rows, vocab_size):
    return np.frombuffer(buffer, np.float32).reshape(-1, model.logits_stride)[:rows, :vocab_size]


def append(model, sequence, tokens, vocab_size, *, chunk=None, threads=1):
    """Appends tokens to a sequence, `chunk` at a time, and returns the logits after each: (tokens, vocabulary)."""
    rows = []
    for at in range(0, len(tokens), chunk or len(tokens)):
        part = tokens[at : at + (chunk or len(tokens))]
        buffer = model.logits(len(part))
        model.forward([(sequence, part, len(part))], buffer, threads=threads)
        rows.append(read_logits(model, buffer, len(part), vocab_size))
    return np.concatenate(rows)


def logits(model, tokens, vocab_size, *, chunk=None, threads=1):
    """The logits after each token of a new sequence: (tokens, vocabulary)."""
    sequence = _core.KVCache(model).sequence()
    return append(model, sequence, tokens, vocab_size, chunk=chunk, threads=threads)


# ---- Hugging Face's folders ------------------------------------------------------------------------------------------

# Canonical name, without the layer -> transformers' name.
HF_NAMES = {
    "attn_norm": "input_layernorm", "attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj",
    "attn.wv": "self_attn.v_proj", "attn.wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj", "ffn.w2": "mlp.down_proj", "ffn.w3": "mlp.up_proj",
    "embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
}  # fmt: skip


def write_folder(folder, cfg, weights):
    """Writes weights as transformers saves a Llama: rotary pairs are half a head apart."""
    tensors = {}
    for name, w in weights.items():
        start, _, rest = name.partition(".")
        number, _, short = rest.partition(".")
        theirs = f"model.layers.{number}.{HF_NAMES[short]}" if start == "layers" else HF_NAMES[name]
        heads = {"attn.wq": cfg.n_heads, "attn.wk": cfg.n_kv_heads}.get(short)
        tensors[f"{theirs}.weight"] = w[half_split(heads, cfg.head_dim, cfg.head_dim)] if heads else w
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": cfg.dim,
        "intermediate_size": cfg.hidden_dim, "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "vocab_size": cfg.vocab_size, "rms_norm_eps": 1e-5,
        "max_position_embeddings": cfg.max_seq, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": "head" not in weights,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
