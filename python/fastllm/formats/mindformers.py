"""A model as mindformers saves it: MindSpore's .ckpt files, and beside them a .yaml with the config.

https://gitee.com/mindspore/mindformers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.files import map_file, matching
from fastllm.formats import _yaml, mindspore
from fastllm.formats.checkpoint import Checkpoint
from fastllm.tensors import Tensor

_MOST_YAML = 1 << 18  # bytes of a config; real ones have a few thousand


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens one file, with the .yaml beside it. Raises CheckpointError, as mindspore.tensors does."""
    return Checkpoint(path, "MindSpore", "mindformers.llama", _config(path.parent), mindspore.tensors(path, data))


def read_folder(path: Path) -> Checkpoint:
    """Opens the .ckpt files of a folder, which hold different tensors of one model. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    files = matching(path, "*.ckpt")
    for file in files:
        more = mindspore.tensors(file, map_file(file))
        if both := tensors.keys() & more.keys():
            raise CheckpointError(
                f"{path} has several checkpoints: {file.name} holds {min(both)!r}, as one before it does; name the file"
            )
        tensors |= more
    name = "MindSpore" if len(files) == 1 else f"MindSpore, {len(files)} files"
    return Checkpoint(path, name, "mindformers.llama", _config(path), tensors)


def _config(folder: Path) -> dict[str, Any]:
    """The plain values of model.model_config in the folder's .yaml; empty if there is none. Several must be equal."""
    configs = {file.name: config for file in matching(folder, "*.yaml") if (config := _model_config(file))}
    values = list(configs.values())
    if any(config != values[0] for config in values):
        raise CheckpointError(f"{folder} has several configs of a model that differ: {', '.join(configs)}; leave one")
    return values[0] if values else {}


def _model_config(path: Path) -> dict[str, Any]:
    data = bytes(map_file(path))
    if b"model_config" not in data:  # another program's file
        return {}
    if len(data) > _MOST_YAML:
        raise CheckpointError(f"{path} is no mindformers config: it is too long")
    try:
        found = _yaml.load(data.decode())
    except ValueError as error:  # YAMLError, or not UTF-8
        raise CheckpointError(f"{path} cannot be read as a config in YAML: {error}") from None
    for key in ("model", "model_config"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Whether a value is null, a number, a string, or a mapping of those, such as scaling_factor."""
    if isinstance(value, dict):
        return all(_is_plain(v) and not isinstance(v, dict) for v in value.values())
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return value is None or isinstance(value, (float, str))
