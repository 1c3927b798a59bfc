"""The .safetensors format.

    length of the header u64, little-endian
    header   JSON: {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
    data     of the tensors, row-major; offsets count from its beginning

https://github.com/huggingface/safetensors#format. The files that fastllm itself writes have this format as well, and
weights/store.py reads them.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats._arrays import as_f32
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import with_config_beside
from fastllm.tensors import Bytes, Tensor, mapped

_MOST_HEADER = 100 << 20  # the format's own limit
_MOST_TENSORS, _MOST_AXES = 1 << 17, 16
_OURS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# Types that are read as f32 -> their names in tensors.Raw.
_KINDS = {
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0",
}


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens a file, with the config.json beside it. Raises CheckpointError."""
    return with_config_beside(path, "Hugging Face safetensors", tensors(path, data))


def tensors(path: Path, data: memoryview) -> dict[str, Tensor]:
    """The tensors of a mapped file by name. Raises CheckpointError for a header that does not fit the file.

    Types that fastllm lacks are read as f32. An unknown type raises CheckpointError when the tensor is read.
    """
    header, body = _header(path, data)
    found: dict[str, Tensor] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path} is broken: its header does not say where tensor {name!r} lies") from None
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)) or len(shape) > _MOST_AXES:
            raise CheckpointError(f"{path} is broken: tensor {name!r} has an impossible shape or place")
        if not begin <= end:
            raise CheckpointError(f"{path} is broken: tensor {name!r} ends before it begins")
        if end > len(body):
            raise CheckpointError(f"{path} is truncated: tensor {name!r} ends past the end of the file")
        places.append((begin, end, name))
        found[name] = _tensor(path, name, str(dtype), shape, body[begin:end])
    places.sort()
    for (_, end, name), (begin, _, other) in pairwise(places):
        if begin < end:
            raise CheckpointError(f"{path} is broken: tensors {name!r} and {other!r} overlap")
    return found


def _header(path: Path, data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The header, and the data after it."""
    if len(data) < 8:
        raise CheckpointError(f"{path} is no safetensors file: it has {len(data)} bytes")
    (length,) = struct.unpack_from("<Q", data)
    if length > _MOST_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: its header would take {length:,} bytes")
    if length > len(data) - 8:
        raise CheckpointError(f"{path} is truncated: its header takes {length:,} bytes, the file has {len(data):,}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is broken: its header is not JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is broken: its header is not a JSON object")
    if len(header) > _MOST_TENSORS:
        raise CheckpointError(f"{path} is no model: it holds {len(header):,} tensors")
    return header, data[8 + length :]


def _tensor(path: Path, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    if dtype in _OURS:
        tensor = mapped(_OURS[dtype], shape, data)
        size = tensor.nbytes
    elif dtype in _KINDS:
        tensor = as_f32(_KINDS[dtype], shape, data)
        size = prod(shape) * tensor.raw.size if tensor.raw else 0
    else:

        def unknown(begin: int, end: int) -> Bytes:
            raise CheckpointError(f"{path} holds tensor {name!r} as {dtype!r}, a type that fastllm cannot read")

        return Tensor("f32", shape, unknown)
    if size != len(data):
        raise CheckpointError(
            f"{path} is broken: tensor {name!r} of {dtype} {shape} takes {size:,} bytes, not {len(data):,}"
        )
    return tensor
