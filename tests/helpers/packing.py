"""Small checkpoints for tests of the packed cache, and what loading one gives."""

import json
import struct

import numpy as np

import fastllm
from helpers import writers
from helpers.vocabularies import byte_level, gguf_bytes, gpt2_split

TEXT = "Once upon a time"


def config(vocab_size):
    return writers.config(40, 57, 4, 2, vocab_size, max_seq=64)


def library(**options):
    return byte_level(gpt2_split(), vocab_size=400, **options)


def folder(path, *, seed=0):
    """A folder as transformers saves a Llama: config.json, weights, tokenizer.json and its settings."""
    tokenizer = library()
    cfg = config(tokenizer.get_vocab_size() + 2)  # two rows more, for tokens that a test adds
    writers.write_folder(path, cfg, writers.random_weights(cfg, seed))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return path


def llama2c(path, *, seed=0):
    """llama2.c's file, with its tokenizer beside it."""
    cfg = config(300)
    path.write_bytes(writers.v0(cfg, writers.random_weights(cfg, seed)))
    (path.parent / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    return path


_NAMES = {
    "attn_norm": "attn_norm", "attn.wq": "attn_q", "attn.wk": "attn_k", "attn.wv": "attn_v", "attn.wo": "attn_output",
    "ffn_norm": "ffn_norm", "ffn.w1": "ffn_gate", "ffn.w2": "ffn_down", "ffn.w3": "ffn_up",
    "embed": "token_embd", "final_norm": "output_norm", "head": "output",
}  # fmt: skip


def gguf(path, *, seed=0):
    """A Llama in GGUF, with a vocabulary of byte-level BPE inside. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""
    tokenizer = library()
    cfg = config(tokenizer.get_vocab_size())
    values = {
        "general.architecture": "llama",
        "llama.context_length": cfg.max_seq,
        "llama.embedding_length": cfg.dim,
        "llama.block_count": cfg.n_layers,
        "llama.feed_forward_length": cfg.hidden_dim,
        "llama.attention.head_count": cfg.n_heads,
        "llama.attention.head_count_kv": cfg.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    values |= json.loads(gguf_bytes(tokenizer, "gpt-2"))
    tensors = {}
    for name, w in writers.random_weights(cfg, seed).items():
        start, _, rest = name.partition(".")
        number, _, short = rest.partition(".")
        tensors[f"blk.{number}.{_NAMES[short]}.weight" if start == "layers" else f"{_NAMES[name]}.weight"] = w
    path.write_bytes(_gguf(values, tensors))
    return path


def _string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value):
    """The number of a metadata value's type, and its bytes."""
    if isinstance(value, str):
        return 8, _string(value)
    if isinstance(value, list):
        kind = _value(value[0])[0] if value else 8
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(_value(one)[1] for one in value)
    return (6, struct.pack("<f", value)) if isinstance(value, float) else (5, struct.pack("<i", value))


def _gguf(values, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, value in values.items():
        kind, data = _value(value)
        out += _string(key) + struct.pack("<I", kind) + data
    body = b""
    for name, w in tensors.items():
        out += _string(name) + struct.pack(f"<I{w.ndim}QIQ", w.ndim, *w.shape[::-1], 0, len(body))
        data = np.ascontiguousarray(w, "<f4").tobytes()
        body += data + bytes(-len(data) % 32)
    return out + bytes(-len(out) % 32) + body


KINDS = {"folder": folder, "gguf": gguf, "llama2c": llama2c}


def given(path, **options):
    """What a user meets of a model: its texts and logits, to the bit, and all that its files say beside them."""
    with fastllm.load(path, threads=1, **options) as llm:
        words = llm._tokenizer
        known = not isinstance(words, fastllm.TokenizerError)
        ids = llm.tokenize(TEXT) if known else [1, 2, 3]
        return {
            "ids": ids,
            "logits": llm.logits(ids).tobytes(),
            "text": llm.generate(TEXT if known else ids, max_tokens=8, seed=0),
            "dtypes": llm.dtypes,
            "config": llm.config,
            "ends": (llm.bos, llm.stop, llm.chat_stop),
            "defaults": llm.defaults,
            "template": words.chat_template if known else str(words),
            "tokens": (words.special, words.added, words.roles, words.prefix) if known else None,
        }
