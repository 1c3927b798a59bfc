"""Grok-1 as it was released: a folder ckpt-0 with a pickle for each tensor, tensor00000_000, tensor00001_000, ...

Files have numbers instead of names: the order in which jax flattens the tree of parameters, by sorted keys, so that
layer 10 comes before layer 2. A matrix is int8 (..., inputs, outputs) with scales (..., groups, outputs); inputs are
divided evenly into groups, one for each device that held a shard of them. https://github.com/xai-org/grok-1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.files import exists, map_file, matching
from fastllm.formats import _arrays, _pickles
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import config
from fastllm.tensors import Bytes, Tensor, floats

# The leaves of the tree of parameters, sorted: the model's own, and those below transformer/decoder_layer_<i>.
_MODEL = ("language_model/in_out_embed/embeddings", "language_model/rms_norm/scale")
_LAYER = (
    "moe/linear/w",
    "moe/linear_1/w",
    "moe/linear_v/w",
    "multi_head_attention/key/w",
    "multi_head_attention/linear/w",
    "multi_head_attention/query/w",
    "multi_head_attention/value/w",
    "rms_norm/scale",
    "rms_norm_1/scale",
    "rms_norm_2/scale",
    "rms_norm_3/scale",
    "router/w",
)

# The config of the release, which has no file of it, from its run.py; and the shapes that identify the release.
_RELEASE = {
    "vocab_size": 131072,
    "pad_token": 0,
    "eos_token": 2,
    "sequence_len": 8192,
    "output_multiplier_scale": 0.5773502691896257,
    "embedding_multiplier_scale": 78.38367176906169,
    "model": {
        "emb_size": 6144,
        "key_size": 128,
        "num_q_heads": 48,
        "num_kv_heads": 8,
        "num_layers": 64,
        "attn_output_multiplier": 0.08838834764831845,
        "num_experts": 8,
        "num_selected_experts": 2,
    },
}
_RELEASE_LAYER = {
    "moe/linear/w": (8, 6144, 32768),
    "moe/linear_1/w": (8, 32768, 6144),
    "moe/linear_v/w": (8, 6144, 32768),
    "multi_head_attention/key/w": (6144, 1024),
    "multi_head_attention/linear/w": (6144, 6144),
    "multi_head_attention/query/w": (6144, 6144),
    "multi_head_attention/value/w": (6144, 1024),
    "router/w": (6144, 8),
}


def read_folder(path: Path) -> Checkpoint:
    """Opens ckpt-0, or the folder that contains it.

    Raises CheckpointError if files are missing or broken, or if there is no config and this is not the release.
    """
    folder = path if path.name == "ckpt-0" else path / "ckpt-0"
    files = matching(folder, "tensor*")
    layers, rest = divmod(len(files) - len(_MODEL), len(_LAYER))
    if layers < 1 or rest:
        raise CheckpointError(
            f"{folder} has {len(files)} tensor files, not {len(_MODEL)} and {len(_LAYER)} for each layer"
        )
    names = [*_MODEL]
    for layer in sorted(map(str, range(layers))):
        names += [f"transformer/decoder_layer_{layer}/{leaf}" for leaf in _LAYER]
    last, tensors = _Last(), {}
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        if file.name != f"tensor{i:05}_000":
            raise CheckpointError(f"{folder} lacks tensor{i:05}_000, or has a part of it: next is {file.name}")
        tensors[name] = _tensor(file, name, last)
    return Checkpoint(path, "Grok-1", "grok-1", _header(folder, tensors, layers), tensors)


def _header(folder: Path, tensors: dict[str, Tensor], layers: int) -> dict[str, Any]:
    """The config.json beside ckpt-0, with the released code's names; without one, the config of the release."""
    beside = folder.absolute().parent
    if exists(beside / "config.json"):
        return config(beside)
    shapes = {f"transformer/decoder_layer_{i}/{k}": shape for k, shape in _RELEASE_LAYER.items() for i in range(layers)}
    shapes[_MODEL[0]] = (131072, 6144)
    if layers == 64 and all(tensors[name].shape == shape for name, shape in shapes.items()):
        return dict(_RELEASE)
    raise CheckpointError(
        f"{folder} is not the released Grok-1, so it needs a config.json beside it with the names of run.py: "
        "vocab_size, sequence_len, model.emb_size and so on"
    )


# ---- what a pickle may build -----------------------------------------------------------------------------------------


class _Dtype(_pickles.Built):
    """numpy.dtype: built from a name; its state has the byte order as the second item."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.kind = "<V2" if name is _BFLOAT16 else f"<{name:.8}"
        _arrays.size(self.kind)

    def build(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError
        self.kind = (">" if order == ">" and self.kind != "<V2" else "<") + self.kind[1:]


class _Array(_pickles.Built):
    """numpy.ndarray: its state is (version, shape, dtype, whether the first axis moves fastest, bytes)."""

    state: tuple[tuple[int, ...], _Dtype, bool, memoryview] | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, in_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, memoryview):
            raise TypeError
        self.state = (_pickles.numbers(shape), dtype, bool(in_columns), data)


class _Quantized(_pickles.Built):
    """QuantizedWeight8bit of the released code: an int8 weight and its scales."""

    weight: Any = None
    scales: Any = None

    def build(self, state: Any) -> None:
        self.weight, self.scales = state["weight"], state["scales"]


_BFLOAT16 = object()  # ml_dtypes.bfloat16: an argument of numpy.dtype, never called itself
_GLOBALS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "ml_dtypes.bfloat16": _BFLOAT16,
    "ml_dtypes._ml_dtypes_ext.bfloat16": _BFLOAT16,
    "__main__.QuantizedWeight8bit": _Quantized,
    "model.QuantizedWeight8bit": _Quantized,
}


# ---- from objects to tensors -----------------------------------------------------------------------------------------


def _tensor(file: Path, name: str, last: _Last) -> Tensor:
    value, _ = _pickles.load(file, map_file(file), _GLOBALS.get)
    if not isinstance(value, _Quantized):
        return _array(file, name, value)
    weight, scales = _array(file, name, value.weight, "<i1"), _array(file, f"{name}'s scales", value.scales)
    *stack, inputs, outputs = weight.shape if len(weight.shape) > 1 else (0, 0)
    *scale_stack, groups, scale_outputs = scales.shape if len(scales.shape) > 1 else (0, 0)
    if scale_stack != stack or scale_outputs != outputs or groups < 1 or inputs % groups:
        raise CheckpointError(f"{file} is broken: {name} of {weight.shape} has scales of {scales.shape}")

    def read(begin: int, end: int) -> Bytes:
        return last.get(weight, scales, inputs // groups, begin, end)

    return Tensor("f32", weight.shape, read, stored="int8")


def _array(file: Path, name: str, array: Any, only: str | None = None) -> Tensor:
    if not isinstance(array, _Array) or array.state is None:
        raise CheckpointError(f"{file} is broken: it does not hold an array for {name}")
    shape, dtype, in_columns, data = array.state
    if only and dtype.kind != only:
        raise CheckpointError(f"{file} is broken: {name} is of the type {dtype.kind[1:]!r}, not {only[1:]!r}")
    return _arrays.tensor(
        dtype.kind,
        shape,
        _arrays.data(data),
        f"{name} of {file}",
        strides=_arrays.column_major(shape) if in_columns else _arrays.row_major(shape),
        count=len(data) // _arrays.size(dtype.kind),
    )


class _Last:
    """Keeps the rows that were dequantized last: a transposed expert is read whole again for each piece of its rows."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.begin = self.end = 0
        self.rows: Bytes = None

    def get(self, weight: Tensor, scales: Tensor, group: int, begin: int, end: int) -> Bytes:
        """Rows begin .. end of weight * scales as f32; `group` rows share a row of scales."""
        if self.weight is not weight or (self.begin, self.end) != (begin, end):
            self.weight = self.rows = None  # frees the old rows before the new ones are made
            self.rows = _dequantized(weight, scales, group, begin, end)
            self.weight, self.begin, self.end = weight, begin, end
        return self.rows


def _dequantized(weight: Tensor, scales: Tensor, group: int, begin: int, end: int) -> Bytes:
    import numpy

    rows, at = floats(weight, begin, end), begin
    with numpy.errstate(over="ignore", invalid="ignore"):  # packing refuses values that are not finite
        while at < end:
            stop = min(end, at - at % group + group)
            rows[at - begin : stop - begin] *= floats(scales, at // group, at // group + 1)
            at = stop
    return rows
