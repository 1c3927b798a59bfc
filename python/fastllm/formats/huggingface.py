"""A folder as Hugging Face's transformers saves it: config.json, and the weights in one file or in several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.files import map_file, unfinished
from fastllm.formats import Checkpoint, is_torch, safetensors
from fastllm.tensors import Tensor

# In the order transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
)
# torch.save's files by their names, and how the names of those begin that training leaves beside the weights.
_TORCH = ("*.pt", "*.pth", "*.bin")
_NO_WEIGHTS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state", "random_states", "tokenizer")
# What generation starts and ends with; AutoGPTQ's and AutoAWQ's settings, where they are not in config.json.
_BESIDE = ("generation_config", "tokenizer_config", "quantize_config", "quant_config")


def read_folder(path: Path) -> Checkpoint:
    """Opens the weights of a folder. Raises CheckpointError for a file that is missing or broken."""
    name = next((name for name in _WEIGHTS if (path / name).exists()), None)
    if name is None:
        single = other_weights(path)
        if len(single) != 1:
            found = (
                f"{len(single)} {single[0].suffix} files and no index" if single else f"none of {', '.join(_WEIGHTS)}"
            )
            part = next(filter(None, (unfinished(path / name) for name in _WEIGHTS)), None)
            found += f", only {part.name}: its download has not ended" if part else ""
            raise CheckpointError(f"{path} has no weights that fastllm can find: {found}")
        name = single[0].name
    kind = f"Hugging Face {'safetensors' if '.safetensors' in name else name.partition('.index')[0]}"
    if not name.endswith(".json"):
        return checkpoint(path, path, kind, tensors(path / name))
    places = _index(path / name)
    files = list(dict.fromkeys(places.values()))
    shards = {file: tensors(path / file) for file in files}
    for tensor, file in places.items():
        if tensor not in shards[file]:
            raise CheckpointError(f"{path / file} has not the tensor {tensor!r} that {name} says it holds")
    return checkpoint(path, path, f"{kind}, {len(files)} files", {t: shards[f][t] for t, f in places.items()})


def other_weights(folder: Path) -> list[Path]:
    """A folder's files of weights under names of their own; torch.save's only where there are no .safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        files = [file for kind in _TORCH for file in folder.glob(kind) if not file.name.startswith(_NO_WEIGHTS)]
        files = sorted([*files, *filter(is_torch, folder.glob("*.ckpt"))])
    return files


def config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, and what lies beside it in files of their own under their names."""
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json, which says what the model is")
    values: dict[str, Any] = json_of(folder / "config.json", dict)
    for name in _BESIDE:
        if (folder / f"{name}.json").exists():
            values[name] = json_of(folder / f"{name}.json", dict)
    return values


def checkpoint(path: Path, folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Weights found at `path` with the config of `folder`; a file that lies alone may be of a family without one."""
    header = config(folder) if path == folder or (folder / "config.json").exists() else {}
    names = header.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else header.get("model_type")
    return Checkpoint(path, kind, architecture if isinstance(architecture, str) else "", header, tensors)


def tensors(path: Path) -> dict[str, Tensor]:
    """Those of one file, .safetensors or torch's. Raises CheckpointError."""
    data = map_file(path)
    if path.suffix == ".safetensors":
        return safetensors.tensors(path, data)
    from fastllm.formats import torch

    return torch.tensors(path, data)


def _index(path: Path) -> dict[str, str]:
    """Tensor -> name of the file in the folder that holds it."""
    places = json_of(path, dict).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} is broken: it has no weight_map")
    for file in places.values():
        plain = isinstance(file, str) and file not in ("", ".", "..") and not any(c in file for c in "/\\\0")
        if not plain:
            raise CheckpointError(f"{path} is broken: {file!r} is not the name of a file in the folder")
    return places


def json_of(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """What a file holds, an object or a list. Raises CheckpointError for anything else."""
    try:
        values = json.loads(bytes(map_file(path)))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is broken: it is not JSON") from None
    if not isinstance(values, kind):
        raise CheckpointError(f"{path} is broken: it is not a JSON {'object' if kind is dict else 'list'}")
    return values
