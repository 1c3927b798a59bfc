"""A folder as the PEFT library saves an adapter: adapter_config.json and the weights that it adds to a model's.

weights/lora/ applies it to a model. https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.files import exists, is_folder, matching
from fastllm.formats._files import tensors_of
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import json_of

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def folder_of(path: Path) -> Path | None:
    """The folder of an adapter, if `path` is that folder or one of the adapter's files in it; else None."""
    if path.name in (CONFIG, *_WEIGHTS):
        return path.parent
    return path if is_folder(path) and (exists(path / CONFIG) or holds_adapter(path)) else None


def holds_adapter(folder: Path) -> bool:
    """Whether a folder has the weights of an adapter."""
    return any(exists(folder / name) for name in _WEIGHTS)


def holds_only_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter and holds no model."""
    kinds = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "consolidated.*.pth")
    models = [file for kind in kinds for file in matching(folder, kind) if file.name not in _WEIGHTS]
    return folder_of(folder) is not None and not models


def read_folder(path: Path) -> Checkpoint:
    """Opens an adapter; its architecture is its peft_type. Raises CheckpointError for a missing or broken file."""
    if not exists(path / CONFIG):
        raise CheckpointError(f"{path} has no {CONFIG}, which says how its adapter is applied")
    header = json_of(path / CONFIG, dict)
    name = next((name for name in _WEIGHTS if exists(path / name)), None)
    if name is None:
        raise CheckpointError(f"{path} has none of {', '.join(_WEIGHTS)}: its adapter has no weights")
    return Checkpoint(path, "PEFT adapter", str(header.get("peft_type", "")), header, tensors_of(path / name))
