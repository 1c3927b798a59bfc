"""Finds a checkpoint's quantized matrices and replaces the tensors of each by one plain matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.quantized._config import refusal, settings
from fastllm.formats.quantized._matrix import Matrix
from fastllm.formats.quantized._refused import refused_scheme
from fastllm.formats.quantized._schemes import SCHEMES, Scheme
from fastllm.tensors import Bytes, Tensor

# Ranges of activations and of keys and values. Only arithmetic on quantized activations uses them; fastllm's own
# rounding of activations needs none, so tensors with these endings are dropped.
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
    """The checkpoint with plain matrices, read as f32 or as blocks; the same object if nothing is quantized.

    The scheme's name is added to `format`. Raises CheckpointError for a scheme that fastllm cannot read, and for
    tensors that do not fit each other.
    """
    if checkpoint.architecture.startswith("gguf:"):
        return checkpoint  # its quantized types belong to the format, which reads them itself
    about = settings(checkpoint)
    method = str(about.get("quant_method", about.get("quant_type", ""))).lower()
    tensors, plain, names = dict(checkpoint.tensors), {}, []
    for scheme, matrix in _matrices(checkpoint, about):
        tensor = scheme.read(matrix)
        names.append(tensor.stored)
        plain[matrix.name("weight")] = tensor._replace(read=_without_warnings(tensor.read))
        for name in matrix.taken:
            tensors.pop(name, None)
    tensors |= plain
    if plain:
        tensors = {name: t for name, t in tensors.items() if not name.endswith(_OF_ACTIVATIONS)}
    if (what := refused_scheme(tensors, method)) is not None:
        raise refusal(checkpoint, what)
    _check_settings(checkpoint, about)
    if plain or "fp8" in method:
        _check_has_scales(checkpoint, tensors)
    if not plain:
        return checkpoint
    kinds = ", ".join(dict.fromkeys(str(name) for name in names))
    return checkpoint._replace(format=f"{checkpoint.format}, {kinds}", tensors=tensors)


def scheme(checkpoint: Checkpoint) -> str | None:
    """The name of a checkpoint's scheme, or why it is refused; None if its matrices are plain or of GGUF's types."""
    try:
        found = dequantized(checkpoint)
    except CheckpointError as error:
        return str(error).removeprefix(f"{checkpoint.path} ").removeprefix("is quantized with ")
    return None if found is checkpoint else found.format.removeprefix(f"{checkpoint.format}, ")


def _matrices(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Iterator[tuple[Scheme, Matrix]]:
    """The quantized matrices, each with the first scheme that matches."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.raw is None:
            continue
        for scheme in SCHEMES:
            ending = scheme.part if scheme.part.startswith("_") else f".{scheme.part}"
            if name.endswith(ending) and tensor.raw.kind in scheme.kinds:
                matrix = Matrix(checkpoint, name.removesuffix(ending), about)
                if scheme.matches(matrix):
                    yield scheme, matrix
                    break


def _without_warnings(read: Callable[[int, int], Bytes]) -> Callable[[int, int], Bytes]:
    """Silences numpy about scales that are not finite: packing refuses the weights that come of them, by name."""

    def quiet(begin: int, end: int) -> Bytes:
        import numpy

        with numpy.errstate(over="ignore", invalid="ignore"):
            return read(begin, end)

    return quiet


def _check_has_scales(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Refuses matrices in FP8 without scales, which are lost if others have some, or the config says so.

    In other checkpoints FP8 values without scales are plain numbers.
    """
    for name, tensor in tensors.items():
        if tensor.raw is not None and tensor.raw.is_float8 and len(tensor.shape) > 1:
            raise CheckpointError(f"{checkpoint.path} is broken: {name} is in FP8 and its scales are missing")


def _check_settings(checkpoint: Checkpoint, about: Mapping[str, Any]) -> None:
    """Refuses compressed-tensors' transforms and sparsity, which change the computation, not only how weights lie."""
    for key in ("transform_config", "sparsity_config"):
        value = about.get(key)
        if isinstance(value, dict) and value.get("config_groups", value.get("format", "dense")) not in ({}, "dense"):
            raise refusal(checkpoint, f"compressed-tensors with {key}")
