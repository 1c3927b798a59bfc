"""Integers of a few bits, unpacked; columns of matrices that are stored as (inputs, outputs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastllm.tensors import Tensor, columns, floats, raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of `bits` bits, packed densely into words along the last axis, lowest bits of the first word first.

    words [..., w] of 32 bits become [..., w * 32 // bits]; a value may lie across two words.
    """
    import numpy

    data = numpy.ascontiguousarray(words).view(numpy.uint8)
    if bits == 8:
        return data
    if bits in (2, 4):
        parts = [data >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
        return numpy.stack(parts, axis=-1).reshape(*data.shape[:-1], -1)
    stream = numpy.unpackbits(data, axis=-1, bitorder="little")
    count = stream.shape[-1] // bits
    values: NDArray[np.uint8] = numpy.packbits(
        stream[..., : count * bits].reshape(*data.shape[:-1], count, bits), axis=-1, bitorder="little"
    )[..., 0]
    return values


def column_words(tensor: Tensor, begin: int, end: int) -> NDArray[Any]:
    """Columns begin .. end of a matrix of integers, as rows: [end - begin, rows of the matrix]."""
    import numpy

    return numpy.ascontiguousarray(raw_values(tensor)[:, begin:end].T)


def column_floats(tensor: Tensor, begin: int, end: int) -> NDArray[np.float32]:
    """Columns begin .. end of a matrix of floats, as rows: [end - begin, rows of the matrix]."""
    import numpy

    return numpy.ascontiguousarray(floats(columns(tensor, begin, end)).T)
