"""Which type each matrix gets, so that a model takes a mean number of bits a weight (`convert --bits`).

What a matrix costs is measured: all others are q8, it alone takes its smallest type, and the model reads pieces of a
text, with activations of 15 bits so that their rounding does not drown it. The cost is the KL divergence from the model
that is all q8. Small errors of several matrices add up (Malinovskii et al., 2024, https://arxiv.org/abs/2411.17525), so
a sum of costs says what a choice of types will cost:

    bytes  ^  all in the largest type
           |      .--'            each step gives one unit its largest type: first the unit
           |    .'                whose cost is the most for each byte that the step takes
    budget |--+'- - - - - - -
           | /
           '--------------------> sum of the costs that are gone
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.errors import OptionError
from fastllm.families import Recipe
from fastllm.tensors import BLOCKS
from fastllm.weights.packing import Known, Plan, Progress, fill, plan, vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.weights.calibration import Calibration

LEAST, MOST = 4.5, 8.5  # bits of q4 and q8
_PIECES = 2  # of the text that the model reads
_ROWS = 128  # of a piece's logits, the last ones, that are compared
_PAIRS = {"attn.wk": "attn.wq", "ffn.w3": "ffn.w1", "experts.w3": "experts.w1"}  # take one type, and are measured once


def check(bits: object) -> None:
    """Raises OptionError unless `bits` are such as a weight can have."""
    if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not LEAST <= bits <= MOST:
        raise OptionError(f"bits must be a number from {LEAST} to {MOST}, the bits of q4 and q8, not {bits!r}")


class _Unit(NamedTuple):
    """Matrices that take their types together: small, or large at `nbytes` more. cost: of being small, in nats."""

    names: Sequence[str]
    nbytes: int
    cost: float


def choose(
    recipe: Recipe, bits: float, calibration: Calibration, *, pruned: bool, threads: int, progress: Progress
) -> dict[str, _core.Matrix]:
    """A recipe's matrices, packed, in types that together take at most `bits` for each weight.

    calibration: by which matrices are rounded to four bits; its text is what costs are measured with. pruned: as
    packing.plan's. Raises OptionError where the smallest types take more.
    """
    small, large = _plans(recipe, pruned)
    room = int(bits * sum(prod(p.shape) for p in large.values()) / 8) - sum(p.nbytes for p in small.values())
    if room < 0:
        least = 8 * sum(p.nbytes for p in small.values()) / sum(prod(p.shape) for p in large.values())
        raise OptionError(f"bits {bits:g} are too few: this model's matrices take {least:.3f} at least")
    units = _units(small, large)
    steps, done = 2 * len(units) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, steps)

    exact = {name: _packed(p, name, None, threads) for name, p in large.items()}
    meter = _Meter(recipe, exact, calibration.pieces, threads)
    step()
    rounded: dict[str, _core.Matrix] = {}
    for names in units:
        rounded |= {name: _packed(small[name], name, calibration.factors, threads) for name in names}
        step()
    costs = []
    for names in units:
        more = sum(large[name].nbytes - small[name].nbytes for name in names)
        costs.append(_Unit(names, more, meter.cost({name: rounded[name] for name in names})))
        step()
    for unit in sorted(costs, key=lambda unit: -unit.cost / unit.nbytes):
        if unit.nbytes <= room:
            room -= unit.nbytes
            for name in unit.names:
                del rounded[name]
    return exact | rounded


def _plans(recipe: Recipe, pruned: bool) -> tuple[dict[str, Plan], dict[str, Plan]]:
    """The smallest and the largest type that each matrix may get.

    Blocks of four bits are exact and smaller than q8: they are the largest, and the smallest too where they are q4.
    """
    kept, four, eight = (plan(recipe, dtype, pruned=pruned) for dtype in (None, "q4", "q8"))
    small, large = {}, {}
    for name, found in eight.items():
        fixed = found.dtype != "q8"  # routers, positions
        in_blocks = kept[name].source.dtype in BLOCKS and kept[name].dtype in ("q4", "q4m")
        small[name] = found if fixed else four[name]._replace(dtype="q4")
        large[name] = kept[name] if in_blocks and not fixed else found
    return small, large


def _units(small: Mapping[str, Plan], large: Mapping[str, Plan]) -> list[list[str]]:
    """The names of the matrices that have a choice, by unit, in the order in which a forward reads them."""
    units: dict[str, list[str]] = {}
    for name in large:
        if small[name].nbytes < large[name].nbytes:
            layer, part = re.fullmatch(r"(layers\.\d+\.)?(.*)", name).groups()  # type: ignore[union-attr]
            units.setdefault(f"{layer}{_PAIRS.get(part, part)}", []).append(name)
    return list(units.values())


def _packed(matrix: Plan, name: str, known: Known | None, threads: int) -> _core.Matrix:
    memory = memoryview(_core.Buffer(matrix.nbytes))
    fill(matrix, memory, threads=threads, name=name, known=known)
    return matrix.bind(memory)


class _Meter:
    """Measures what matrices in other types cost a model."""

    def __init__(
        self, recipe: Recipe, exact: Mapping[str, _core.Matrix], pieces: Sequence[list[int]], threads: int
    ) -> None:
        """exact: the matrices of the model that others are compared with."""
        self._config, self._exact, self._threads = recipe.config._replace(precise=True), exact, threads
        self._vectors = vectors(recipe)
        self._pieces = pieces[:: -(-len(pieces) // _PIECES)]
        self._logits = self._run({})

    def cost(self, changed: Mapping[str, _core.Matrix]) -> float:
        """The mean KL divergence in nats, to second order: half of the variance of the logits' changes under the
        exact model's probabilities.

        To three digits: the last ones of numpy's exponentials are not the same on all machines.
        """
        import numpy

        found = []
        for exact, other in zip(self._logits, self._run(changed), strict=True):
            p = numpy.exp(exact.astype(numpy.float64) - exact.max())
            p /= p.sum()
            change = other.astype(numpy.float64) - exact
            change -= (p * change).sum()
            found.append((p * change * change).sum() / 2)
        return float(f"{numpy.mean(found):.3g}")

    def _run(self, changed: Mapping[str, _core.Matrix]) -> NDArray[np.float32]:
        """The logits [rows, vocabulary] of the model with some matrices changed."""
        import numpy

        model = _core.Model(self._config, {**self._vectors, **self._exact, **changed})
        cache = _core.KVCache(model)
        spans: list[tuple[_core.Sequence, Sequence[int], int]] = [
            (cache.sequence(), piece, min(_ROWS, len(piece))) for piece in self._pieces
        ]
        rows = sum(count for *_, count in spans)
        logits = model.logits(rows)
        model.forward(spans, logits, threads=self._threads)
        found: NDArray[np.float32] = numpy.frombuffer(memoryview(logits), numpy.float32).reshape(rows, -1)
        return found[:, : self._config.vocab_size]
