"""What a checkpoint's config says about its quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint

# Where a config says how its weights were quantized: transformers, MLX, AutoGPTQ, AutoAWQ, older compressed-tensors.
_SECTIONS = ("quantization_config", "quantization", "quantize_config", "quant_config", "compression_config")


def settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config's section on quantization; empty if it has none. Raises CheckpointError if it is no section."""
    inner = checkpoint.header.get("text_config")
    for header in (checkpoint.header, inner if isinstance(inner, dict) else {}):
        for key in _SECTIONS:
            value = header.get(key)
            if isinstance(value, dict) and value:
                return value
            if value and key == "quantization_config":
                raise CheckpointError(f"{checkpoint.path} has {key} {value!r}, not a config of its own")
    return {}


def refusal(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """The error for a checkpoint quantized with `what`: it names the scheme and what to use instead."""
    original = _original(checkpoint)
    instead = f"the model it was made from{f', {original},' if original else ''} or a GGUF file of it"
    return CheckpointError(f"{checkpoint.path} is quantized with {what}, which fastllm cannot read: use {instead}")


def _original(checkpoint: Checkpoint) -> str | None:
    """The hub's name of the model that a checkpoint was quantized from, if its config has one."""
    for key in ("base_model", "base_model_name_or_path", "_name_or_path", "model_name_or_path"):
        value = checkpoint.header.get(key)
        if isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", value, re.ASCII):
            return value
    return None
