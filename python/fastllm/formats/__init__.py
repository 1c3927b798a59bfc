"""Reading bytes: one file a format, each turning a path into named tensors and a header. They know no model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.files import map_file

if TYPE_CHECKING:
    from fastllm.tensors import Tensor


class Checkpoint(NamedTuple):
    """What a file or folder holds.

    format: its name, for people. architecture: what families are registered by: the name the checkpoint itself gives
    (Hugging Face's "architectures", GGUF's "gguf:<general.architecture>"), or the format's own where all of it is one
    family ("meta.llama", "grok-1", "mindformers.llama"). header: the config as the source has it. tensors:
    by its own names. tokenizer: kind and bytes (see tokenizer.py) where the checkpoint itself contains one.
    """

    path: Path
    format: str
    architecture: str
    header: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    tokenizer: tuple[str, bytes] | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint, a file or a folder, of any format that is known. Raises CheckpointError."""
    if path.is_dir():
        return _open_folder(path)
    data = map_file(path)
    for name, matches in _FILES.items():
        if matches(path, data):
            read: Callable[[Path, memoryview], Checkpoint] = import_module(f"fastllm.formats.{name}").read
            return read(path, data)
    raise AssertionError("the last format takes everything")


def _open_folder(path: Path) -> Checkpoint:
    for name, matches in _FOLDERS.items():
        if matches(path):
            read: Callable[[Path], Checkpoint] = import_module(f"fastllm.formats.{name}").read_folder
            return read(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1 or (files and "-00001-of-" in files[0].name):
        return open_checkpoint(files[0])
    if files:
        raise CheckpointError(f"{path} has {len(files)} .gguf files: name one of them")
    files = import_module("fastllm.formats.huggingface").other_weights(path)
    if len(files) == 1:
        return open_checkpoint(files[0])
    if files:
        names = ", ".join(file.name for file in files[:3])
        raise CheckpointError(f"{path} has {len(files)} files of weights and no config.json: name one of {names}")
    raise CheckpointError(f"{path} is a folder without a checkpoint that fastllm knows: no config.json with weights")


def is_safetensors(data: memoryview) -> bool:
    """Whether a file's bytes begin like a .safetensors file: the header's length, then JSON."""
    if len(data) < 10:
        return False
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= min(100 << 20, len(data) - 8) and data[8] == ord("{")


def _is_torch(data: memoryview) -> bool:
    # A zip file, or before those a pickle of protocol 2 with a magic number of ten bytes.
    return bytes(data[:4]) == b"PK\x03\x04" or bytes(data[:15]) == b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_torch(path: Path) -> bool:
    """Whether a file is one of torch.save's; .ckpt is also MindSpore's."""
    try:
        return _is_torch(map_file(path))
    except CheckpointError:
        return False


def _only(path: Path, *kinds: str) -> bool:
    """Whether the weights in a folder are files of these kinds, and none of Hugging Face's."""
    found = {file.suffix for file in path.iterdir() if file.suffix != ".ckpt" or not is_torch(file)}
    return bool(found & set(kinds)) and not found & {".safetensors", ".bin", ".ot"}


# Module -> whether a file is of its format, asked in this order. llama2.c's version 0 has no magic number: it is last.
_FILES: dict[str, Callable[[Path, memoryview], bool]] = {
    "peft": lambda path, _: path.name in ("adapter_model.safetensors", "adapter_model.bin"),
    "gguf": lambda _, data: bytes(data[:4]) == b"GGUF",
    "npz": lambda path, data: bytes(data[:4]) == b"PK\x03\x04" and path.suffix == ".npz",
    "torch": lambda _, data: _is_torch(data),
    "safetensors": lambda _, data: is_safetensors(data),
    "mindspore": lambda path, data: path.suffix == ".ckpt",
    "llama2c": lambda *_: True,
}
_FOLDERS: dict[str, Callable[[Path], bool]] = {
    "peft": lambda path: import_module("fastllm.formats.peft").holds_only_adapter(path),
    "grok": lambda path: (path / "ckpt-0").is_dir() or path.name == "ckpt-0",
    "meta": lambda path: (path / "params.json").exists() and any(path.glob("consolidated.*.pth")),
    "sentence_transformers": lambda path: (
        (path / "modules.json").exists() and not (path / "config.json").exists() and not _only(path, ".gguf", ".ckpt")
    ),
    "huggingface": lambda path: (path / "config.json").exists() and not _only(path, ".gguf", ".ckpt"),
    "mindspore": lambda path: any(not is_torch(file) for file in path.glob("*.ckpt")),
}
