"""The tensors of a checkpoint, read from its file a few rows at a time, when they are needed.

A tensor of any shape is read as a matrix [rows, width] whose width is the last axis; a vector is one row. Formats make
tensors. Families cut, join and transpose them with the functions below, each of which returns a tensor with a new
`read` and reads nothing itself. `read` reads no more rows than it is asked for, unless the file's layout forces it to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "q8_f32": 1}  # bytes of a value

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

    dtype: the type it is read as: f32, f16, bf16, or q8_f32: int8 values with a scale for each group, here `group`
    consecutive values of the whole flattened tensor. scales: those f32 scales. read(begin, end): rows begin .. end as
    contiguous bytes, row-major; end is at most `rows`.
    stored: the file's name for its own type, if it takes fewer bits than dtype (quantized weights), else None.
    raw: the values in the file's own type, where that is an integer or float8, else None.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Bytes]
    scales: memoryview | None = None
    group: int = 0
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
        """Bytes of the values in `dtype`, and of the scales."""
        return prod(self.shape) * SIZES[self.dtype] + (len(self.scales) if self.scales is not None else 0)

    def all(self) -> Bytes:
        """The bytes of all rows."""
        return self.read(0, self.rows)


def mapped(dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor that lies row-major in `data`."""
    width = (shape[-1] if shape else 1) * SIZES[dtype]
    return Tensor(dtype, shape, lambda begin, end: data[begin * width : end * width])


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
        return mapped(dtype, shape, self.take(prod(shape) * SIZES[dtype], what))


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
        first = begin * tensor.width
        scales = numpy.frombuffer(tensor.scales, numpy.float32)  # type: ignore[arg-type]  # q8_f32 always has scales
        groups = numpy.arange(first, end * tensor.width) // tensor.group
        with numpy.errstate(over="ignore", invalid="ignore"):  # packing refuses values that are not finite
            values = numpy.frombuffer(data, numpy.int8).astype(numpy.float32) * scales[groups]
    return values.reshape(end - begin, tensor.width)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values. Both are read in pieces, up to the first that differs."""
    if a is b or a.shape != b.shape:
        return a is b
    step = max(1, _COMPARED // max(1, a.width))
    for begin in range(0, a.rows, step):
        rows = begin, min(begin + step, a.rows)
        if a.dtype == b.dtype and a.scales is None and b.scales is None:
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


def _plain(tensor: Tensor) -> Tensor:
    """The tensor to cut or join: q8_f32 is read as f32, whose rows need no scales, and `raw`, of other rows, goes."""
    if tensor.dtype != "q8_f32":
        return tensor._replace(raw=None)
    return Tensor("f32", tensor.shape, lambda begin, end: floats(tensor, begin, end))


def part(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Rows begin .. end of a matrix."""
    tensor = _plain(tensor)
    if len(tensor.shape) != 2 or not 0 <= begin <= end <= tensor.rows:
        raise CheckpointError(f"rows {begin} to {end} of a tensor of {_text(tensor.shape)}")
    read = tensor.read
    return tensor._replace(shape=(end - begin, tensor.width), read=lambda b, e: read(begin + b, begin + e))


def parted(tensor: Tensor, *rows: int) -> list[Tensor]:
    """A matrix cut into several, of these numbers of rows. Raises CheckpointError unless they add up to its own."""
    if len(tensor.shape) != 2 or sum(rows) != tensor.rows:
        raise CheckpointError(f"a tensor of {_text(tensor.shape)} is not one of {' and '.join(map(str, rows))} rows")
    return [part(tensor, sum(rows[:i]), sum(rows[: i + 1])) for i in range(len(rows))]


def at(tensor: Tensor, index: int) -> Tensor:
    """tensor[index]: a matrix of a stack, or a row of a matrix."""
    tensor = _plain(tensor)
    if len(tensor.shape) < 2 or not 0 <= index < tensor.shape[0]:
        raise CheckpointError(f"no part {index} of a tensor of {_text(tensor.shape)}")
    rows, read = tensor.rows // tensor.shape[0], tensor.read
    first = index * rows
    return tensor._replace(shape=tensor.shape[1:], read=lambda b, e: read(first + b, first + e))


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same values in the same order in another shape, whose last axis must be as long."""
    tensor = _plain(tensor)
    if prod(shape) != prod(tensor.shape) or shape[-1:] != tensor.shape[-1:]:
        raise CheckpointError(f"a tensor of {_text(tensor.shape)} cannot be one of {_text(shape)}")
    return tensor._replace(shape=shape)


def columns(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Columns begin .. end of every row."""
    tensor = _plain(tensor)
    if not 0 <= begin <= end <= tensor.width:
        raise CheckpointError(f"columns {begin} to {end} of a tensor of {_text(tensor.shape)}")
    return tensor._replace(
        shape=(*tensor.shape[:-1], end - begin), read=lambda b, e: _contiguous(_raw(tensor, b, e)[:, begin:end])
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
    parts = _alike(tensors)
    if len({t.shape[:-1] for t in parts}) != 1:
        raise CheckpointError(f"parts of a tensor do not fit: {' and '.join(_text(t.shape) for t in parts)}")

    def read(begin: int, end: int) -> Bytes:
        import numpy

        return numpy.concatenate([_raw(t, begin, end) for t in parts], axis=1)

    return Tensor(parts[0].dtype, (*parts[0].shape[:-1], sum(t.width for t in parts)), read)


def transposed(tensor: Tensor) -> Tensor:
    """The last two axes exchanged: (..., inputs, outputs) becomes (..., outputs, inputs)."""
    tensor = _plain(tensor)
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
    parts = [_plain(t) for t in tensors]
    if len({t.dtype for t in parts}) == 1:
        return parts
    return [t._replace(dtype="f32", read=lambda b, e, t=t: floats(t, b, e)) for t in parts]  # type: ignore[misc]


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    import numpy

    return numpy.ascontiguousarray(array)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no axes"
