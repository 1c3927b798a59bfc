"""From a recipe's tensors to the panels the core computes with, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.errors import CheckpointError
from fastllm.families import Recipe, Weight
from fastllm.tensors import SIZES, Tensor
from fastllm.weights import store

if TYPE_CHECKING:
    from fastllm.weights.calibration import Calibration

Progress = Callable[[int, int], None]  # bytes packed so far, bytes in all

_NARROW = 768  # width below which four bits cost a model too much
_CHUNK = 2 << 20  # bytes of a source matrix that are read and packed at once: what the caches hold


class Plan(NamedTuple):
    """A matrix, or a stack of them, as it will be packed."""

    weight: Weight
    dtype: str
    shape: tuple[int, ...]  # (d, n) or (experts, d, n)

    @property
    def nbytes(self) -> int:
        *stack, d, n = self.shape
        return _core.matrix_bytes(self.dtype, d, n) * prod(stack)

    def bind(self, data: memoryview) -> _core.Matrix:
        *stack, d, n = self.shape
        return _core.Matrix(self.dtype, d, n, data, count=stack[0] if stack else None)


def plan(recipe: Recipe, dtype: str | None) -> dict[str, Plan]:
    """How each matrix is packed, in the order a token reads them; dtype None is what holds its values exactly.

    Raises CheckpointError for a matrix that is missing, of a wrong shape, or without a place in the config.
    """
    _check_names(recipe.matrices, {name for name, *_ in recipe.config.matrices()})
    plans = {}
    for name, shape, required in recipe.config.matrices():
        if name not in recipe.matrices:
            if required:
                raise CheckpointError(f"it has no matrix {name}")
            continue
        weight = recipe.matrices[name]
        if weight.tensor.shape != shape:
            raise CheckpointError(f"{name} has the shape {weight.tensor.shape}, the config needs {shape}")
        plans[name] = Plan(weight, _packed_dtype(recipe.config, name, weight.tensor, dtype), shape)
    return plans


def _check_names(found: Iterable[str], known: set[str]) -> None:
    """What the core would not look at would be left out in silence."""
    for name in found:
        if name not in known:
            raise CheckpointError(f"{name} has no place in a model of its config")


def _packed_dtype(config: Config, name: str, tensor: Tensor, dtype: str | None) -> str:
    """What a matrix is stored as. Routers and gates are always f32; a table of positions is never int8."""
    if name.endswith((".router", ".ffn.gate")):
        return "f32"
    kept = _kept_dtype(tensor)
    if name == "positions" and dtype in ("q8", "q4"):
        return "f16" if kept == "q8_f32" else kept
    if dtype == "q4" and _is_sensitive(config, name):
        return "q8"
    return dtype or kept


def _is_sensitive(config: Config, name: str) -> bool:
    """Whether q4 keeps a matrix as q8: head and embedding, and the last layer's wv and w2.

    In models narrower than 768, which suffer most, all of the last layer, every wv, and w2 of the first layer and of
    the last but one.
    """
    if not name.startswith("layers."):
        return True
    _, layer, part = name.split(".", 2)
    last = int(layer) == config.n_layers - 1
    if config.dim < _NARROW:
        return last or part == "attn.wv" or (part == "ffn.w2" and int(layer) in (0, config.n_layers - 2))
    return last and part in ("attn.wv", "ffn.w2")


def _kept_dtype(tensor: Tensor) -> str:
    """The type that holds a tensor's values exactly.

    int8 with float scales stays as it is where its groups are whole groups of ours; otherwise f32 holds the same
    weights.
    """
    if tensor.dtype == "q8_f32" and (tensor.group % _core.GROUP or tensor.shape[-1] % tensor.group):
        return "f32"
    return tensor.dtype


class Rows(NamedTuple):
    """Rows begin .. end of a matrix, which make whole panels (but for the last), and the bytes they take packed."""

    begin: int
    end: int
    nbytes: int


def chunks(matrix: Plan) -> Iterator[Rows]:
    """A matrix or stack in pieces of its rows that are packed at once. Their bytes lie one after the other."""
    tensor = matrix.weight.tensor
    *stack, d, n = matrix.shape
    most = max(_core.LANES, _CHUNK // (n * SIZES[tensor.dtype]) // _core.LANES * _core.LANES)
    if matrix.weight.rows is not None or tensor.scales is not None:
        most = d
    for first in range(0, prod(stack) * d, d):
        for begin in range(0, d, most):
            end = min(begin + most, d)
            yield Rows(first + begin, first + end, _core.matrix_bytes(matrix.dtype, end - begin, n))


def pack(
    matrix: Plan, rows: Rows, out: memoryview, *, threads: int, name: str, calibration: Calibration | None = None
) -> None:
    """Packs some rows into `out`; four-bit ones by what a calibration says of the matrix."""
    tensor = matrix.weight.tensor
    factors = calibration.factors(name) if calibration and matrix.dtype == "q4" else None
    _core.pack(
        matrix.dtype,
        rows.end - rows.begin,
        matrix.shape[-1],
        tensor.dtype,
        memoryview(tensor.read(rows.begin, rows.end)).cast("B"),
        scales=tensor.scales,
        group=tensor.group,
        rows=matrix.weight.rows,
        out=out,
        threads=threads,
        name=name,
        **(factors._asdict() if factors else {}),
    )


def assemble(recipe: Recipe, *, dtype: str | None, threads: int, progress: Progress | None = None) -> store.Stored:
    """Packs a recipe's weights into one stretch of memory, in the order a token reads them."""
    plans = plan(recipe, dtype)
    total, done = sum(p.nbytes for p in plans.values()), 0
    memory = memoryview(_core.Buffer(total))
    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    for name, matrix in plans.items():
        start = done
        for rows in chunks(matrix):
            pack(matrix, rows, memory[done : done + rows.nbytes], threads=threads, name=name)
            done += rows.nbytes
            if progress:
                progress(done, total)
        tensors[name] = matrix.bind(memory[start:done])
    return store.Stored.of(recipe, tensors | vectors(recipe))


def vectors(recipe: Recipe) -> dict[str, _core.Vector]:
    """The vectors, in the config's order.

    Raises CheckpointError for a vector that is missing, not finite, of a wrong length, or without a place in the
    config.
    """
    _check_names(recipe.vectors, {name for name, *_ in recipe.config.vectors()})
    found = {}
    for name, size, required in recipe.config.vectors():
        if name not in recipe.vectors:
            if required:
                raise CheckpointError(f"it has no vector {name}")
            continue
        values = memoryview(recipe.vectors[name]).cast("B")
        if len(values) != size * 4:
            raise CheckpointError(f"{name} has {len(values) // 4} values, the config needs {size}")
        found[name] = _core.Vector(values, name=name)
    return found
