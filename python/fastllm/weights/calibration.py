"""Calibration: which errors of four-bit weights a model's outputs show, learned from the inputs that a text gives.

A row w of a matrix is to be rounded to q such that the outputs w . x of the text's inputs x change least:

    sum over x of ((w - q) . x)^2  =  (w - q) H (w - q)^T,        H = sum over x of x x^T   [n, n]

With H = U D U^T, U unit upper triangular and D diagonal, that is the sum over columns k of

    D_k * (w_k + sum over j < k of e_j U_jk  -  q_k)^2,           e = w - q

so columns are rounded in order, each to the value nearest to its weight plus the feedback of the errors before it:

    column     0 ... k - 1          k                       k + 1 ... n - 1
               rounded, errors e    w_k + e . U[:k, k]      still to come

This is GPTQ (Frantar et al., 2022, https://arxiv.org/abs/2210.17323) in the form of LDLQ (Chee et al., 2023,
https://arxiv.org/abs/2307.13304). csrc/q4.c does the rounding, with D as the weights of the search for scales, and then
improves q column by column, with H itself. Before, a little is added to H's diagonal (damping), since a text does not
show all inputs that there are; it also makes D positive.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError
from fastllm.families import Recipe
from fastllm.progress import note
from fastllm.tensors import SIZES, Bytes
from fastllm.weights.layers import Layer, embedded
from fastllm.weights.packing import Factors, Known, Plan, Progress
from fastllm.weights.text import Text, default

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.weights.source import Opened

_PIECE = 256  # tokens of a piece of the text
_BATCH = 1024  # tokens whose products are summed at once
_BLOCK = 256  # columns of H that are computed at once
_DAMPING = 0.01  # of the mean of H's diagonal, added to the diagonal
# A matrix's name in its layer -> which of the layer's inputs it reads: 0 to 3 are those of attention, of wo, of the
# feed-forward, of w2; 4 those of attention as far as values are attended to; 5 is what the head reads.
_INPUTS = {"attn.wq": 0, "attn.wk": 0, "attn.wv": 4, "attn.wo": 1, "ffn.w1": 2, "ffn.w3": 2, "ffn.w2": 3}
_AFTER = 5


class Calibration:
    """The H of a model's matrices, from the inputs they get while the model, in q8, reads a text.

    The text goes through one layer after the other: its hidden states, and one layer, are in memory. So `factors` is
    asked for matrices in the order of layers; for an earlier layer the text is read again from its start. Every sum has
    a fixed order: the same model and text give the same bits on any machine. Experts, which see few tokens each, are
    left out.
    """

    def __init__(self, recipe: Recipe, text: Text, *, threads: int, step: Callable[[], None] = lambda: None) -> None:
        """step: called after each layer that the text has gone through."""
        self._recipe, self._threads, self._step = recipe, threads, step
        self.pieces = text.pieces(min(_PIECE, recipe.config.max_seq))
        self._next = 0  # the layer that the stream is before
        self._stream: list[NDArray[np.float32]] = []  # of each piece
        self._sums: dict[int, NDArray[np.float64]] = {}  # input -> H, of the layer before _next
        self._last: tuple[tuple[int, int], Factors] | None = None

    def factors(self, name: str) -> Factors | None:
        """The factors of the matrix of that canonical name; None for one whose inputs are not gathered."""
        if (place := self._place(name)) is None:
            return None
        if self._last is None or self._last[0] != place:
            self._last = None  # frees it
            self._last = place, self._factored(self._products(*place))
        return self._last[1]

    def _place(self, name: str) -> tuple[int, int] | None:
        """The layer, and which of its inputs, a matrix reads."""
        c, matrices = self._recipe.config, self._recipe.matrices
        if name == ("head" if "head" in matrices else "embed"):  # reads the stream after the last norm
            return None if not c.head or "head.dense" in matrices else (c.n_layers - 1, _AFTER)
        found = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        if not found or found[2] not in _INPUTS or (found[2].startswith("ffn.") and c.layer_moe(int(found[1]))):
            return None
        return int(found[1]), _INPUTS[found[2]]

    def _products(self, layer: int, place: int) -> NDArray[np.float64]:
        """The H of an input of a layer, which is given away."""
        if layer < self._next - 1 or (layer == self._next - 1 and place not in self._sums):
            self._next = 0
        if self._next == 0:
            self._stream = embedded(self._recipe, self.pieces, dtype="q8", threads=self._threads)
        while self._next <= layer:
            self._run(gather=self._next == layer)
        return self._sums.pop(place)

    def _run(self, *, gather: bool) -> None:
        """Runs the stream through the next layer."""
        import numpy

        layer = Layer(self._recipe, self._next, threads=self._threads, dtype="q8")
        self._sums = {}
        seen: list[list[NDArray[np.float32]]] = []
        for i, x in enumerate(self._stream):
            found = layer.all(x)
            self._stream[i] = found.after
            seen.append([*found.inputs, found.inputs[0] * _attended(found.attention), found.normed])
            if gather and (i + 1 == len(self._stream) or sum(len(x[0]) for x in seen) >= _BATCH):
                for place, parts in enumerate(zip(*seen, strict=True)):
                    if self._is_read(place):
                        total = products(numpy.concatenate(parts), self._threads)
                        self._sums[place] = self._sums[place] + total if place in self._sums else total
                seen = []
        self._next += 1
        self._step()

    def _is_read(self, place: int) -> bool:
        """Whether a matrix of the next layer reads this input."""
        c = self._recipe.config
        if place == _AFTER:
            return self._next == c.n_layers - 1 and c.head
        return place in (0, 1, 4) or not c.layer_moe(self._next)

    def _factored(self, h: Bytes) -> Factors:
        import numpy

        mean = math.fsum(h.diagonal()) / len(h)
        if not math.isfinite(mean):
            raise CheckpointError("the calibration text leads to values that are not finite")
        h[numpy.diag_indices(len(h))] += _DAMPING * mean or 1
        products = h.astype(numpy.float32)
        importance: Bytes = numpy.empty(len(h), numpy.float32)
        _core.factor(h, importance, threads=self._threads)
        return Factors(importance, h.T.astype(numpy.float32, order="C"), products)


def _attended(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of each token's value goes into the outputs of attention [heads * t, t]: [t, 1].

    It is the root of the sum of squares: errors of the values of several tokens are taken for independent. In a trained
    model most attention goes to very few tokens, such as the first of a text.
    """
    import numpy

    sums = numpy.square(attention, dtype=numpy.float64).sum(axis=0)  # over rows in order, on any machine
    roots: NDArray[np.float32] = numpy.sqrt(sums).astype(numpy.float32)
    return roots[:, None]


def is_rounded(plans: Iterable[Plan]) -> bool:
    """Whether packing by these plans rounds floats to four bits."""
    return any(plan.dtype == "q4" and plan.source.dtype in SIZES for plan in plans)


def calibrated(
    opened: Opened, plans: Mapping[str, Plan], path: Path, text: Text | None, *, threads: int, progress: Progress
) -> tuple[Known | None, Progress]:
    """What packing a checkpoint by `plans` is to know of its inputs, if that rounds to four bits, and the progress of
    packing, of which reading the text is then half.

    path: the checkpoint's, for messages. text: None for our own; of a model that this says nothing about a line on
    stderr tells that it is not calibrated.
    """
    if not is_rounded(plans.values()):
        return None, progress
    found = default(opened) if text is None else text
    if isinstance(found, str):
        note(f"{path} is packed to four bits without calibration: {found}")
        return None, progress
    total, layers, read, written = sum(plan.nbytes for plan in plans.values()), opened.recipe.config.n_layers, 0, 0

    def tell() -> None:
        seen = total if written == total else total * read // layers  # the last layers may have nothing to calibrate
        progress(seen + written, 2 * total)

    def step() -> None:
        nonlocal read
        read += 1
        tell()

    def packed(done: int, _: int) -> None:
        nonlocal written
        written = done
        tell()

    return Calibration(opened.recipe, found, threads=threads, step=step).factors, packed


def products(x: NDArray[np.float32], threads: int) -> NDArray[np.float64]:
    """x^T x of x [t, n], by the core's matrix product, which sums over t in ascending order."""
    import numpy

    t, n = x.shape
    columns: Bytes = numpy.ascontiguousarray(x.T)
    found: NDArray[np.float64] = numpy.empty((n, n))
    for begin in range(0, n, _BLOCK):  # what lies left of the diagonal is the same as what lies above it
        width = min(_BLOCK, n - begin)
        block = columns[begin : begin + width]
        matrix = _core.pack("f32", width, t, "f32", memoryview(block).cast("B"), threads=threads)
        out: Bytes = numpy.empty((n - begin, width + -width % _core.LANES), numpy.float32)
        matrix.multiply(columns[begin:], out, threads=threads)
        found[begin:, begin : begin + width] = out[:, :width]
        found[begin : begin + width, begin:] = out[:, :width].T
    return found
