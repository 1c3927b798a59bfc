"""What a checkpoint computes from the stream besides logits: chains of dense layers, of classifiers and embeddings.

They are few and small, so they are kept in the type they have, whatever the model's weights become.
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
    """A layer as a checkpoint has it: act(weight x + bias). weight: (d, n); bias: d f32; act: of _core.DENSE_ACTS."""

    weight: Tensor
    bias: Bytes | None = None
    act: str = "identity"


def pack(chains: Mapping[str, Sequence[Layer]]) -> dict[str, tuple[_core.Dense, ...]]:
    """The layers of each chain as the core computes with them. Raises CheckpointError for those that do not fit."""
    return {
        chain: bind(chain, [_packed(f"{chain}.{i}", layer) for i, layer in enumerate(chains[chain])])
        for chain in chains
    }


def bind(chain: str, layers: Sequence[tuple[_core.Matrix, _core.Vector | None, str]]) -> tuple[_core.Dense, ...]:
    """A chain of matrices, biases and activations. Raises CheckpointError where one does not fit the one before."""
    for (before, *_), (matrix, *_) in pairwise(layers):
        if matrix.shape[-1] != before.shape[0]:
            raise CheckpointError(
                f"{chain} has a layer of {before.shape[0]} rows before one of {matrix.shape[-1]} columns"
            )
    return tuple(_core.Dense(*layer) for layer in layers)


def _packed(name: str, layer: Layer) -> tuple[_core.Matrix, _core.Vector | None, str]:
    from fastllm.tensors import floats

    weight = layer.weight
    if len(weight.shape) != 2 or not all(weight.shape):
        raise CheckpointError(f"{name} has the shape {weight.shape}, not that of a matrix")
    if weight.dtype == "q8_f32":
        weight = weight._replace(dtype="f32", read=lambda begin, end: floats(layer.weight, begin, end))
    data = memoryview(weight.all()).cast("B")
    matrix = _core.pack(weight.dtype, weight.shape[0], weight.shape[1], weight.dtype, data, name=name)
    bias = None if layer.bias is None else _core.Vector(memoryview(layer.bias).cast("B"), name=f"{name}.bias")
    return matrix, bias, layer.act


def apply(chain: Sequence[_core.Dense], x: NDArray[np.float32], *, isa: str | None = None) -> NDArray[np.float32]:
    """Rows [t, n] through the layers of a chain, [t, d]: the same bits on any machine, whatever rows are beside them.

    Raises CheckpointError where the first layer takes rows of another width.
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
