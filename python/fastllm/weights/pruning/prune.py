"""Prunes a recipe, layer after layer, each by the inputs that the pruned layers before it give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from fastllm.errors import CheckpointError, OptionError
from fastllm.families import Recipe
from fastllm.tensors import at, floats
from fastllm.weights.layers import LastLayer, Layer, embedded
from fastllm.weights.pruning import masks
from fastllm.weights.pruning.inputs import PLACES, Inputs, finite
from fastllm.weights.pruning.options import Method
from fastllm.weights.pruning.scratch import Scratch
from fastllm.weights.store import Pruning
from fastllm.weights.text import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LINEAR = (*PLACES, "experts.w1", "experts.w3", "experts.w2")  # what is pruned of a layer, by its name there
_PIECE = 256  # tokens of a piece of the text
_HELD_OUT = 4  # one of so many pieces is held out, to measure with
_MEASURED = 8  # pieces that are measured with at most
_ROWS = 32  # of logits that are compared at once


class Pruner:
    """Prunes one recipe: drops layers, then prunes the others, then measures what that has changed.

    method, drop: what to do; None, 0: not that. scratch: where pruned matrices lie until they are packed. dtype: what
    embedding and head are packed as while the text is run; None for their own type. step: called after each layer that
    was pruned or run, `steps` times in all. Raises OptionError for what this model cannot have.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        method: Method | None,
        drop: int,
        text: Text | None,
        scratch: Scratch,
        dtype: str | None,
        threads: int,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._recipe, self._method, self._drop = recipe, method, drop
        self._scratch, self._dtype, self._threads, self._step = scratch, dtype, threads, step
        if drop >= recipe.config.n_layers:
            raise OptionError(f"drop_layers {drop} leaves nothing of a model of {recipe.config.n_layers} layers")
        if method is not None and method.of_four:
            for name, shape, _ in recipe.config.matrices():
                if name in recipe.matrices and name.partition(".")[2].partition(".")[2] in _LINEAR and shape[-1] % 4:
                    raise OptionError(f"prune {method} needs rows of fours: {name} has {shape[-1]} columns")
        self._learn: list[list[int]] = []
        self._held: list[list[int]] = []
        if text is not None:
            longest = min(_PIECE, recipe.config.max_seq, len(text.begin) + len(text.tokens) // _HELD_OUT)
            pieces = text.pieces(longest)  # _HELD_OUT at least
            learns = bool(drop) or (method is not None and method.learns)
            for i, piece in enumerate(pieces):
                (self._learn if learns and i % _HELD_OUT else self._held).append(piece)
            self._held = self._held[:: -(-len(self._held) // _MEASURED)]

    @property
    def steps(self) -> int:
        """How often `step` is called."""
        n, kept = self._recipe.config.n_layers, self._recipe.config.n_layers - self._drop
        measured = n + kept if self._held and self._recipe.config.head else 0
        return (n if self._drop else 0) + (kept if self._method else 0) + measured

    def run(self) -> tuple[Recipe, Pruning]:
        """The pruned recipe, and what was done."""
        dropped = self._least_influential() if self._drop else ()
        recipe, zeros = without_layers(self._recipe, dropped), None
        if self._method is not None:
            recipe, zeros = self._pruned(recipe, self._method)
        kl = None
        if self._held and recipe.config.head:
            kl = self._divergence(recipe)
        return recipe, Pruning(None if self._method is None else str(self._method), zeros, dropped, kl)

    # ---- layers that go

    def _least_influential(self) -> tuple[int, ...]:
        """The layers of the least block influence (Men et al., 2024, https://arxiv.org/abs/2403.03853), in order: of 1
        minus the mean cosine of the stream before and after the layer."""
        import numpy

        influence: list[float] = []
        stream = self._stream(self._recipe, self._learn)
        for index in range(self._recipe.config.n_layers):
            after = self._after(self._recipe, index, stream)
            cosines = [_cosines(x, y) for x, y in zip(stream, after, strict=True)]
            influence.append(1 - float(numpy.concatenate(cosines).mean()))
            stream = after
            self._step()
        return tuple(sorted(sorted(range(len(influence)), key=influence.__getitem__)[: self._drop]))

    # ---- weights that go

    def _pruned(self, recipe: Recipe, method: Method) -> tuple[Recipe, float]:
        """The recipe with its linear layers pruned, and the share of their weights that is zero."""
        zeros = size = 0
        stream = self._stream(recipe, self._learn) if method.learns else []

        def parts(index: int, part: str, inputs: Inputs | None) -> Iterator[NDArray[np.float32]]:
            """A matrix, or each of a stack, pruned."""
            import numpy

            nonlocal zeros
            name = f"layers.{index}.{part}"
            tensor = recipe.matrices[name].tensor
            stack = len(tensor.shape) == 3
            for i in range(tensor.shape[0] if stack else 1):
                w = floats(at(tensor, i) if stack else tensor)
                if not numpy.isfinite(w).all():
                    raise CheckpointError(f"{name} has weights that are not finite")
                w = self._matrix(w, method, part, inputs, i if stack else None)
                zeros += w.size - int(numpy.count_nonzero(w))
                yield w

        for index in range(recipe.config.n_layers):
            inputs = Inputs(recipe, index, stream, method, threads=self._threads) if method.learns else None
            matrices = dict(recipe.matrices)
            for part in _LINEAR:
                name = f"layers.{index}.{part}"
                if (weight := recipe.matrices.get(name)) is not None:
                    matrices[name] = weight._replace(
                        tensor=self._scratch.keep(weight.tensor, parts(index, part, inputs))
                    )
                    size += prod(weight.tensor.shape)
            recipe = recipe._replace(matrices=matrices)
            if method.learns:
                stream = self._after(recipe, index, stream)
            self._step()
        return recipe, zeros / size

    def _matrix(
        self, w: NDArray[np.float32], method: Method, part: str, inputs: Inputs | None, expert: int | None
    ) -> NDArray[np.float32]:
        """A matrix w [d, n] pruned. part: its name in its layer."""
        if inputs is None:
            return masks.threshold(w, method) if method.name == "threshold" else masks.magnitude(w, method)
        if method.name == "wanda":
            return masks.wanda(w, method, inputs.squares(part, expert))
        return masks.sparsegpt(w, method, inputs.inverse(part, expert), threads=self._threads)

    # ---- the text

    def _stream(self, recipe: Recipe, pieces: Sequence[list[int]]) -> list[NDArray[np.float32]]:
        return embedded(recipe, pieces, dtype=self._dtype, threads=self._threads)

    def _after(self, recipe: Recipe, index: int, stream: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        layer = Layer(recipe, index, threads=self._threads)
        return [finite(layer.run(x), index) for x in stream]

    def _divergence(self, recipe: Recipe) -> float:
        """The mean KL divergence of `recipe` from the unpruned one over the pieces that are held out, in nats.

        To three digits: the last ones of numpy's exponentials are not the same on all machines.
        """
        import numpy

        ends = []
        for model in (self._recipe, recipe):
            stream = self._stream(model, self._held)
            for index in range(model.config.n_layers - 1):
                stream = self._after(model, index, stream)
                self._step()
            ends.append((LastLayer(model, dtype=self._dtype, threads=self._threads), stream))
            self._step()
        (exact, before), (pruned, after) = ends
        last = self._recipe.config.n_layers - 1
        found = [
            _kl(finite(p[i : i + _ROWS], last), finite(q[i : i + _ROWS], last))
            for p, q in ((exact.logits(x), pruned.logits(y)) for x, y in zip(before, after, strict=True))
            for i in range(0, len(p), _ROWS)
        ]
        return float(f"{numpy.concatenate(found).mean():.3g}")


def without_layers(recipe: Recipe, dropped: Sequence[int]) -> Recipe:
    """The recipe without some layers."""
    if not dropped:
        return recipe
    c = recipe.config
    kept = [index for index in range(c.n_layers) if index not in dropped]
    lists: dict[str, Any] = {
        name: tuple(getattr(c, name)[i] for i in kept) for name in ("windows", "ropes", "moe") if getattr(c, name)
    }
    config = c._replace(n_layers=len(kept), **lists)
    places = {old: new for new, old in enumerate(kept)}
    known = {name for name, *_ in (*config.matrices(), *config.vectors())}  # a rotation may have gone with its layers

    def of_kept(tensors: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, tensor in tensors.items():
            if (layer := re.fullmatch(r"layers\.(\d+)\.(.*)", name)) is None:
                found[name] = tensor
            elif int(layer[1]) in places:
                found[f"layers.{places[int(layer[1])]}.{layer[2]}"] = tensor
        return {name: tensor for name, tensor in found.items() if name in known}

    return recipe._replace(config=config, matrices=of_kept(recipe.matrices), vectors=of_kept(recipe.vectors))


def _cosines(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row of x with that of y, [t]; 1 where one is zero."""
    import numpy

    a, b = x.astype(numpy.float64), y.astype(numpy.float64)
    norms = numpy.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return numpy.where(norms > 0, (a * b).sum(axis=1) / numpy.where(norms > 0, norms, 1), 1.0)


def _kl(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of each row of logits, [t], in nats."""
    import numpy

    logs = []
    for logits in (p, q):
        x = logits.astype(numpy.float64) - logits.max(axis=1, keepdims=True)
        logs.append(x - numpy.log(numpy.exp(x).sum(axis=1, keepdims=True)))
    found: NDArray[np.float64] = (numpy.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    return found
