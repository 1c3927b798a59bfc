"""From a recipe's tensors to the panels that the core computes with, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.errors import CheckpointError
from fastllm.families import Recipe, Weight
from fastllm.tensors import BLOCKS, SIZES, Bytes, Tensor, nbytes, unblocked
from fastllm.weights import store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]  # bytes packed so far, bytes in all

_NARROW = 768  # models with fewer channels keep more matrices than others as q8 in q4: see _is_sensitive
# What q4's codes stand for in pruned matrices: the core's own values, but for the inner ones, which make room for a 0.
# Lloyd's quantizer for weights of which half are zero would have +-19 beside it, and less squared error. But wanda and
# sparsegpt keep small weights of large inputs, which then become zero too: its KL is 5 % larger.
_PRUNED = (-127, -100, -78, -61, -47, -34, -22, -11, 0, 11, 22, 34, 47, 63, 81, 107)
_CHUNK = 2 << 20  # bytes of a tensor that are read and packed at once: the caches hold them


class Factors(NamedTuple):
    """What a calibration knows of a matrix's inputs: their damped H = U D U^T, as fl_source in csrc/fastllm.h takes it.

    See calibration.py.
    """

    importance: NDArray[np.float32]  # [n], D
    feedback: NDArray[np.float32]  # [n, n], U^T, of which what lies below the diagonal is read
    products: NDArray[np.float32]  # [n, n], H


Known = Callable[[str], Factors | None]  # by a matrix's canonical name; None: its inputs are not known


class Plan(NamedTuple):
    """How a matrix, or a stack of them, will be packed."""

    weight: Weight
    dtype: str
    shape: tuple[int, ...]  # (d, n) or (experts, d, n)
    pruned: bool = False  # then q4 has a 0

    @property
    def nbytes(self) -> int:
        """Bytes of its panels."""
        *stack, d, n = self.shape
        return _core.matrix_bytes(self.dtype, d, n) * prod(stack)

    @property
    def source(self) -> Tensor:
        """The tensor as it is read to be packed: blocks where those are moved into panels, else floats."""
        tensor = self.weight.tensor
        return tensor if tensor.dtype in BLOCKS and BLOCKS[tensor.dtype][2] == self.dtype else unblocked(tensor)

    @property
    def values(self) -> tuple[int, ...] | None:
        """Matrix.values, where it is not that of q4 matrices that are packed from floats."""
        if self.source.dtype in BLOCKS:
            return BLOCKS[self.source.dtype][3]
        return _PRUNED if self.pruned and self.dtype == "q4" else None

    def bind(self, data: memoryview) -> _core.Matrix:
        """The matrix whose panels lie in `data`."""
        *stack, d, n = self.shape
        return _core.Matrix(self.dtype, d, n, data, count=stack[0] if stack else None, values=self.values)


def plan(recipe: Recipe, dtype: str | None, *, pruned: bool = False) -> dict[str, Plan]:
    """How each matrix of a recipe is packed, in the order in which a forward reads them.

    dtype: one of store.DTYPES; None chooses for each matrix the type that holds its values exactly. In a model with
    blocks, or that had them before it was pruned, that is q8 for blocks that no type holds so, and for f32, which
    mostly is what was made of blocks. pruned:
    whether layers have zeros, which stay in q4 too. Raises CheckpointError for a matrix that is missing, has a wrong
    shape, or has no place in the config.
    """
    tensors = [weight.tensor for weight in recipe.matrices.values()]
    quantized = any(tensor.dtype in BLOCKS or (pruned and tensor.stored) for tensor in tensors)
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
        kept = _kept_dtype(weight.tensor, quantized)
        plans[name] = Plan(weight, _packed_dtype(recipe.config, name, weight.tensor, dtype, kept), shape, pruned)
    return plans


def _check_names(found: Iterable[str], known: set[str]) -> None:
    """Raises CheckpointError for a name that the core does not look for, and so would ignore."""
    for name in found:
        if name not in known:
            raise CheckpointError(f"{name} has no place in a model of its config")


def _packed_dtype(config: Config, name: str, tensor: Tensor, dtype: str | None, kept: str) -> str:
    """The type that a matrix is packed as. Routers and gates are always f32, and positions are never quantized."""
    if name.endswith((".router", ".ffn.gate")):
        return "f32"
    if name == "positions" and dtype in ("q8", "q4", None) and tensor.dtype in SIZES:
        return tensor.dtype
    if dtype == "q4" and _is_sensitive(config, name):
        return "q8"
    return dtype or kept


def _is_sensitive(config: Config, name: str) -> bool:
    """Whether a q4 model keeps this matrix as q8, because the errors of four bits in it would be seen in the logits.

    In all models those are head, embedding, and wv and w2 of the last layer; in models of fewer than 768 channels,
    which lose more by four bits, also the rest of the last layer, wv of all layers, and w2 of the first and the last
    but one.
    """
    if not name.startswith("layers."):
        return True
    _, layer, part = name.split(".", 2)
    last = int(layer) == config.n_layers - 1
    if config.dim < _NARROW:
        return last or part == "attn.wv" or (part == "ffn.w2" and int(layer) in (0, config.n_layers - 2))
    return last and part in ("attn.wv", "ffn.w2")


def _kept_dtype(tensor: Tensor, quantized: bool) -> str:
    """The type that a tensor is kept as, in a model that has blocks (`quantized`) or none."""
    if tensor.dtype in BLOCKS:
        return BLOCKS[tensor.dtype][2] or "q8"
    return "q8" if quantized and tensor.dtype == "f32" else tensor.dtype


class Rows(NamedTuple):
    """Rows begin .. end of a matrix or stack, whole panels but for a matrix's last, and the bytes of their panels."""

    begin: int
    end: int
    nbytes: int


def chunks(matrix: Plan) -> Iterator[Rows]:
    """The pieces in which a matrix or stack is packed; their panels lie one after the other.

    A matrix whose rows are reordered is one piece.
    """
    *stack, d, n = matrix.shape
    most = max(_core.LANES, _CHUNK // nbytes(matrix.source.dtype, (n,)) // _core.LANES * _core.LANES)
    if matrix.weight.rows is not None:
        most = d
    for first in range(0, prod(stack) * d, d):
        for begin in range(0, d, most):
            end = min(begin + most, d)
            yield Rows(first + begin, first + end, _core.matrix_bytes(matrix.dtype, end - begin, n))


def pack(
    matrix: Plan,
    rows: Rows,
    out: memoryview,
    *,
    threads: int,
    name: str,
    known: Known | None = None,
    data: Bytes | None = None,
) -> None:
    """Packs rows of a matrix into `out`; floats to q4 for the least error by what is `known`. name: canonical. data:
    what the rows are in the file, where that has been read."""
    source = matrix.source
    floats = source.dtype in SIZES
    factors = known(name) if known and matrix.dtype == "q4" and floats else None
    _core.pack(
        matrix.dtype,
        rows.end - rows.begin,
        matrix.shape[-1],
        source.dtype,
        memoryview(source.read(rows.begin, rows.end) if data is None else data).cast("B"),
        rows=matrix.weight.rows,
        values=matrix.values if floats else None,
        out=out,
        threads=threads,
        name=name,
        **(factors._asdict() if factors else {}),
    )


def fill(
    matrix: Plan,
    out: memoryview,
    *,
    threads: int,
    name: str,
    known: Known | None = None,
    step: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Packs all of a matrix into `out`, as pack does. step: called with the bytes of each piece that is packed."""
    at = 0
    for rows in chunks(matrix):
        pack(matrix, rows, out[at : at + rows.nbytes], threads=threads, name=name, known=known)
        at += rows.nbytes
        step(rows.nbytes)


def assemble(
    recipe: Recipe,
    *,
    dtype: str | None,
    threads: int,
    progress: Progress | None = None,
    known: Known | None = None,
) -> store.Stored:
    """Packs a recipe's weights into one buffer, in the order in which a forward reads them.

    Raises CheckpointError as plan and vectors do, and for values that are not finite.
    """
    plans = plan(recipe, dtype)
    total, done = sum(p.nbytes for p in plans.values()), 0
    memory = memoryview(_core.Buffer(total))
    tensors: dict[str, _core.Matrix | _core.Vector] = {}

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    for name, matrix in plans.items():
        place = memory[done : done + matrix.nbytes]
        fill(matrix, place, threads=threads, name=name, known=known, step=step)
        tensors[name] = matrix.bind(place)
    return store.Stored.of(recipe, tensors | vectors(recipe))


def vectors(recipe: Recipe) -> dict[str, _core.Vector]:
    """A recipe's vectors, in the config's order.

    Raises CheckpointError for a vector that is missing, not finite, has a wrong length, or has no place in the config.
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
