"""Which weights of a matrix become zero, by the formulas of the papers. Matrices are (d, n) float32, row-major.

Nothing here is summed in an order that depends on the machine: the same weights and inputs give the same zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.tensors import Bytes
from fastllm.weights.pruning.options import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 128  # columns whose mask sparsegpt chooses together
_DAMPING = 0.01  # of the mean of H's diagonal, added to the diagonal
_ROWS = 1 << 20  # values of the rows that are looked at together


def smallest(scores: NDArray[np.floating], count: int) -> NDArray[np.bool_]:
    """Where the `count` smallest of each row of scores [rows, n] are; of equal ones, those that come first."""
    import numpy

    n = scores.shape[1]
    if count in (0, n):
        return numpy.full(scores.shape, count == n)
    largest = numpy.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    below = scores < largest
    equal = scores == largest
    room = count - below.sum(axis=1, keepdims=True)
    found: NDArray[np.bool_] = below | (equal & (equal.cumsum(axis=1, dtype=numpy.int32) <= room))
    return found


def magnitude(w: NDArray[np.float32], method: Method) -> NDArray[np.float32]:
    """The matrix without its smallest weights: round(share * d * n) of it, or two of each four neighbours."""
    import numpy

    assert method.share is not None
    rows = numpy.abs(w).reshape((-1, 4) if method.of_four else (1, -1))
    gone = smallest(rows, round(method.share * rows.shape[1])).reshape(w.shape)
    return numpy.where(gone, numpy.float32(0), w)


def threshold(w: NDArray[np.float32], method: Method) -> NDArray[np.float32]:
    """The matrix without the weights of which |w| < the threshold."""
    import numpy

    return numpy.where(numpy.abs(w) < method.threshold, numpy.float32(0), w)


def wanda(w: NDArray[np.float32], method: Method, squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """The matrix without the round(share * n) weights of each row, or two of each four neighbours, that matter least.

    squares [n]: the sum of each input's squares over the text. A weight matters by |w| * sqrt(squares) (Sun et al.,
    2023, https://arxiv.org/abs/2306.11695).
    """
    import numpy

    assert method.share is not None
    norms = numpy.sqrt(squares)
    out, step = w.copy(), max(1, _ROWS // w.shape[1])
    for begin in range(0, len(w), step):
        part = out[begin : begin + step]
        scores = numpy.abs(part) * norms
        rows = scores.reshape(-1, 4 if method.of_four else w.shape[1])
        part[smallest(rows, round(method.share * rows.shape[1])).reshape(part.shape)] = 0
    return out


class Inverse:
    """What sparsegpt needs of H, the sum of x x^T over a matrix's inputs x: H, damped, = U diag(importance) U^T.

    The paper works with the Cholesky factor R of H's inverse R^T R, R upper triangular. R = diag(importance)^-1/2 U^-1:
    importance_k is 1 / R_kk^2, what pruning a weight of column k costs once all later columns have made up for it, and
    row k of U^-1 is how they do, R_k / R_kk.
    """

    def __init__(self, h: Bytes, threads: int) -> None:
        """h: [n, n] f64, which is overwritten."""
        import numpy

        n = len(h)
        diagonal = h.diagonal().copy()
        self.dead = diagonal == 0  # inputs that are zero throughout the text: what they are multiplied by is free
        diagonal[self.dead] = 1
        h[numpy.diag_indices(n)] = diagonal + _DAMPING * math.fsum(diagonal) / n
        importance: Bytes = numpy.empty(n, numpy.float32)
        _core.factor(h, importance, threads=threads)
        self.importance: NDArray[np.float32] = importance
        self.upper: NDArray[np.float32] = h.astype(numpy.float32)  # [n, n], U above the diagonal

    def block(self, begin: int, end: int) -> NDArray[np.float32]:
        """A block on the diagonal of U^-1, which is the inverse of that block of U."""
        import numpy

        found = numpy.eye(end - begin)
        for k in reversed(range(end - begin - 1)):
            found[k] -= (self.upper[begin + k, begin + k + 1 : end, None] * found[k + 1 :]).sum(axis=0)
        return found.astype(numpy.float32)


def sparsegpt(w: NDArray[np.float32], method: Method, inverse: Inverse, *, threads: int) -> NDArray[np.float32]:
    """The matrix with weights set to zero, and the others changed such that its outputs change least.

    Frantar and Alistarh, 2023, https://arxiv.org/abs/2301.00774: columns are gone through in order, in blocks of 128.
    Of a block's weights, as the blocks before have changed them, round(share * size) are set to zero, those that cost
    least, w^2 * importance; or of each four neighbours of a row, when their turn comes, two. Later columns make up for
    what a column loses: those of its block at once, by U^-1; all others when their block comes, by U:

        column     0 ... begin - 1        begin ... k - 1     k      k + 1 ... end - 1        end ... n - 1
                   e = w - what it is     done                       -= lost_k U^-1[k]        still w
                   |________________________________________^
                          += (e U[:begin, block]) U^-1[block, block], at the start of the block
    """
    import numpy

    assert method.share is not None
    out = w.copy()
    out[:, inverse.dead] = 0
    errors = numpy.zeros_like(w)
    for begin in range(0, w.shape[1], BLOCK):
        end = min(begin + BLOCK, w.shape[1])
        start, later, costs = out[:, begin:end], inverse.block(begin, end), inverse.importance[begin:end]
        if begin:
            fed = _product(errors[:, :begin], inverse.upper[:begin, begin:end], threads)
            start = start + _product(fed, later, threads)
        block = start.T.copy()  # [columns, d]
        gone = numpy.zeros(block.shape, bool)
        if not method.of_four:
            scores = (start * start * costs).reshape(1, -1)
            gone[:] = smallest(scores, round(method.share * scores.size)).reshape(start.shape).T
        for k in range(end - begin):
            if method.of_four and k % 4 == 0:
                four = block[k : k + 4].T
                gone[k : k + 4] = smallest(four * four * costs[k : k + 4], 2).T
            lost = numpy.where(gone[k], block[k], numpy.float32(0))
            block[k] -= lost
            block[k + 1 :] -= later[k, k + 1 :, None] * lost
        errors[:, begin:end] = out[:, begin:end] - block.T
        out[:, begin:end] = block.T
    return out


def _product(x: NDArray[np.float32], m: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    """x @ m of x [d, n] and m [n, count], by the core's matrix product, which sums over n in ascending order."""
    import numpy

    (d, n), count = x.shape, m.shape[1]
    columns: Bytes = numpy.ascontiguousarray(m.T)
    rows: Bytes = numpy.ascontiguousarray(x)
    matrix = _core.pack("f32", count, n, "f32", memoryview(columns).cast("B"), threads=threads)
    out: Bytes = numpy.empty((d, count + -count % _core.LANES), numpy.float32)
    matrix.multiply(rows, out, threads=threads)
    found: NDArray[np.float32] = out[:, :count]
    return found
