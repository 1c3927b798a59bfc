"""What a text says of a model's weights: which of their errors the outputs would show."""

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

_LEAST, _MOST = 256, 8192  # tokens of a text: what says anything at all, and where more says little more
_PIECE = 256  # tokens that are read as one text
_BATCH = 1024  # tokens in one forward
_MEMORY = 2 << 30  # bytes of sums over inputs that are gathered at once, if they are those of one layer at least
_DAMPING = 0.01  # of the mean on a diagonal, added to it: a text does not say all
_INPUTS = {"attn.wq": 0, "attn.wk": 0, "attn.wv": 0, "attn.wo": 1, "ffn.w1": 2, "ffn.w3": 2, "ffn.w2": 3}


class Factors(NamedTuple):
    """The sum h of x x^T over a matrix's inputs x, damped, as U diag(importance) U^T: see fl_source."""

    importance: NDArray[np.float32]  # [n]
    feedback: NDArray[np.float32]  # [n, n], U^T below the diagonal
    products: NDArray[np.float32]  # [n, n], h


class Calibration:
    """The inputs of a model's matrices while it reads a text: for each the sum of x x^T, by which q4 is packed.

    Of a long text, pieces from all over it are read. Layers are gathered in order, some at a time. Every sum has one
    order, so the same model and text give the same bits on any machine. Experts are not looked at.

    Raises OptionError for a text of too few tokens.
    """

    def __init__(self, stored: store.Stored, begin: Sequence[int], tokens: Sequence[int], *, threads: int) -> None:
        """stored: the model, packed as something finer than q4. begin: what its texts begin with; tokens: the text."""
        self._config, self._threads = stored.config, threads
        self._model = _core.Model(stored.config, dict(stored.tensors))
        self._pieces = _pieces(begin, tokens, min(_PIECE, stored.config.max_seq))
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._last: tuple[int, Factors] | None = None

    def factors(self, name: str) -> Factors | None:
        """What is known of a matrix's inputs; None: nothing."""
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
        """The places of a layer where inputs are seen, and how wide they are."""
        c = self._config
        widths = {4 * layer: c.dim, 4 * layer + 1: c.n_heads * c.head_dim}
        if not c.layer_moe(layer):
            widths |= {4 * layer + 2: c.dim, 4 * layer + 3: c.hidden_dim}
        return widths

    def _gather(self, layer: int) -> dict[int, NDArray[np.float64]]:
        """The sums of as many layers from `layer` on as memory is meant for."""
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
                sums[place] += _products(inputs, self._threads)
        return sums


def _pieces(begin: Sequence[int], tokens: Sequence[int], longest: int) -> list[list[int]]:
    """Pieces of a text from all over it, each after what texts begin with."""
    if len(tokens) < _LEAST:
        raise OptionError(f"the calibration text has {len(tokens)} tokens: it needs {_LEAST} at least")
    room = longest - len(begin)
    if room < 1:
        raise OptionError(f"a context of {longest} tokens is too short to calibrate with")
    whole = [[*begin, *tokens[at : at + room]] for at in range(0, len(tokens), room)]
    step = max(1, -(-len(tokens) // _MOST))
    return whole[::step]


def _batches(pieces: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    count = max(1, _BATCH // len(pieces[0]))
    for at in range(0, len(pieces), count):
        yield list(pieces[at : at + count])


def _products(x: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    """x^T x of (t, n), each value summed over t in ascending order: the core's own matrix product."""
    import numpy

    t, n = x.shape
    columns: Bytes = numpy.ascontiguousarray(x.T)
    matrix = _core.pack("f32", n, t, "f32", memoryview(columns).cast("B"), threads=threads)
    out: Bytes = numpy.empty((n, n + -n % _core.LANES), numpy.float32)
    matrix.multiply(columns, out, threads=threads)
    products: NDArray[np.float32] = out[:, :n]
    return products
