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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.errors import OptionError
from fastllm.tensors import Bytes
from fastllm.weights import store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST, _MOST = 256, 8192  # tokens of a text: fewer say nothing, more say little more and are sampled
_PIECE = 256  # tokens of a sequence
_BATCH = 1024  # tokens of a forward
_MEMORY = 2 << 30  # bytes of the sums H that are gathered in one pass over the text; those of one layer always are
_DAMPING = 0.01  # of the mean of H's diagonal, added to the diagonal
# A matrix's name in its layer -> which of the layer's four inputs it reads: those of attention, of wo, of the
# feed-forward, of w2.
_INPUTS = {"attn.wq": 0, "attn.wk": 0, "attn.wv": 0, "attn.wo": 1, "ffn.w1": 2, "ffn.w3": 2, "ffn.w2": 3}


class Factors(NamedTuple):
    """A matrix's damped H = U D U^T, as fl_source in csrc/fastllm.h takes it."""

    importance: NDArray[np.float32]  # [n], D
    feedback: NDArray[np.float32]  # [n, n], U^T, of which what lies below the diagonal is read
    products: NDArray[np.float32]  # [n, n], H


class Calibration:
    """The H of a model's matrices, from the inputs they get while the model reads a text.

    The text is read in pieces of _PIECE tokens; of one longer than _MOST, every n-th piece. As many layers as _MEMORY
    allows are gathered in one pass, so `factors` is fast for matrices in the order of layers. Every sum has a fixed
    order: the same model and text give the same bits on any machine. Experts, which see few tokens each, are left out.

    Raises OptionError for a text of too few tokens.
    """

    def __init__(self, stored: store.Stored, begin: Sequence[int], tokens: Sequence[int], *, threads: int) -> None:
        """stored: the model, packed as something finer than q4. begin: the tokens that its texts begin with, such as
        BOS. tokens: the text."""
        self._config, self._threads = stored.config, threads
        self._model = _core.Model(stored.config, dict(stored.tensors))
        self._pieces = split(begin, tokens, min(_PIECE, stored.config.max_seq))
        self._sums: dict[int, NDArray[np.float64]] = {}  # 4 * layer + input -> H
        self._last: tuple[int, Factors] | None = None

    def factors(self, name: str) -> Factors | None:
        """The factors of the matrix of that canonical name; None for one whose inputs are not gathered."""
        import numpy

        found = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        if not found or found[2] not in _INPUTS:
            return None
        layer = int(found[1])
        if found[2].startswith("ffn.") and self._config.layer_moe(layer):
            return None
        place = 4 * layer + _INPUTS[found[2]]
        if self._last is None or self._last[0] != place:
            if place not in self._sums:
                self._sums = self._gather(layer)
            h: Bytes = self._sums.pop(place)
            h[numpy.diag_indices(len(h))] += _DAMPING * math.fsum(h.diagonal()) / len(h) or 1
            products = h.astype(numpy.float32)
            importance: Bytes = numpy.empty(len(h), numpy.float32)
            _core.factor(h, importance, threads=self._threads)
            self._last = place, Factors(importance, h.T.astype(numpy.float32, order="C"), products)
        return self._last[1]

    def _widths(self, layer: int) -> dict[int, int]:
        """The places, 4 * layer + input, where a layer's inputs are gathered, and their widths."""
        c = self._config
        widths = {4 * layer: c.dim, 4 * layer + 1: c.n_heads * c.head_dim}
        if not c.layer_moe(layer):
            widths |= {4 * layer + 2: c.dim, 4 * layer + 3: c.hidden_dim}
        return widths

    def _gather(self, layer: int) -> dict[int, NDArray[np.float64]]:
        """The H of `layer` and of as many layers after it as _MEMORY allows."""
        import numpy

        widths = self._widths(layer)
        for later in range(layer + 1, self._config.n_layers):
            more = widths | self._widths(later)
            if sum(8 * n * n for n in more.values()) > _MEMORY:
                break
            widths = more
        sums = {place: numpy.zeros((n, n)) for place, n in widths.items()}
        cache, widest = _core.KVCache(self._model), max(*widths.values(), self._config.hidden_dim)
        for pieces in _batches(self._pieces):
            tokens = sum(map(len, pieces))
            buffers = {place: _core.Buffer(tokens * widest * 4) for place in widths}
            spans: list[tuple[_core.Sequence, Sequence[int], int]] = [(cache.sequence(), p, 0) for p in pieces]
            self._model.forward(spans, threads=self._threads, inputs=buffers)
            for place, n in widths.items():
                inputs = numpy.frombuffer(memoryview(buffers[place]), numpy.float32)[: tokens * n].reshape(tokens, n)
                sums[place] += products(inputs, self._threads)
        return sums


def split(begin: Sequence[int], tokens: Sequence[int], longest: int) -> list[list[int]]:
    """Pieces from all over a text, each after `begin`, of `longest` tokens at most. Raises OptionError."""
    if len(tokens) < _LEAST:
        raise OptionError(f"the calibration text has {len(tokens)} tokens: it needs {_LEAST} at least")
    room = longest - len(begin)
    if room < 1:
        raise OptionError(f"a context of {longest} tokens is too short to calibrate with")
    whole = [[*begin, *tokens[at : at + room]] for at in range(0, len(tokens), room)]
    step = max(1, -(-len(tokens) // _MOST))
    return whole[::step]


def _batches(pieces: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """The pieces of each forward."""
    count = max(1, _BATCH // len(pieces[0]))
    for at in range(0, len(pieces), count):
        yield list(pieces[at : at + count])


def products(x: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    """x^T x of x [t, n], by the core's matrix product, which sums over t in ascending order."""
    import numpy

    t, n = x.shape
    columns: Bytes = numpy.ascontiguousarray(x.T)
    matrix = _core.pack("f32", n, t, "f32", memoryview(columns).cast("B"), threads=threads)
    out: Bytes = numpy.empty((n, n + -n % _core.LANES), numpy.float32)
    matrix.multiply(columns, out, threads=threads)
    products: NDArray[np.float32] = out[:, :n]
    return products
