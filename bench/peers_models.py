"""What the peers are measured on: random Llamas of real shapes, as a Hugging Face folder that every converter reads.

A weight is an int8 times the scale of its group of 32. Scales have four significant bits, and every group has a 127 or
-127. So f16 holds the weights exactly, and any format that rounds groups of 32 to int8 by their largest value (Q8_0,
fastllm's q8) gets the same integers and scales: all these formats hold the same numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GROUP = 32
VERSION = 2  # of the folders' content; a folder of another version is written again


class Shape(NamedTuple):
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool  # the head is the embedding
    prompt: int  # length of the timed prompt
    tokens: int  # new tokens that are timed

    @property
    def matrices(self) -> list[tuple[str, int, int]]:
        """The matrices of a layer: name in Hugging Face's files, rows, columns."""
        kv = self.dim // self.heads * self.kv_heads
        return [
            ("self_attn.q_proj", self.dim, self.dim),
            ("self_attn.k_proj", kv, self.dim),
            ("self_attn.v_proj", kv, self.dim),
            ("self_attn.o_proj", self.dim, self.dim),
            ("mlp.gate_proj", self.hidden, self.dim),
            ("mlp.up_proj", self.hidden, self.dim),
            ("mlp.down_proj", self.dim, self.hidden),
        ]

    @property
    def layer_weights(self) -> int:
        """The number of weights by which every token of a prompt is multiplied."""
        return self.layers * sum(d * n for _, d, n in self.matrices)

    @property
    def weights(self) -> int:
        """The number of weights by which a new token is multiplied: the layers' and the head's."""
        return self.layer_weights + self.vocab * self.dim


SHAPES = {
    "1.1B": Shape(2048, 5632, 22, 32, 4, 32000, 2048, tied=False, prompt=512, tokens=16),
    "110M": Shape(768, 2048, 12, 12, 12, 32000, 1024, tied=True, prompt=512, tokens=64),
    "stories15M": Shape(288, 768, 6, 6, 6, 32000, 1024, tied=True, prompt=128, tokens=256),
    "SmolLM2-135M": Shape(576, 1536, 30, 9, 3, 49152, 8192, tied=True, prompt=512, tokens=64),  # of a real GGUF
}


def write_folder(folder: Path, shape: Shape) -> None:
    """Writes config.json, model.safetensors in f16, and a tokenizer in which every token is a word of its own."""
    done = folder / "written"
    if done.exists() and done.read_text() == f"{VERSION} {shape}":
        return
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    _write_config(folder, shape)
    _write_tokenizer(folder, shape.vocab)
    _write_weights(folder / "model.safetensors", shape)
    done.write_text(f"{VERSION} {shape}")


def _write_config(folder: Path, shape: Shape) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def _write_tokenizer(folder: Path, vocab: int) -> None:
    special = ["<unk>", "<s>", "</s>"]
    words = {word: i for i, word in enumerate(special)} | {f"w{i}": i for i in range(len(special), vocab)}
    added = [
        {"id": i, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, word in enumerate(special)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **names})
    )


def _names(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (shape.vocab, shape.dim)
    for i in range(shape.layers):
        for name, d, n in shape.matrices:
            yield f"model.layers.{i}.{name}.weight", (d, n)
        yield f"model.layers.{i}.input_layernorm.weight", (shape.dim,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (shape.dim,)
    yield "model.norm.weight", (shape.dim,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, shape.dim)


def _write_weights(path: Path, shape: Shape) -> None:
    rng = np.random.default_rng(1234)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in _names(shape):
        begin, end = end, end + 2 * int(np.prod(dims))
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in _names(shape):
            if len(dims) == 1:
                values = (1 + 0.1 * rng.standard_normal(dims)).astype(np.float16)
            else:
                values = _matrix(rng, *dims)
                if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                    values[:3] *= np.float16(0.125)  # special tokens are never likeliest: no text ends early
            file.write(values.tobytes())


def _matrix(rng: np.random.Generator, d: int, n: int) -> NDArray[np.float16]:
    q = rng.integers(-127, 128, (d, n // GROUP, GROUP), np.int8)
    q[..., 0] = np.where(q[..., 0] < 0, -127, 127)
    scale = rng.integers(8, 16, (d, n // GROUP, 1), np.int8).astype(np.float32) * np.float32(2.0**-16)
    return (q * scale).astype(np.float16).reshape(d, n)


def read_tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Name and values of every tensor in a folder that write_folder wrote."""
    data = np.memmap(path, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + length].tobytes())
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            yield name, data[begin:end].view(np.float16).reshape(entry["shape"])


def interleaved(rows: NDArray[np.float16], heads: int) -> NDArray[np.float16]:
    """Rows of queries or keys in the order of llama2.c and GGUF: the two rows of a rotary pair are neighbours."""
    d, n = rows.shape
    return rows.reshape(heads, 2, d // heads // 2, n).swapaxes(1, 2).reshape(d, n)
