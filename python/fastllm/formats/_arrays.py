"""Numbers as numpy and torch lay them out: any type, any strides."""

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

# numpy's name of a type -> ours; "V2" is what numpy calls ml_dtypes' bfloat16. The others are read as f32.
_NATIVE = {"<f4": "f32", "<f2": "f16", "<V2": "bf16"}
_CONVERTED = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_NAMES = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
_MOST_AXES = 16
_MOST_SPREAD = 1 << 16  # values that a tensor with strides of 0 may make of fewer

Data = Callable[[int, int], memoryview]  # bytes begin .. end of an array's data


def data(view: memoryview) -> Data:
    return lambda begin, end: view[begin:end]


def size(kind: str) -> int:
    """Bytes of a value of numpy's type `kind`, such as <f4. Raises ValueError for what is no type."""
    if not re.fullmatch(r"[<>][A-Za-z][1-9]\d{0,3}", kind, re.ASCII):
        raise ValueError(f"{kind!r} is no type of numbers")
    return int(kind[2:])


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in values, of a tensor that lies row after row."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def column_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of what numpy calls Fortran's order: the first axis moves fastest."""
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
    """A tensor whose value (i, j, ...) is value number offset + i * strides[0] + j * strides[1] + ... of `count`.

    kind: numpy's name of the type, byte order first. what: how errors call the tensor. A tensor that does not fit its
    data raises CheckpointError at once, a type that fastllm cannot read when the tensor is read.
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
    in_rows = all(n == 1 or s == r for n, s, r in zip(shape, strides, row_major(shape), strict=True))
    row = (shape[-1] if shape else 1) * size(kind)
    first = offset * size(kind)

    def rows(begin: int, end: int) -> Bytes:
        return data(first + begin * row, first + end * row)

    def gathered(begin: int, end: int) -> Bytes:
        import numpy

        values = numpy.frombuffer(data(first, count * size(kind)), numpy.dtype(kind.replace("V", "u")))
        view = numpy.lib.stride_tricks.as_strided(values, shape, [s * size(kind) for s in strides], writeable=False)
        if len(shape) < 2:
            return numpy.ascontiguousarray(view).reshape(1, -1)[begin:end]
        return numpy.ascontiguousarray(view[numpy.unravel_index(numpy.arange(begin, end), shape[:-1])])

    read = rows if in_rows else gathered
    if kind in _NATIVE:
        return Tensor(_NATIVE[kind], shape, read)

    def converted(begin: int, end: int) -> Bytes:
        import numpy

        with numpy.errstate(over="ignore", invalid="ignore"):  # what is too large for f32 is infinite
            return numpy.frombuffer(read(begin, end), numpy.dtype(kind)).astype(numpy.float32)

    long_name = "bool" if kind[1] == "b" else f"{_NAMES[kind[1]]}{8 * size(kind)}"
    return Tensor("f32", shape, converted, raw=Raw(long_name, read) if kind[0] == "<" or size(kind) == 1 else None)


def as_f32(kind: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor of numbers that fastllm has no type for, row-major in `data`, that is read as f32.

    kind: see tensors.Raw; e4m3 and e5m2 are of Micikevicius et al., 2022, e8m0 is OCP's scale, a power of two. 8 bits
    are not 32: weights of theirs count as stored in few.
    """
    raw = Raw(kind, lambda begin, end: data[begin * width : end * width])
    width = (shape[-1] if shape else 1) * raw.size

    def values(begin: int, end: int) -> Bytes:
        import numpy

        if raw.is_float8:
            return _float8(kind)[numpy.frombuffer(raw.read(begin, end), numpy.uint8)]
        with numpy.errstate(over="ignore", invalid="ignore"):  # what is too large for f32 is infinite
            return numpy.frombuffer(raw.read(begin, end), numpy.dtype(kind).newbyteorder("<")).astype(numpy.float32)

    return Tensor("f32", shape, values, stored=kind if raw.is_float8 else None, raw=raw)


def _float8(kind: str) -> NDArray[np.float32]:
    """The values of the 256 bytes."""
    import numpy

    byte = numpy.arange(256)
    if kind == "float8_e8m0":
        return numpy.where(byte < 255, numpy.ldexp(1.0, byte - 127), numpy.nan).astype(numpy.float32)
    if kind == "float8_e5m2":  # the upper half of an f16
        return (byte.astype(numpy.uint16) << 8).view(numpy.float16).astype(numpy.float32)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    values = numpy.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    values[byte & 127 == 127] = numpy.nan  # there is no infinity
    return numpy.where(byte < 128, values, -values).astype(numpy.float32)
