"""A matrix plus the product of two thin factors, W + s B A, with the same bits on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.tensors import Bytes, Tensor, floats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE = 1 << 19  # values of the sum that are computed at once


class Factors(NamedTuple):
    """The product scale * B A to add. a: A (rank, inputs). b: B (outputs, rank). path, name: of A, for messages.

    turned: whether the transpose is added, to a matrix that is stored (inputs, outputs).
    """

    path: Path
    name: str
    a: Tensor
    b: Tensor
    scale: float
    turned: bool = False

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The left and the right factor, [rows, rank] and [rank, columns]. Raises CheckpointError unless finite."""
        import numpy

        a, b = floats(self.a).astype(numpy.float64), floats(self.b).astype(numpy.float64)
        if not (numpy.isfinite(a).all() and numpy.isfinite(b).all()):
            raise CheckpointError(
                f"{self.path} is broken: {self.name} or its other factor has values that are not finite"
            )
        return (a.T, b.T) if self.turned else (b, a)


def added(weight: Tensor, factors: Factors, *, magnitude: Tensor | None) -> Tensor:
    """weight + scale * (left @ right), computed in f64 and rounded once to f32.

    magnitude: of DoRA, the length that each row of the sum is scaled to; None for plain LoRA.
    """
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
            with numpy.errstate(all="ignore"):  # packing refuses values that are not finite
                if magnitude is not None:
                    lengths = numpy.square(numpy.ascontiguousarray(total.T)).sum(axis=0)  # sums over inputs, in order
                    total *= (floats(magnitude).reshape(-1)[first:last] / numpy.sqrt(lengths))[:, None]
                out[first - begin : last - begin] = total
        return out

    return Tensor("f32", weight.shape, read, stored=weight.stored)


def product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right in f64 with the same bits on every machine, in whatever order the BLAS library sums.

    left: [rows, rank]; right: [rank, columns]. Both are scaled by powers of two and rounded to integers of so few bits
    that all sums of products fit f64's 53 bits and are exact, so their order does not matter: with rank r, integers of
    (53 - bits of r) / 2 bits, 24 at rank 16, as many as an f32 has. The scales:

        2^inner[j]    above the largest value of row j of right; moved into column j of left, which multiplies it
        2^outer[i]    above the largest value of row i of left after that
    """
    import numpy

    bits = (53 - left.shape[1].bit_length()) // 2
    _, inner = numpy.frexp(numpy.abs(right).max(axis=1))  # for each index that is summed over
    _, outer = numpy.frexp(numpy.abs(numpy.ldexp(left, inner)).max(axis=1, keepdims=True))
    q_left = numpy.rint(numpy.ldexp(left, inner - outer + bits))
    q_right = numpy.rint(numpy.ldexp(right, bits - inner[:, None]))
    result: NDArray[np.float64] = q_left @ q_right
    result *= numpy.ldexp(1.0, outer - 2 * bits)
    return result
