"""llama2.c's .bin checkpoints, versions 0, 1 and 2. Tensors follow each other without gaps.

    version 0   fields, 7 int32; vocab_size is negative if the head is a matrix of its own
                f32: tok_embeddings; attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, each for all layers;
                norm; tables of rotations (max_seq_len, head size / 2) of cosines and of sines, not needed; [output]
    version 1   magic "ak42" u32, version i32, fields, shared u8: 1 if the head is the embedding; zeros to byte 256
                f32: attention_norm, ffn_norm, each for all layers; norm; tok_embeddings; wq, wk, wv, wo, w1, w2, w3,
                each for all layers; [output]
    version 2   as version 1, with group_size i32 after shared; norms are f32, each matrix is
                int8 values, then an f32 scale for each group_size consecutive ones

https://github.com/karpathy/llama2.c/blob/master/export.py
"""

import struct
from math import prod
from pathlib import Path

from fastllm import _core
from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.tensors import Bytes, Reader, Tensor

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = 256
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
# Larger than in any real model: a file with a larger field is not of this format.
_MOST = (1 << 17, 1 << 20, 1024, 4096, 4096, 1 << 24, 1 << 24)


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens a checkpoint. Raises CheckpointError for a file of another format, and for a truncated one."""
    if len(data) < 28:
        raise CheckpointError(f"{path} is no model: {len(data)} bytes are less than any checkpoint's header")
    magic, version = struct.unpack_from("<Ii", data)
    if magic != MAGIC:
        return _read_v0(path, data)
    if version not in (1, 2):
        raise CheckpointError(f"{path} is a llama2.c checkpoint of version {version}; 0, 1 and 2 are known")
    if len(data) < HEADER_BYTES:
        raise CheckpointError(f"{path} is truncated: its header takes {HEADER_BYTES} bytes, the file has {len(data)}")
    header = _header(path, struct.unpack_from("<7i", data, 8))
    shared, group = struct.unpack_from("<Bi", data, 36)
    if shared > 1:
        raise CheckpointError(f"{path} is broken: its shared-head flag is {shared}, not 0 or 1")
    if version == 2 and not 0 < group <= header["dim"] * header["vocab_size"]:
        raise CheckpointError(f"{path} is broken: its quantization groups are of {group} values")
    reader = Reader(path, data, HEADER_BYTES)
    tensors = _norms(reader, header)
    order = ["tok_embeddings", *_LAYER_MATRICES]
    if not shared:
        order.append("output")
    for name in order:
        _take(reader, header, name, tensors, group if version == 2 else 0)
    extra = {"shared_head": bool(shared)} | ({"group_size": group} if version == 2 else {})
    return Checkpoint(path, f"llama2.c v{version}", "meta.llama", header | extra, tensors)


def _read_v0(path: Path, data: memoryview) -> Checkpoint:
    values = list(struct.unpack_from("<7i", data))
    shared = values[5] > 0
    values[5] = abs(values[5])
    header = _header(path, tuple(values))
    reader = Reader(path, data, 28)
    tensors: dict[str, Tensor] = {}
    _take(reader, header, "tok_embeddings", tensors)
    n, dim = header["n_layers"], header["dim"]
    for name in ("attention_norm", *_ATTENTION, "ffn_norm", *_FFN):
        if name.endswith("norm"):
            for i in range(n):
                key = f"layers.{i}.{name}.weight"
                tensors[key] = reader.tensor("f32", (dim,), key)
        else:
            _take(reader, header, name, tensors)
    tensors["norm.weight"] = reader.tensor("f32", (dim,), "norm.weight")
    reader.take(header["max_seq_len"] * (dim // header["n_heads"]) * 4, "the table of rotations")
    if not shared:
        _take(reader, header, "output", tensors)
    if reader.offset != len(data):  # there is no magic number: only the size tells the format
        raise CheckpointError(
            f"{path} is no model that fastllm knows: as a llama2.c checkpoint it would end at byte {reader.offset:,}, "
            f"not {len(data):,}"
        )
    return Checkpoint(path, "llama2.c v0", "meta.llama", header | {"shared_head": shared}, tensors)


def _header(path: Path, values: tuple[int, ...]) -> dict[str, int]:
    header = dict(zip(_FIELDS, values, strict=True))
    for (name, value), most in zip(header.items(), _MOST, strict=True):
        if not 0 < value <= most:
            raise CheckpointError(
                f"{path} is no model that fastllm knows: as a llama2.c checkpoint it would have {name} {value}"
            )
    heads, kv_heads = header["n_heads"], header["n_kv_heads"]
    if header["dim"] % heads or header["dim"] // heads % 2:
        raise CheckpointError(f"{path} is broken: dim {header['dim']} is not n_heads {heads} times an even number")
    if heads % kv_heads:
        raise CheckpointError(f"{path} is broken: n_heads {heads} is not a multiple of n_kv_heads {kv_heads}")
    return header


_ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
_FFN = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_LAYER_MATRICES = (*_ATTENTION, *_FFN)


def _shape(header: dict[str, int], name: str) -> tuple[int, int]:
    dim, hidden, vocab = header["dim"], header["hidden_dim"], header["vocab_size"]
    kv_dim = dim // header["n_heads"] * header["n_kv_heads"]
    return {
        "attention.wk": (kv_dim, dim),
        "attention.wv": (kv_dim, dim),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
        "tok_embeddings": (vocab, dim),
        "output": (vocab, dim),
    }.get(name, (dim, dim))


def _norms(reader: Reader, header: dict[str, int]) -> dict[str, Tensor]:
    keys = [f"layers.{i}.{norm}.weight" for norm in ("attention_norm", "ffn_norm") for i in range(header["n_layers"])]
    return {key: reader.tensor("f32", (header["dim"],), key) for key in [*keys, "norm.weight"]}


def _take(reader: Reader, header: dict[str, int], name: str, tensors: dict[str, Tensor], group: int = 0) -> None:
    """Reads a matrix, or if layers have it that of every layer, into `tensors`. group > 0: int8 values, then scales."""
    shape = _shape(header, name)
    keys = [f"{name}.weight"]
    if name in _LAYER_MATRICES:
        keys = [f"layers.{i}.{name}.weight" for i in range(header["n_layers"])]
    for key in keys:
        if not group:
            tensors[key] = reader.tensor("f32", shape, key)
            continue
        count = prod(shape)
        if count % group:
            raise CheckpointError(
                f"{reader.path} is broken: {key} has {count:,} values, not a multiple of its groups of {group}"
            )
        values = reader.take(count, key)
        tensors[key] = _scaled(shape, values, reader.take(count // group * 4, f"{key}'s scales"), group)


def _scaled(shape: tuple[int, int], values: memoryview, scales: memoryview, group: int) -> Tensor:
    """A matrix of int8 values with an f32 scale for each `group` of the flattened matrix, read as f32."""
    width = shape[1]

    def read(begin: int, end: int) -> Bytes:
        out = memoryview(bytearray((end - begin) * width * 4)).cast("f")
        _core.dequantize_int8(values, scales, group, begin * width, out)
        return out

    return Tensor("f32", shape, read, stored="int8")
