"""What a text shows of the inputs of a layer's matrices: their squares for wanda, their products for sparsegpt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastllm.errors import OptionError
from fastllm.families import Recipe
from fastllm.weights.calibration import products
from fastllm.weights.layers import Layer, expert_hidden, routed
from fastllm.weights.pruning.masks import Inverse
from fastllm.weights.pruning.options import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The linear layers of attention and feed-forward -> which of Layer.inputs each is multiplied with.
PLACES = {"attn.wq": 0, "attn.wk": 0, "attn.wv": 0, "attn.wo": 1, "ffn.w1": 2, "ffn.w3": 2, "ffn.w2": 3}


class Inputs:
    """The inputs of a layer's matrices over a text, whose stream before the layer is [t, dim] for each piece."""

    def __init__(
        self, recipe: Recipe, index: int, stream: Sequence[NDArray[np.float32]], method: Method, *, threads: int
    ) -> None:
        import numpy

        self._recipe, self._index, self._method, self._threads = recipe, index, method, threads
        layer, rows = Layer(recipe, index, threads=threads, experts=False), []
        self._sums: dict[int, NDArray[np.float64]] = {}
        for x in stream:
            inputs = layer.inputs(x)
            for place, found in enumerate(inputs):
                total = self._sum(found)
                self._sums[place] = self._sums[place] + total if place in self._sums else total
            rows.append(inputs[2])
        self._last: tuple[int, Inverse] | None = None
        self._rows = self._goes = None
        if recipe.config.layer_moe(index):
            self._rows = numpy.concatenate(rows)
            self._goes = routed(recipe, index, self._rows, threads=threads)

    def squares(self, part: str, expert: int | None) -> NDArray[np.float64]:
        """The sum of the squares of each input of a matrix, [n]. part: its name in the layer. expert: of which."""
        return self._sums[PLACES[part]] if expert is None else self._sum(self._of_expert(part, expert))

    def inverse(self, part: str, expert: int | None) -> Inverse:
        """The same of the products of each two inputs, as sparsegpt needs it."""
        if expert is not None:
            return Inverse(self._sum(self._of_expert(part, expert)), self._threads)
        place = PLACES[part]
        if self._last is None or self._last[0] != place:
            self._last = place, Inverse(self._sums.pop(place), self._threads)
        return self._last[1]

    def _sum(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of the squares or the products of x [t, n], in an order that does not depend on the machine. Raises
        OptionError where it is not finite."""
        import numpy

        if self._method.name == "sparsegpt":
            return finite(products(finite(x, self._index), self._threads), self._index)
        return finite(numpy.square(x, dtype=numpy.float64).sum(axis=0), self._index)

    def _of_expert(self, part: str, expert: int) -> NDArray[np.float32]:
        """The inputs of an expert's matrix. One that the text never reaches is pruned as if all were alike."""
        import numpy

        assert self._rows is not None
        assert self._goes is not None
        x = self._rows[self._goes[:, expert]]
        if part == "experts.w2" and len(x):
            return expert_hidden(self._recipe, self._index, expert, x, threads=self._threads)
        c = self._recipe.config
        return x if len(x) else numpy.eye(c.expert_dim if part == "experts.w2" else c.dim, dtype=numpy.float32)


def finite(x: NDArray[Any], layer: int) -> NDArray[Any]:
    """x, which a text has given in a layer. Raises OptionError unless all of it is finite."""
    import numpy

    if not numpy.isfinite(x).all():
        raise OptionError(f"the calibration text cannot be used: layer {layer} makes values of it that are not finite")
    return x
