"""Which module reads a file: chosen by the file's name and first bytes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm.errors import CheckpointError
from fastllm.files import map_file

if TYPE_CHECKING:
    from fastllm.formats.checkpoint import Checkpoint
    from fastllm.tensors import Tensor

_ZIP = b"PK\x03\x04"
# A pickle of protocol 2 whose first object is torch.save's magic number, an integer of ten bytes.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_safetensors(data: memoryview) -> bool:
    """Whether bytes begin as a .safetensors file does: with the length of a JSON object that fits, then the object."""
    if len(data) < 10:
        return False
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= min(100 << 20, len(data) - 8) and data[8] == ord("{")


def is_torch(data: memoryview) -> bool:
    """Whether bytes begin as torch.save's files do: a zip archive, or before torch 1.6 a pickle."""
    return bytes(data[:4]) == _ZIP or bytes(data[:15]) == _LEGACY_TORCH


def is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote a file; False if it cannot be read. MindSpore's files are named .ckpt as well."""
    try:
        return is_torch(map_file(path))
    except CheckpointError:
        return False


# To add a format of a file: write formats/<name>.py with
#
#     def read(path: Path, data: memoryview) -> Checkpoint    # data: the mapped file; raises CheckpointError
#
# and add a line here: the module's name, and how its files are recognized by their name or first bytes. The first line
# that matches reads the file, and only then is its module imported. llama2.c's version 0 has no magic number, so it
# comes last and takes all that is left.
_FORMATS: dict[str, Callable[[Path, memoryview], bool]] = {
    "gguf": lambda path, data: bytes(data[:4]) == b"GGUF",
    "npz": lambda path, data: bytes(data[:4]) == _ZIP and path.suffix == ".npz",
    "torch": lambda path, data: is_torch(data),
    "safetensors": lambda path, data: is_safetensors(data),
    "mindformers": lambda path, data: path.suffix == ".ckpt",  # MindSpore's, with mindformers' config
    "llama2c": lambda path, data: True,
}


def read(path: Path, data: memoryview) -> Checkpoint:
    """Reads a file by the table above. data: the mapped file. Raises CheckpointError."""
    name = next(name for name, matches in _FORMATS.items() if matches(path, data))
    read: Callable[[Path, memoryview], Checkpoint] = import_module(f"fastllm.formats.{name}").read
    return read(path, data)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of a folder, whose name tells the format: .safetensors, else torch.save's.

    Raises CheckpointError.
    """
    name = "safetensors" if path.suffix == ".safetensors" else "torch"
    tensors: Callable[[Path, memoryview], dict[str, Tensor]] = import_module(f"fastllm.formats.{name}").tensors
    return tensors(path, map_file(path))
