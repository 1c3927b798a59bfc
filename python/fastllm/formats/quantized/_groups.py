"""Groups of a row's inputs that share a scale and a zero, of any size and order, and what weights come of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fastllm.formats.quantized._matrix import Matrix
from fastllm.tensors import raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Groups(NamedTuple):
    """of_input: the group of each input. size: the inputs of a group, if groups are equal and of neighbours, else 0."""

    of_input: NDArray[np.intp]
    size: int


def groups_of(m: Matrix, part: str, inputs: int, groups: int) -> Callable[[], Groups]:
    """A function that gives each input's group: what the tensor `part` says, else neighbouring inputs share one.

    The tensor is read at the first call. Raises CheckpointError if its shape does not fit, or if there is none and the
    number of groups does not divide the inputs; the first call raises it for a group that does not exist.
    """
    if m.has(part):
        index_tensor = m.sized(part, (inputs,), kinds=("int32", "int64"))
    else:
        index_tensor, size = None, m.option("group_size", m.option("q_group_size"))
        if type(size) is not int or size < 1 or -(-inputs // size) != groups:
            size, rest = divmod(inputs, groups)
            if rest:
                raise m.error("scales", f"has {groups} groups, which do not divide {inputs} inputs")
    found: list[Groups] = []

    def once() -> Groups:
        import numpy

        if not found:
            index = (
                numpy.arange(inputs) // size if index_tensor is None else raw_values(index_tensor)[0].astype(numpy.intp)
            )
            if index.min() < 0 or index.max() >= groups:
                raise m.error(part, f"names group {int(index.max())} of {groups}")
            width, rest = divmod(inputs, groups)
            regular = not rest and numpy.array_equal(index, numpy.arange(inputs) // width)
            found.append(Groups(index, width if regular else 0))
        return found[0]

    return once


def affine(
    q: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8], groups: Groups
) -> NDArray[np.float32]:
    """scale * (q - zero) for q [rows, inputs] and scales, zeros [rows, groups]."""
    import numpy

    w = q.astype(numpy.float32)
    if groups.size:
        parts = w.reshape(len(w), -1, groups.size)
        parts -= zeros[:, :, None]
        parts *= scales[:, :, None]
        return w
    w -= numpy.take(zeros, groups.of_input, axis=1)
    w *= numpy.take(scales, groups.of_input, axis=1)
    return w
