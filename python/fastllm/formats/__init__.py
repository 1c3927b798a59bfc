"""Reading bytes: one file a format, each turning a path into named tensors and a header. They know no model family."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from fastllm.errors import CheckpointError

_SIZES = {"f32": 4, "f16": 2, "bf16": 2, "q8_f32": 1}


class Tensor(NamedTuple):
    """A tensor where it lies in a file; nothing is read before `data` is.

    dtype: f32, f16, bf16, or q8_f32: int8 values, one f32 of `scales` for each `group` consecutive ones.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    scales: memoryview | None = None
    group: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.data) + (len(self.scales) if self.scales is not None else 0)


class Checkpoint(NamedTuple):
    """What a file holds: its format's name, its header as the format has it, its tensors by its own names."""

    path: Path
    format: str
    architecture: str
    header: Mapping[str, object]
    tensors: Mapping[str, Tensor]


class Reader:
    """Cuts a mapped file into tensors, front to back. Raises CheckpointError where it ends too early."""

    def __init__(self, path: Path, data: memoryview, offset: int) -> None:
        self.path, self.data, self.offset = path, data, offset

    def take(self, nbytes: int, what: str) -> memoryview:
        end = self.offset + nbytes
        if end > len(self.data):
            raise CheckpointError(
                f"{self.path} is truncated: {what} ends at byte {end:,}, the file at {len(self.data):,}"
            )
        part = self.data[self.offset : end]
        self.offset = end
        return part

    def tensor(self, dtype: str, shape: tuple[int, ...], what: str) -> Tensor:
        return Tensor(dtype, shape, self.take(prod(shape) * _SIZES[dtype], what))


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped read-only. Raises CheckpointError when it cannot be read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is no regular file")  # opening a pipe would wait for a writer
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise CheckpointError(f"{path} is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def open_checkpoint(path: Path, data: memoryview) -> Checkpoint:
    """Opens a mapped file of any format that is known. Raises CheckpointError."""
    from fastllm.formats import llama2c

    return llama2c.read(path, data)
