"""One quantized matrix of a checkpoint: the tensors that it is spread over, checked as a scheme asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.tensors import Tensor

FLOATS = ("f32", "f16", "bf16")
FLOAT8 = ("float8_e4m3", "float8_e5m2")


class Matrix:
    """The tensors whose names begin with `base`, such as model.layers.0.mlp.up_proj.

    A part is the rest of a tensor's name, after a dot unless it begins with an underscore: qweight, _blocks. about: the
    config's section on quantization. taken: the names of the tensors that a scheme has asked for, which the plain
    matrix replaces.
    """

    def __init__(self, checkpoint: Checkpoint, base: str, about: Mapping[str, Any]) -> None:
        self.base, self.about = base, about
        self._checkpoint = checkpoint
        self.taken: list[str] = []

    def name(self, part: str) -> str:
        """A part's full name in the checkpoint."""
        return f"{self.base}{part}" if part.startswith("_") else f"{self.base}.{part}" if self.base else part

    def has(self, part: str) -> bool:
        return self.name(part) in self._checkpoint.tensors

    def kind(self, part: str) -> str:
        """The type that a part has in the file; empty if there is no such part."""
        tensor = self._checkpoint.tensors.get(self.name(part))
        return "" if tensor is None else tensor.raw.kind if tensor.raw else tensor.dtype

    def get(self, part: str) -> Tensor | None:
        """An optional part."""
        return self.tensor(part) if self.has(part) else None

    def tensor(self, part: str, *, axes: int | None = None, kinds: tuple[str, ...] = ()) -> Tensor:
        """A part that has `axes` axes and in the file one of the types in `kinds`, if given. Raises CheckpointError."""
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
        """A part of one of these shapes. Raises CheckpointError."""
        tensor = self.tensor(part, kinds=kinds)
        if tensor.shape not in shapes:
            raise self.error(part, f"has the shape {tensor.shape}, not {' or '.join(map(str, shapes))}")
        return tensor

    def option(self, key: str, default: Any = None) -> Any:
        """A value of the config's section on quantization; null counts as missing."""
        value = self.about.get(key)
        return default if value is None else value

    def error(self, part: str, what: str) -> CheckpointError:
        """For a part that does not fit the others."""
        return CheckpointError(f"{self._checkpoint.path} is broken: {self.name(part)} {what}")

    def refusal(self, what: str) -> CheckpointError:
        """For a form of the scheme that fastllm does not read."""
        return CheckpointError(f"{self._checkpoint.path} has {self.base or 'a matrix'} {what}")
