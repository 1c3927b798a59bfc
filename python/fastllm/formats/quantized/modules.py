"""The tensors of one quantized matrix, checked as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.tensors import Tensor, columns, floats, raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Module:
    """The tensors of `base`, such as model.layers.0.mlp.up_proj.

    about: the checkpoint's settings. taken: the tensors that have been asked for, which the matrix replaces.
    """

    def __init__(self, checkpoint: Checkpoint, base: str, about: Mapping[str, Any]) -> None:
        self.base, self.about = base, about
        self._checkpoint = checkpoint
        self.taken: list[str] = []

    def name(self, part: str) -> str:
        return f"{self.base}.{part}" if self.base else part

    def has(self, part: str) -> bool:
        return self.name(part) in self._checkpoint.tensors

    def kind(self, part: str) -> str:
        """The type that the file has a tensor in; empty for one that is not there."""
        tensor = self._checkpoint.tensors.get(self.name(part))
        return "" if tensor is None else tensor.raw.kind if tensor.raw else tensor.dtype

    def get(self, part: str) -> Tensor | None:
        """A tensor that need not be there."""
        return self.tensor(part) if self.has(part) else None

    def tensor(self, part: str, *, axes: int | None = None, kinds: tuple[str, ...] = ()) -> Tensor:
        """A tensor with so many axes, of one of these types in the file."""
        if not self.has(part):
            raise CheckpointError(f"{self._checkpoint.path} has no tensor {self.name(part)}")
        tensor = self._checkpoint.tensors[self.name(part)]
        if axes is not None and len(tensor.shape) != axes:
            raise self.error(part, f"has {len(tensor.shape)} axes, not {axes}")
        if kinds and self.kind(part) not in kinds:
            raise self.error(part, f"is of the type {self.kind(part)}, not {' or '.join(kinds)}")
        if 0 in tensor.shape:
            raise self.error(part, "is empty")
        self.taken.append(self.name(part))
        return tensor

    def sized(self, part: str, *shapes: tuple[int, ...], kinds: tuple[str, ...] = ()) -> Tensor:
        """A tensor of one of these shapes."""
        tensor = self.tensor(part, kinds=kinds)
        if tensor.shape not in shapes:
            raise self.error(part, f"has the shape {tensor.shape}, not {' or '.join(map(str, shapes))}")
        return tensor

    def option(self, key: str, default: Any = None) -> Any:
        """What the settings say; null counts as missing."""
        value = self.about.get(key)
        return default if value is None else value

    def error(self, part: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._checkpoint.path} is broken: {self.name(part)} {what}")

    def refusal(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._checkpoint.path} has {self.base or 'a matrix'} {what}")


# ---- numbers of a few bits -------------------------------------------------------------------------------------------


def unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of a few bits from words along the last axis, which they fill from the lowest bit of the first word."""
    import numpy

    data = numpy.ascontiguousarray(words).view(numpy.uint8)
    if bits == 8:
        return data
    if bits in (2, 4):
        parts = [data >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
        return numpy.stack(parts, axis=-1).reshape(*data.shape[:-1], -1)
    stream = numpy.unpackbits(data, axis=-1, bitorder="little")
    count = stream.shape[-1] // bits
    values: NDArray[np.uint8] = numpy.packbits(
        stream[..., : count * bits].reshape(*data.shape[:-1], count, bits), axis=-1, bitorder="little"
    )[..., 0]
    return values


def column_words(tensor: Tensor, begin: int, end: int) -> NDArray[Any]:
    """Columns begin .. end of a matrix of integers as rows, [end - begin, rows of the matrix]."""
    import numpy

    return numpy.ascontiguousarray(raw_values(tensor)[:, begin:end].T)


def column_floats(tensor: Tensor, begin: int, end: int) -> NDArray[np.float32]:
    """Columns begin .. end of a matrix of floats as rows."""
    import numpy

    return numpy.ascontiguousarray(floats(columns(tensor, begin, end)).T)
