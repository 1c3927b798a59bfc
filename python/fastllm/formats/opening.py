"""Opens a checkpoint: a file goes to the module of its format, a folder to the module of its layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.files import exists, is_folder, map_file, matching
from fastllm.formats import _files
from fastllm.formats.checkpoint import Checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint of any known format, a file or a folder. Raises CheckpointError.

    Tensors stay in the mapped files and are read when they are asked for.
    """
    if is_folder(path):
        return _open_folder(path)
    data = map_file(path)
    for layout, matches in _PARTS.items():
        if matches(path, data):
            return _read_folder(layout, path.parent)
    return _files.read(path, data)


def _open_folder(path: Path) -> Checkpoint:
    for layout, matches in _LAYOUTS.items():
        if matches(path):
            return _read_folder(layout, path)
    return open_checkpoint(_only_file(path))


def _only_file(path: Path) -> Path:
    """The file of weights in a folder that has no config; of a split GGUF model the first. Raises CheckpointError.

    There must be one only, for with several it is not known which is meant.
    """
    files = matching(path, "*.gguf")
    if len(files) == 1 or (files and "-00001-of-" in files[0].name):
        return files[0]
    if files:
        raise CheckpointError(f"{path} has {len(files)} .gguf files: name one of them")
    from fastllm.formats.huggingface import other_weights

    files = other_weights(path)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:3])
        raise CheckpointError(f"{path} has {len(files)} files of weights and no config.json: name one of {names}")
    raise CheckpointError(f"{path} is a folder without a checkpoint that fastllm knows: no config.json with weights")


def _read_folder(layout: str, path: Path) -> Checkpoint:
    read: Callable[[Path], Checkpoint] = import_module(f"fastllm.formats.{layout}").read_folder
    return read(path)


def _has_only(path: Path, *suffixes: str) -> bool:
    """Whether a folder has weights in files with these suffixes (.ckpt: MindSpore's), and none of Hugging Face's."""

    def has(suffix: str) -> bool:
        files = matching(path, f"*{suffix}")
        return any(suffix != ".ckpt" or not _files.is_torch_file(file) for file in files)

    return any(map(has, suffixes)) and not any(map(has, (".safetensors", ".bin", ".ot")))


def _is_adapter(path: Path) -> bool:
    from fastllm.formats.peft import holds_only_adapter

    return holds_only_adapter(path)


# To add a layout of a folder: write formats/<name>.py with
#
#     def read_folder(path: Path) -> Checkpoint    # raises CheckpointError
#
# and add a line: the module's name, and how its folders are recognized. The first line that matches reads the folder,
# and only then is its module imported. If none matches, the folder may hold a single file that needs no config.
_LAYOUTS: dict[str, Callable[[Path], bool]] = {
    "peft": _is_adapter,
    "grok": lambda path: is_folder(path / "ckpt-0") or path.name == "ckpt-0",
    "meta": lambda path: exists(path / "params.json") and bool(matching(path, "consolidated.*.pth")),
    "sentence_transformers": lambda path: (
        exists(path / "modules.json") and not exists(path / "config.json") and not _has_only(path, ".gguf", ".ckpt")
    ),
    "huggingface": lambda path: exists(path / "config.json") and not _has_only(path, ".gguf", ".ckpt"),
    "mindformers": lambda path: any(not _files.is_torch_file(file) for file in matching(path, "*.ckpt")),
}
# Files that are of no use without the rest of their folder: opening one opens the folder, in the layout named here.
_PARTS: dict[str, Callable[[Path, memoryview], bool]] = {
    "peft": lambda path, data: path.name in ("adapter_model.safetensors", "adapter_model.bin"),
    "meta": lambda path, data: (
        re.fullmatch(r"consolidated\.\d+\.pth", path.name) is not None
        and _files.is_torch(data)
        and exists(path.parent / "params.json")
    ),
}
