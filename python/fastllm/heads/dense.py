"""Chains of dense layers, through which hidden states become a classifier's scores or an embedding's vector.

These layers are few and small, so they keep the type that the checkpoint has, whatever the model's weights become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.tensors import Bytes, Tensor


class Layer(NamedTuple):
    """A layer of a checkpoint, act(weight x + bias). weight: (d, n). bias: d f32. act: one of _core.DENSE_ACTS."""

    weight: Tensor
    bias: Bytes | None = None
    act: str = "identity"


def pack(chains: Mapping[str, Sequence[Layer]]) -> dict[str, tuple[_core.Dense, ...]]:
    """Chains by name, packed for the core. Raises CheckpointError for layers that do not fit each other."""
    return {
        chain: bind(chain, [_packed(f"{chain}.{i}", layer) for i, layer in enumerate(chains[chain])])
        for chain in chains
    }


def bind(chain: str, layers: Sequence[tuple[_core.Matrix, _core.Vector | None, str]]) -> tuple[_core.Dense, ...]:
    """A chain of layers, each (matrix, bias, activation).

    Raises CheckpointError where a layer does not take as many channels as the one before it gives.
    """
    for (before, *_), (matrix, *_) in pairwise(layers):
        if matrix.shape[-1] != before.shape[0]:
            raise CheckpointError(
                f"{chain} has a layer of {before.shape[0]} rows before one of {matrix.shape[-1]} columns"
            )
    return tuple(_core.Dense(*layer) for layer in layers)


def _packed(name: str, layer: Layer) -> tuple[_core.Matrix, _core.Vector | None, str]:
    """A layer's matrix in panels, its bias and activation, as bind takes them; name: for messages."""
    from fastllm.tensors import unblocked

    weight = unblocked(layer.weight)
    if len(weight.shape) != 2 or not all(weight.shape):
        raise CheckpointError(f"{name} has the shape {weight.shape}, not that of a matrix")
    data = memoryview(weight.all()).cast("B")
    matrix = _core.pack(weight.dtype, weight.shape[0], weight.shape[1], weight.dtype, data, name=name)
    bias = None if layer.bias is None else _core.Vector(memoryview(layer.bias).cast("B"), name=f"{name}.bias")
    return matrix, bias, layer.act


def apply(chain: Sequence[_core.Dense], x: NDArray[np.float32], *, isa: str | None = None) -> NDArray[np.float32]:
    """Rows [t, n] through the layers of a chain: [t, d].

    A row's result has the same bits on any machine and beside any other rows. isa: the instruction set, None for the
    best. Raises CheckpointError where the first layer takes rows of another width.
    """
    import numpy

    for layer in chain:
        d, n = layer.matrix.shape
        if x.shape[1] != n:
            raise CheckpointError(f"a dense layer takes rows of {n} values, not of {x.shape[1]}")
        rows: Bytes = numpy.ascontiguousarray(x, numpy.float32)
        out: Bytes = numpy.empty((len(x), d + -d % _core.LANES), numpy.float32)
        if len(x):
            layer.apply(rows, out, isa=isa)
        x = out[:, :d]
    return x
