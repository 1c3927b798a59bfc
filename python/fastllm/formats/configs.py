"""Reads the JSON files that lie beside weights: config.json and what transformers keeps next to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm.errors import CheckpointError
from fastllm.files import exists, map_file
from fastllm.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from fastllm.tensors import Tensor

# How texts begin and end, special tokens, and the settings of AutoGPTQ and AutoAWQ where config.json has none.
_BESIDE = ("generation_config", "tokenizer_config", "quantize_config", "quant_config")


def config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; each of the files in _BESIDE is added under its name. Raises CheckpointError."""
    if not exists(folder / "config.json"):
        raise CheckpointError(f"{folder} has no config.json, which says what the model is")
    values: dict[str, Any] = json_of(folder / "config.json", dict)
    for name in _BESIDE:
        if exists(folder / f"{name}.json"):
            values[name] = json_of(folder / f"{name}.json", dict)
    return values


def with_config(path: Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """A checkpoint whose header is a config.json, which names the architecture: "architectures" or "model_type"."""
    names = header.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else header.get("model_type")
    return Checkpoint(path, kind, architecture if isinstance(architecture, str) else "", header, tensors)


def with_config_beside(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """A checkpoint of one file, with the config.json beside it if there is one: a few families need none."""
    header = config(path.parent) if exists(path.parent / "config.json") else {}
    return with_config(path, kind, header, tensors)


def json_of(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """The value in a JSON file, an object (dict) or a list as `kind` says. Raises CheckpointError for anything else."""
    try:
        values = json.loads(bytes(map_file(path)))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is broken: it is not JSON") from None
    if not isinstance(values, kind):
        raise CheckpointError(f"{path} is broken: it is not a JSON {'object' if kind is dict else 'list'}")
    return values


def json_if_any(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file. Raises CheckpointError."""
    return json_of(path, dict) if exists(path) else {}
