"""The tensors of a checkpoint, read from its file a few rows at a time, when they are needed.

A tensor of any shape is read as a matrix [rows, width] whose width is the last axis; a vector is one row. Formats make
tensors. Families cut, join and transpose them with the functions below, each of which returns a tensor with a new
`read` and reads nothing itself. `read` reads no more rows than it is asked for, unless the file's layout forces it to.

Where a file has quantized blocks (GGUF's types, MXFP4), a tensor's rows are those blocks, so that they can be packed as
they are. What moves whole rows keeps them; what cuts or joins columns, transposes or computes makes f32 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm import _core
from fastllm.errors import CheckpointError
from fastllm.machine import thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = {"f32": 4, "f16": 2, "bf16": 2}  # bytes of a value
BLOCKS = _core.block_types()  # a block type's name -> (values, bytes, dtype, table), as _core.block_types says

_COMPARED = 1 << 18  # values that `equal` reads at once

Bytes = Any  # anything with the buffer protocol, contiguous: memoryview, bytes, a numpy array


class Raw(NamedTuple):
    """A tensor's values in the file's own type, which Tensor.dtype has no name for: they are read as f32 otherwise.

    kind: the type by numpy's name, such as int32 (little-endian), or float8_e4m3, float8_e5m2, float8_e8m0 (OCP MX).
    read(begin, end): rows as contiguous bytes.
    """

    kind: str
    read: Callable[[int, int], Bytes]

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return 1 if self.kind == "bool" or self.is_float8 else int("".join(filter(str.isdigit, self.kind))) // 8

    @property
    def is_float8(self) -> bool:
        return self.kind.startswith("float8")

    @property
    def is_integer(self) -> bool:
        return self.kind.startswith(("int", "uint"))


class Tensor(NamedTuple):
    """A tensor of a checkpoint.

    dtype: the type it is read as: f32, f16, bf16, or a name of BLOCKS. read(begin, end): rows begin .. end as
    contiguous bytes, row-major; end is at most `rows`. Rows of blocks are as wide as a whole number of them.
    stored: the file's name for its own type, where the weights are quantized, else None.
    raw: the values in the file's own type, where that is an integer or float8, else None.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Bytes]
    stored: str | None = None
    raw: Raw | None = None

    @property
    def rows(self) -> int:
        """How many rows of the last axis there are."""
        return prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all values in `dtype`."""
        return nbytes(self.dtype, self.shape)

    def all(self) -> Bytes:
        """The bytes of all rows."""
        return self.read(0, self.rows)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of so many values of a dtype, one of SIZES or of BLOCKS."""
    if dtype in SIZES:
        return prod(shape) * SIZES[dtype]
    values, block, *_ = BLOCKS[dtype]
    return prod(shape) // values * block


def mapped(dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor that lies row-major in `data`. dtype: one of SIZES or of BLOCKS."""
    width = nbytes(dtype, shape[-1:])
    stored = None if dtype in SIZES else dtype
    return Tensor(dtype, shape, lambda begin, end: data[begin * width : end * width], stored)


class Reader:
    """Takes tensors from a mapped file one after the other, from `offset` on."""

    def __init__(self, path: Path, data: memoryview, offset: int) -> None:
        self.path, self.data, self.offset = path, data, offset

    def take(self, nbytes: int, what: str) -> memoryview:
        """The next bytes. Raises CheckpointError, which calls them `what`, where the file ends before they do."""
        end = self.offset + nbytes
        if end > len(self.data):
            raise CheckpointError(
                f"{self.path} is truncated: {what} ends at byte {end:,}, the file at {len(self.data):,}"
            )
        part = self.data[self.offset : end]
        self.offset = end
        return part

    def tensor(self, dtype: str, shape: tuple[int, ...], what: str) -> Tensor:
        """The next bytes as a tensor. Raises CheckpointError as `take` does."""
        return mapped(dtype, shape, self.take(nbytes(dtype, shape), what))


def floats(tensor: Tensor, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
    """Rows of a tensor as float32 [rows, width], whatever its dtype."""
    import numpy

    end = tensor.rows if end is None else end
    data = tensor.read(begin, end)
    if tensor.dtype == "f32":
        values = numpy.frombuffer(data, numpy.float32)
    elif tensor.dtype == "f16":
        values = numpy.frombuffer(data, numpy.float16).astype(numpy.float32)
    elif tensor.dtype == "bf16":
        values = (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    else:
        out: Bytes = numpy.empty((end - begin) * tensor.width, numpy.float32)
        if len(out):
            _core.dequantize(tensor.dtype, memoryview(data).cast("B"), out, threads=_threads())
        values = out
    return values.reshape(end - begin, tensor.width)


@cache
def _threads() -> int:
    return thread_count()[0]


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values. Both are read in pieces, up to the first that differs."""
    if a is b or a.shape != b.shape:
        return a is b
    step = max(1, _COMPARED // max(1, a.width))
    for begin in range(0, a.rows, step):
        rows = begin, min(begin + step, a.rows)
        if a.dtype == b.dtype:
            same = bytes(memoryview(a.read(*rows)).cast("B")) == bytes(memoryview(b.read(*rows)).cast("B"))
        else:
            same = bool((floats(a, *rows) == floats(b, *rows)).all())
        if not same:
            return False
    return True


def raw_values(tensor: Tensor, begin: int = 0, end: int | None = None) -> NDArray[Any]:
    """Rows of tensor.raw, [rows, width], in the file's own type; float8 as the uint8 of its bits."""
    import numpy

    assert tensor.raw is not None
    end = tensor.rows if end is None else end
    kind = "uint8" if tensor.raw.is_float8 else tensor.raw.kind
    values: NDArray[Any] = numpy.frombuffer(tensor.raw.read(begin, end), numpy.dtype(kind).newbyteorder("<"))
    return values.reshape(end - begin, tensor.width)


def _raw(tensor: Tensor, begin: int, end: int) -> NDArray[Any]:
    """Rows as an array of the tensor's dtype, to be moved but not computed with: bf16 is an array of uint16."""
    import numpy

    kinds = {"f32": numpy.float32, "f16": numpy.float16, "bf16": numpy.uint16}
    return numpy.frombuffer(tensor.read(begin, end), kinds[tensor.dtype]).reshape(end - begin, tensor.width)


def unblocked(tensor: Tensor) -> Tensor:
    """The tensor, read as f32 if it is one of blocks."""
    if tensor.dtype in SIZES:
        return tensor
    return tensor._replace(dtype="f32", read=lambda begin, end: floats(tensor, begin, end))


def part(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Rows begin .. end of a matrix."""
    if len(tensor.shape) != 2 or not 0 <= begin <= end <= tensor.rows:
        raise CheckpointError(f"rows {begin} to {end} of a tensor of {_text(tensor.shape)}")
    read = tensor.read
    return tensor._replace(shape=(end - begin, tensor.width), read=lambda b, e: read(begin + b, begin + e), raw=None)


def parted(tensor: Tensor, *rows: int) -> list[Tensor]:
    """A matrix cut into several, of these numbers of rows. Raises CheckpointError unless they add up to its own."""
    if len(tensor.shape) != 2 or sum(rows) != tensor.rows:
        raise CheckpointError(f"a tensor of {_text(tensor.shape)} is not one of {' and '.join(map(str, rows))} rows")
    return [part(tensor, sum(rows[:i]), sum(rows[: i + 1])) for i in range(len(rows))]


def at(tensor: Tensor, index: int) -> Tensor:
    """tensor[index]: a matrix of a stack, or a row of a matrix."""
    if len(tensor.shape) < 2 or not 0 <= index < tensor.shape[0]:
        raise CheckpointError(f"no part {index} of a tensor of {_text(tensor.shape)}")
    rows, read = tensor.rows // tensor.shape[0], tensor.read
    first = index * rows
    return tensor._replace(shape=tensor.shape[1:], read=lambda b, e: read(first + b, first + e), raw=None)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same values in the same order in another shape, whose last axis must be as long."""
    if prod(shape) != prod(tensor.shape) or shape[-1:] != tensor.shape[-1:]:
        raise CheckpointError(f"a tensor of {_text(tensor.shape)} cannot be one of {_text(shape)}")
    return tensor._replace(shape=shape, raw=None)


def columns(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Columns begin .. end of every row."""
    tensor = unblocked(tensor)
    if not 0 <= begin <= end <= tensor.width:
        raise CheckpointError(f"columns {begin} to {end} of a tensor of {_text(tensor.shape)}")
    return tensor._replace(
        shape=(*tensor.shape[:-1], end - begin),
        read=lambda b, e: _contiguous(_raw(tensor, b, e)[:, begin:end]),
        raw=None,
    )


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """n matrices of one shape as one tensor (n, rows, columns)."""
    joined = joined_rows(tensors)
    if len({t.shape for t in tensors}) != 1:
        raise CheckpointError(f"tensors of {_text(tensors[0].shape)} and of other shapes cannot be one stack")
    return joined._replace(shape=(len(tensors), *tensors[0].shape))


def joined_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of equal width, one below the other; vectors end to end."""
    if len(tensors) == 1:
        return tensors[0]
    parts = _alike(tensors)
    if len(parts[0].shape) == 1:
        shape: tuple[int, ...] = (sum(t.width for t in parts),)

        def whole(begin: int, end: int) -> Bytes:
            return b"".join(bytes(memoryview(t.all()).cast("B")) for t in parts) if end > begin else b""

        return Tensor(parts[0].dtype, shape, whole)
    if len({t.shape[1:] for t in parts}) != 1:
        raise CheckpointError(f"parts of a tensor do not fit: {' and '.join(_text(t.shape) for t in parts)}")
    starts = [0]
    for t in parts:
        starts.append(starts[-1] + t.rows)

    def read(begin: int, end: int) -> Bytes:
        pieces = [
            t.read(max(begin, start) - start, min(end, start + t.rows) - start)
            for t, start in zip(parts, starts, strict=False)
            if begin < start + t.rows and end > start
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(bytes(memoryview(p).cast("B")) for p in pieces)

    return Tensor(parts[0].dtype, (sum(t.shape[0] for t in parts), *parts[0].shape[1:]), read)


def joined_columns(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors with as many rows, side by side."""
    if len(tensors) == 1:
        return tensors[0]
    parts = _alike([unblocked(t) for t in tensors])
    if len({t.shape[:-1] for t in parts}) != 1:
        raise CheckpointError(f"parts of a tensor do not fit: {' and '.join(_text(t.shape) for t in parts)}")

    def read(begin: int, end: int) -> Bytes:
        import numpy

        return numpy.concatenate([_raw(t, begin, end) for t in parts], axis=1)

    return Tensor(parts[0].dtype, (*parts[0].shape[:-1], sum(t.width for t in parts)), read)


def transposed(tensor: Tensor) -> Tensor:
    """The last two axes exchanged: (..., inputs, outputs) becomes (..., outputs, inputs)."""
    tensor = unblocked(tensor)
    if len(tensor.shape) < 2:
        raise CheckpointError(f"a tensor of {_text(tensor.shape)} cannot be transposed")
    *most, n, d = tensor.shape

    def read(begin: int, end: int) -> Bytes:
        import numpy

        out = []
        while begin < end:  # row r of matrix m is column r of the stored matrix m
            m, row = divmod(begin, d)
            stop = min(d, row + end - begin)
            matrix = _raw(tensor, m * n, (m + 1) * n)[:, row:stop]
            turned = numpy.empty((stop - row, n), matrix.dtype)
            for i in range(0, n, 64):  # 64 rows at a time: else values a power of two apart evict each other
                turned[:, i : i + 64] = _contiguous(matrix[i : i + 64]).T
            out.append(turned)
            begin += stop - row
        return out[0] if len(out) == 1 else numpy.concatenate(out)

    return Tensor(tensor.dtype, (*most, d, n), read)


def _alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in one dtype: their common one, or f32."""
    if len({t.dtype for t in tensors}) == 1:
        return list(tensors)
    return [t._replace(dtype="f32", read=lambda b, e, t=t: floats(t, b, e)) for t in tensors]  # type: ignore[misc]


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    import numpy

    return numpy.ascontiguousarray(array)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no axes"
