"""MindSpore's .ckpt: a protobuf message of named tensors.

    message Checkpoint { repeated Value value = 1; }
    message Value      { string tag = 1; TensorProto tensor = 2; }    a value without a tensor is skipped
    message TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }
    "crc_num" and a CRC-32 of what is before it, big-endian in 10 bytes; optional

A tensor above 512 MiB is written as consecutive values of one tag, each with all dims and a slice of the bytes. If a
tag comes again after its tensor is complete, the last tensor counts, as for MindSpore's own loader.
The messages: mindspore/ccsrc/utils/checkpoint.proto in https://gitee.com/mindspore/mindspore. Their encoding:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from fastllm.errors import CheckpointError
from fastllm.formats._arrays import as_f32
from fastllm.tensors import SIZES, Bytes, Raw, Tensor, mapped

_OURS = {"Float32": "f32", "Float16": "f16", "BFloat16": "bf16"}
_KINDS = {  # types that are read as f32 -> their names in tensors.Raw
    "Float64": "float64",
    **{f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)},
    "Bool": "bool",
}
_MOST_AXES = 16
_MOST_ENTRIES = 1 << 16
_TRAILER = 17  # bytes of "crc_num" and the CRC


class _Stored(NamedTuple):
    """A tensor as it is stored. kind: MindSpore's name of its type. slices: of its bytes, in order."""

    kind: str
    shape: tuple[int, ...]
    slices: list[memoryview]


def tensors(path: Path, data: memoryview) -> dict[str, Tensor]:
    """The tensors of a mapped file by name. Raises CheckpointError for a truncated, encrypted or corrupt file."""
    if bytes(data[1:4]) == b"\x5e\x3a\x7f":
        raise CheckpointError(f"{path} is encrypted; save it again without a key")
    if bytes(data[-_TRAILER:-10]) == b"crc_num":
        expected = int.from_bytes(data[-10:], "big")
        data = data[:-_TRAILER]
        if zlib.crc32(data) != expected:
            raise CheckpointError(f"{path} is corrupt: its contents do not have the CRC that it ends with")
    found: dict[str, _Stored] = {}
    last, missing = "", 0  # the tensor that is being read, and how many of its bytes have yet to come
    for count, (number, value) in enumerate(_fields(path, data)):
        if count == _MOST_ENTRIES:
            raise CheckpointError(f"{path} is no model: it holds more than {count:,} entries")
        entry = _entry(path, value) if number == 1 else None
        if entry is None:
            continue
        tag, stored = entry
        if missing and (tag != last or stored[:2] != found[tag][:2]):
            raise CheckpointError(f"{path} is broken: {last!r} lacks {missing:,} bytes before {tag!r}")
        if missing:
            found[tag].slices.extend(stored.slices)
        else:
            found[tag], missing = stored, prod(stored.shape) * _size(stored.kind)
        missing -= len(stored.slices[0])
        if missing < 0:
            raise CheckpointError(f"{path} is broken: {tag!r} of {stored.kind} {stored.shape} has too many bytes")
        last = tag
    if missing:
        raise CheckpointError(f"{path} is truncated: {last!r} lacks {missing:,} bytes")
    if not found:
        raise CheckpointError(f"{path} is no MindSpore checkpoint: it holds no tensor")
    return {tag: _tensor(stored) for tag, stored in found.items()}


def _entry(path: Path, value: memoryview | int) -> tuple[str, _Stored] | None:
    """A Value's tag and tensor; None if it holds something else: a string, or MindSpore's map of parameters."""
    tag, tensor = "", None
    for number, part in _fields(path, value):
        if number == 1:
            tag = _text(path, part)
        elif number == 2:
            tensor = part
    kind, dims, content = "", [], memoryview(b"")
    for number, part in _fields(path, tensor if tensor is not None else content):
        if number == 1:  # one dim, or all of them packed into bytes
            dims += [part] if isinstance(part, int) else _numbers(path, part)
        elif number == 2:
            kind = _text(path, part)
        elif number == 3 and not isinstance(part, int):
            content = part
    if tensor is None or kind == "str":
        return None
    if kind not in _OURS and kind not in _KINDS:
        raise CheckpointError(f"{path} holds {tag!r} as {kind!r}, a type that fastllm cannot read")
    if len(dims) > _MOST_AXES or any(n >= 1 << 63 for n in dims):
        raise CheckpointError(f"{path} is broken: {tag!r} has an impossible shape")
    return tag, _Stored(kind, () if dims == [0] else tuple(dims), [content])


def _tensor(stored: _Stored) -> Tensor:
    kind, shape, slices = stored
    size = sum(map(len, slices))
    whole = slices[0] if len(slices) == 1 else memoryview(b"")
    if kind not in _OURS:  # counters and flags of training, small enough to be copied
        return as_f32(_KINDS[kind], shape, whole if len(slices) == 1 else memoryview(b"".join(slices)))
    if len(slices) == 1:
        return mapped(_OURS[kind], shape, whole)
    width = size // max(1, prod(shape[:-1]))  # bytes of a row; slices may end within one

    def rows(begin: int, end: int) -> Bytes:
        pieces, start = [], 0
        for piece in slices:
            pieces.append(piece[max(0, begin * width - start) : max(0, end * width - start)])
            start += len(piece)
        return b"".join(pieces)

    return Tensor(_OURS[kind], shape, rows)


def _size(kind: str) -> int:
    return SIZES[_OURS[kind]] if kind in _OURS else Raw(_KINDS[kind], lambda *_: b"").size


# ---- protobuf's wire format ------------------------------------------------------------------------------------------


def _varint(path: Path, data: memoryview, at: int) -> tuple[int, int]:
    """The integer at `at` and its end: 7 bits a byte, lowest first; the highest bit says that more bytes follow."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise CheckpointError(f"{path} is truncated, or no MindSpore checkpoint")


def _numbers(path: Path, data: memoryview) -> list[int]:
    """Packed integers, at most one more than a tensor may have axes."""
    numbers: list[int] = []
    at = 0
    while at < len(data) and len(numbers) <= _MOST_AXES:
        number, at = _varint(path, data, at)
        numbers.append(number)
    return numbers


def _fields(path: Path, data: memoryview | int) -> Iterator[tuple[int, memoryview | int]]:
    """The number and the value, an integer or bytes, of each field of a message."""
    if isinstance(data, int):
        raise CheckpointError(f"{path} is no MindSpore checkpoint")
    at = 0
    while at < len(data):
        key, at = _varint(path, data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(path, data, at)
            yield key >> 3, number
            continue
        if kind not in (1, 2, 5):
            raise CheckpointError(f"{path} is no MindSpore checkpoint, or it is broken or encrypted")
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = _varint(path, data, at)
        if length > len(data) - at:
            raise CheckpointError(f"{path} is truncated, or no MindSpore checkpoint")
        yield key >> 3, data[at : at + length]
        at += length


def _text(path: Path, data: memoryview | int) -> str:
    try:
        return str(data, "utf-8")  # type: ignore[arg-type]  # a number raises TypeError
    except (TypeError, ValueError):
        raise CheckpointError(f"{path} is broken: a name in it is no text") from None
