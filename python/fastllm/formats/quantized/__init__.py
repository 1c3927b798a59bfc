"""Checkpoints that others quantized, as checkpoints of floats: between the formats, which read bytes, and the families.

A scheme spreads a matrix over several tensors, such as w.qweight, w.qzeros and w.scales, and says how they make one.
What is made here is w.weight, computed some rows at a time when it is read. Tensors tell a scheme by their names and
types; the config, which people move or delete, only adds what tensors cannot say. A scheme that is not known here is
refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.quantized.modules import Module
from fastllm.formats.quantized.refused import named_by
from fastllm.formats.quantized.schemes import SCHEMES, Scheme
from fastllm.tensors import Bytes, Tensor

# Where a config says how its weights were quantized: transformers, MLX, AutoGPTQ, AutoAWQ, older compressed-tensors.
_SECTIONS = ("quantization_config", "quantization", "quantize_config", "quant_config", "compression_config")
# Ranges of activations and of keys and values, which quantized arithmetic needs; here both are floats.
_OF_ACTIVATIONS = (
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".activation_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
    ".kv_cache_scale",
    ".prob_output_scale",
    ".input_scale_ub",
)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with plain matrices, and its scheme in `format`; the same one where nothing is quantized.

    Raises CheckpointError for a scheme that fastllm cannot read, and for tensors that do not fit each other.
    """
    if checkpoint.architecture.startswith("gguf:"):
        return checkpoint  # its types are the format's own
    about = settings(checkpoint)
    method = str(about.get("quant_method", about.get("quant_type", ""))).lower()
    tensors, made, names = dict(checkpoint.tensors), {}, []
    for scheme, module in _modules(checkpoint, about):
        tensor = scheme.matrix(module)
        names.append(tensor.stored)
        made[module.name("weight")] = tensor._replace(read=_quiet(tensor.read))
        for name in module.taken:
            tensors.pop(name, None)
    tensors |= made
    if made:
        tensors = {name: t for name, t in tensors.items() if not name.endswith(_OF_ACTIVATIONS)}
    if (what := named_by(tensors, method)) is not None:
        raise _refusal(checkpoint, what)
    _check_settings(checkpoint, about)
    _check_has_scales(checkpoint, tensors, scaled=bool(made) or "fp8" in method)
    if not made:
        return checkpoint
    kinds = ", ".join(dict.fromkeys(str(name) for name in names))
    return checkpoint._replace(format=f"{checkpoint.format}, {kinds}", tensors=tensors)


def scheme(checkpoint: Checkpoint) -> str | None:
    """How a checkpoint's weights are quantized, for people; None where they are not, or a format does it itself."""
    try:
        found = dequantized(checkpoint)
    except CheckpointError as error:
        return str(error).removeprefix(f"{checkpoint.path} ").removeprefix("is quantized with ")
    return None if found is checkpoint else found.format.removeprefix(f"{checkpoint.format}, ")


def settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What the config says of quantization; empty where it says nothing."""
    inner = checkpoint.header.get("text_config")
    for header in (checkpoint.header, inner if isinstance(inner, dict) else {}):
        for key in _SECTIONS:
            value = header.get(key)
            if isinstance(value, dict) and value:
                return value
            if value and key == "quantization_config":
                raise CheckpointError(f"{checkpoint.path} has {key} {value!r}, not a config of its own")
    return {}


def _modules(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Iterator[tuple[Scheme, Module]]:
    """The quantized matrices, each with its scheme."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.raw is None:
            continue
        for scheme in SCHEMES:
            if name.endswith(f".{scheme.part}") and tensor.raw.kind in scheme.kinds:
                module = Module(checkpoint, name.removesuffix(f".{scheme.part}"), about)
                if scheme.beside(module):
                    yield scheme, module
                    break


def _quiet(read: Callable[[int, int], Bytes]) -> Callable[[int, int], Bytes]:
    """Scales that are not finite make weights that are not, which is said where weights are packed."""

    def quiet(begin: int, end: int) -> Bytes:
        import numpy

        with numpy.errstate(over="ignore", invalid="ignore"):
            return read(begin, end)

    return quiet


def _check_has_scales(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *, scaled: bool) -> None:
    """FP8 may be all that there is of a matrix, but not beside matrices that have scales, or where a config says so."""
    for name, tensor in tensors.items():
        if scaled and tensor.raw is not None and tensor.raw.is_float8 and len(tensor.shape) > 1:
            raise CheckpointError(f"{checkpoint.path} is broken: {name} is in FP8 and its scales are missing")


def _check_settings(checkpoint: Checkpoint, about: Mapping[str, Any]) -> None:
    """What changes the computation, not only the weights."""
    for key in ("transform_config", "sparsity_config"):
        value = about.get(key)
        if isinstance(value, dict) and value.get("config_groups", value.get("format", "dense")) not in ({}, "dense"):
            raise _refusal(checkpoint, f"compressed-tensors with {key}")


def _refusal(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """One sentence: what it is, and what to use instead."""
    original = _original(checkpoint)
    instead = f"the model it was made from{f', {original},' if original else ''} or a GGUF file of it"
    return CheckpointError(f"{checkpoint.path} is quantized with {what}, which fastllm cannot read: use {instead}")


def _original(checkpoint: Checkpoint) -> str | None:
    """The hub's name of what a checkpoint was quantized from, if its config has one."""
    for key in ("base_model", "base_model_name_or_path", "_name_or_path", "model_name_or_path"):
        value = checkpoint.header.get(key)
        if isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", value, re.ASCII):
            return value
    return None
