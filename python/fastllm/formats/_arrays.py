"""Turns numbers as numpy, torch and others store them, of any type and any strides, into tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

from fastllm.errors import CheckpointError
from fastllm.tensors import Bytes, Raw, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# numpy's name of a type -> fastllm's; numpy calls bfloat16, which ml_dtypes adds to it, V2. _CONVERTED are read as f32.
_NATIVE = {"<f4": "f32", "<f2": "f16", "<V2": "bf16"}
_CONVERTED = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_NAMES = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
_MOST_AXES = 16
_MOST_SPREAD = 1 << 16  # strides of 0 repeat values: a tensor of more values than its data has at most so many

Data = Callable[[int, int], memoryview]  # reads bytes begin .. end of an array's data


def data(view: memoryview) -> Data:
    """Data that lies in memory or in a mapped file."""
    return lambda begin, end: view[begin:end]


def size(kind: str) -> int:
    """Bytes of a value of a type, by numpy's name, such as <f4. Raises ValueError if it is no name of a type."""
    if not re.fullmatch(r"[<>][A-Za-z][1-9]\d{0,3}", kind, re.ASCII):
        raise ValueError(f"{kind!r} is no type of numbers")
    return int(kind[2:])


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in values, of a C-contiguous array: the last axis moves fastest."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def column_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in values, of a Fortran-contiguous array: the first axis moves fastest."""
    return tuple(prod(shape[:axis]) for axis in range(len(shape)))


def tensor(
    kind: str,
    shape: tuple[int, ...],
    data: Data,
    what: str,
    *,
    strides: tuple[int, ...],
    count: int,
    offset: int = 0,
) -> Tensor:
    """A tensor whose value (i, j, ...) is value offset + i * strides[0] + j * strides[1] + ... of `count` in `data`.

    kind: numpy's name of the type, byte order first, such as <f4. what: the tensor's name in errors. Raises
    CheckpointError for a tensor that does not fit its data. A type that fastllm cannot read raises it when the tensor
    is read, so that a file may hold one that no model uses.
    """
    if len(shape) != len(strides) or len(shape) > _MOST_AXES or min((*shape, *strides, offset)) < 0:
        raise CheckpointError(f"{what} has an impossible shape")
    if prod(shape) == 0:
        strides, offset = row_major(shape), 0
    elif (last := offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) >= count:
        raise CheckpointError(f"{what} needs value {last + 1:,} of data that has {count:,}")
    elif prod(shape) > max(count, _MOST_SPREAD):
        raise CheckpointError(f"{what} spreads {count:,} values over {prod(shape):,}")
    if kind[1:] not in _CONVERTED and kind not in _NATIVE:

        def unreadable(begin: int, end: int) -> Bytes:
            raise CheckpointError(f"{what} has a type that fastllm cannot read")

        return Tensor("f32", shape, unreadable)
    read = _reader(kind, shape, data, strides=strides, count=count, offset=offset)
    if kind in _NATIVE:
        return Tensor(_NATIVE[kind], shape, read)

    def converted(begin: int, end: int) -> Bytes:
        import numpy

        with numpy.errstate(over="ignore", invalid="ignore"):  # too large for f32: infinite
            return numpy.frombuffer(read(begin, end), numpy.dtype(kind)).astype(numpy.float32)

    long_name = "bool" if kind[1] == "b" else f"{_NAMES[kind[1]]}{8 * size(kind)}"
    return Tensor("f32", shape, converted, raw=Raw(long_name, read) if kind[0] == "<" or size(kind) == 1 else None)


def _reader(
    kind: str, shape: tuple[int, ...], data: Data, *, strides: tuple[int, ...], count: int, offset: int
) -> Callable[[int, int], Bytes]:
    """A function that reads rows begin .. end: a piece of the data if that is row-major, else a copy."""
    nbytes = size(kind)
    width = (shape[-1] if shape else 1) * nbytes
    first = offset * nbytes

    def rows(begin: int, end: int) -> Bytes:
        return data(first + begin * width, first + end * width)

    def gathered(begin: int, end: int) -> Bytes:
        import numpy

        values = numpy.frombuffer(data(first, count * nbytes), numpy.dtype(kind.replace("V", "u")))
        view = numpy.lib.stride_tricks.as_strided(values, shape, [s * nbytes for s in strides], writeable=False)
        if len(shape) < 2:
            return numpy.ascontiguousarray(view).reshape(1, -1)[begin:end]
        return numpy.ascontiguousarray(view[numpy.unravel_index(numpy.arange(begin, end), shape[:-1])])

    # The stride of an axis of length 1 does not matter.
    in_rows = all(n == 1 or s == r for n, s, r in zip(shape, strides, row_major(shape), strict=True))
    return rows if in_rows else gathered


def as_f32(kind: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor of a type that fastllm lacks, row-major in `data`, read as f32; its own values are in `raw`.

    kind: a name of tensors.Raw, such as int32. float8_e4m3 and float8_e5m2: FP8 (Micikevicius et al., 2022,
    https://arxiv.org/abs/2209.05433); float8_e8m0: the power of two that OCP's microscaling formats have as a scale.
    Tensors of float8 get a `stored`, for their weights have few bits.
    """
    raw = Raw(kind, lambda begin, end: data[begin * width : end * width])
    width = (shape[-1] if shape else 1) * raw.size

    def values(begin: int, end: int) -> Bytes:
        import numpy

        if raw.is_float8:
            return _float8(kind)[numpy.frombuffer(raw.read(begin, end), numpy.uint8)]
        with numpy.errstate(over="ignore", invalid="ignore"):  # too large for f32: infinite
            return numpy.frombuffer(raw.read(begin, end), numpy.dtype(kind).newbyteorder("<")).astype(numpy.float32)

    return Tensor("f32", shape, values, stored=kind if raw.is_float8 else None, raw=raw)


def _float8(kind: str) -> NDArray[np.float32]:
    """The values of all 256 bytes of a type."""
    import numpy

    byte = numpy.arange(256)
    if kind == "float8_e8m0":
        return numpy.where(byte < 255, numpy.ldexp(1.0, byte - 127), numpy.nan).astype(numpy.float32)
    if kind == "float8_e5m2":  # the upper half of an f16
        return (byte.astype(numpy.uint16) << 8).view(numpy.float16).astype(numpy.float32)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    values = numpy.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    values[byte & 127 == 127] = numpy.nan  # e4m3 has no infinities
    return numpy.where(byte < 128, values, -values).astype(numpy.float32)
