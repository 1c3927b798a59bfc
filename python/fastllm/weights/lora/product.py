"""The sum of a matrix and a product of thin factors, the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.tensors import Bytes, Tensor, floats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE = 1 << 19  # values that are computed at once


class Factors(NamedTuple):
    """A (rank, inputs) and B (outputs, rank), whose product is added `scale` times; turned: its transpose."""

    path: Path
    name: str
    a: Tensor
    b: Tensor
    scale: float
    turned: bool = False

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left and right factor, [rows, rank] and [rank, columns], of the matrix that is added."""
        import numpy

        a, b = floats(self.a).astype(numpy.float64), floats(self.b).astype(numpy.float64)
        if not (numpy.isfinite(a).all() and numpy.isfinite(b).all()):
            raise CheckpointError(
                f"{self.path} is broken: {self.name} or its other factor has values that are not finite"
            )
        return (a.T, b.T) if self.turned else (b, a)


def added(weight: Tensor, factors: Factors, *, magnitude: Tensor | None) -> Tensor:
    """weight + scale * (left @ right), in f64 and rounded once to f32; with a magnitude, rows of that length."""
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def read(begin: int, end: int) -> Bytes:
        import numpy

        if not found:
            found.append(factors.arrays())
        left, right = found[0]
        out = numpy.empty((end - begin, weight.width), numpy.float32)
        step = max(1, _PIECE // weight.width)
        for first in range(begin, end, step):
            last = min(first + step, end)
            total = product(left[first:last], right)
            total *= factors.scale
            total += floats(weight, first, last)
            with numpy.errstate(all="ignore"):  # what is not finite is refused where weights are packed
                if magnitude is not None:
                    lengths = numpy.square(numpy.ascontiguousarray(total.T)).sum(axis=0)  # inputs in order
                    total *= (floats(magnitude).reshape(-1)[first:last] / numpy.sqrt(lengths))[:, None]
                out[first - begin : last - begin] = total
        return out

    return Tensor("f32", weight.shape, read, stored=weight.stored)


def product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right, the same bits on every machine, whatever order its library sums in.

    Factors are rounded to whole numbers of so few bits, relative to the largest of their row, that every sum of
    products is exact in f64: 24 bits at rank 16, as many as f32 has. left: [rows, rank]; right: [rank, columns].
    """
    import numpy

    bits = (53 - left.shape[1].bit_length()) // 2
    _, inner = numpy.frexp(numpy.abs(right).max(axis=1))  # of each index that is summed over
    _, outer = numpy.frexp(numpy.abs(numpy.ldexp(left, inner)).max(axis=1, keepdims=True))
    q_left = numpy.rint(numpy.ldexp(left, inner - outer + bits))
    q_right = numpy.rint(numpy.ldexp(right, bits - inner[:, None]))
    result: NDArray[np.float64] = q_left @ q_right
    result *= numpy.ldexp(1.0, outer - 2 * bits)
    return result
