"""Files of torch.save, read without torch: .pth, .pt, .bin, libtorch's (tch's .ot too), and TorchScript archives.

    zip archive (since torch 1.6)             before
    NAME/data.pkl   pickle of the object      pickle of a magic number
    NAME/data/0     the bytes of storage 0    pickle of a version
    NAME/data/1     ...                       pickle of a dict: little_endian, sizes of types
    NAME/byteorder  little or big             pickle of the object
                                              pickle of a list: the keys of the storages that follow
                                              each storage: int64 count of values, then the values

A storage is a run of values. In the pickled object a tensor is a view on one: offset, shape, strides.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.formats import _arrays, _pickles, _zips
from fastllm.formats._torch_objects import Storage, View, find, storage_of
from fastllm.formats._torch_weights import mapping, views_of
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import with_config_beside
from fastllm.tensors import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens a file of weights, with the config.json beside it, or of llama2.c's or nanoGPT's training.

    Raises CheckpointError, as `tensors` does.
    """
    found = _contents(path, data)
    arguments = found.top.get("model_args")
    if isinstance(arguments, dict) and "layers.0.feed_forward.w1.weight" in found.tensors:
        # llama2.c's training does not save hidden_dim, which it computes from other arguments.
        header = {**arguments, "hidden_dim": found.tensors["layers.0.feed_forward.w1.weight"].rows}
        return Checkpoint(path, "llama2.c training", "meta.llama", header, found.tensors)
    if isinstance(arguments, dict) and "transformer.wte.weight" in found.tensors:
        return Checkpoint(path, "nanoGPT training", "nanoGPT", arguments, found.tensors)
    return with_config_beside(path, "torch.save", found.tensors)


def tensors(path: Path, data: memoryview) -> dict[str, Tensor]:
    """The model's tensors in a mapped file, by name. Two names of the same values are the same Tensor.

    The saved object may be a state_dict, a dict of a training run that holds one (_torch_weights.py says which), or a
    TorchScript module, whose tensors have dotted names. Other objects beside the tensors are skipped, never built.
    Raises CheckpointError for a broken file, and for one whose pickle does what no tensor needs.
    """
    return _contents(path, data).tensors


class _Contents(NamedTuple):
    """tensors: by name. top: the saved object, if it is a dict; it is or contains the state_dict."""

    tensors: dict[str, Tensor]
    top: Mapping[Any, Any]


def _contents(path: Path, data: memoryview) -> _Contents:
    top = _read_zip(path, data) if bytes(data[:2]) == b"PK" else _read_legacy(path, data)
    views = views_of(path, top)
    if not views:
        if isinstance(top, _pickles.Foreign):
            raise CheckpointError(
                f"{path} holds an object of {top.name[:200]!r}, no tensors by name: save its state_dict()"
            )
        raise CheckpointError(f"{path} has no tensors by name: it is neither a state_dict nor a module")
    tensors: dict[View, Tensor] = {}
    for name, view in views.items():
        if view not in tensors:
            tensors[view] = _tensor(path, name, view)
    return _Contents({name: tensors[view] for name, view in views.items()}, mapping(top))


def _read_zip(path: Path, data: memoryview) -> Any:
    """The object in a zip archive, its storages bound to the archive's data."""
    files = _zips.entries(path, data)
    root = next((name[: -len("data.pkl")] for name in files if re.fullmatch("([^/]+/)?data.pkl", name)), None)
    if root is None:
        raise CheckpointError(f"{path} is a zip archive without data.pkl: torch.save did not write it")
    order = files.get(f"{root}byteorder")
    if order is not None and bytes(order.reader(path)(0, min(order.size, 8))) != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine, which fastllm does not read")
    storages: dict[str, Storage] = {}
    pickle = files[f"{root}data.pkl"]
    top, _ = _pickles.load(path, pickle.reader(path)(0, pickle.size), find, storage_of(storages))
    for key, storage in storages.items():
        file = files.get(f"{root}data/{key}")
        if file is None:
            raise CheckpointError(f"{path} is broken: its storage {key!r} is missing")
        if storage.count * _arrays.size(storage.kind) > file.size:
            raise CheckpointError(
                f"{path} is broken: its storage {key!r} would hold {storage.count:,} values in {file.size:,} bytes"
            )
        storage.data = file.reader(path)
    return top


def _read_legacy(path: Path, data: memoryview) -> Any:
    """The object in a file from before torch 1.6, its storages bound to the file's data."""
    storages: dict[str, Storage] = {}
    at, pickles = 0, []
    for _ in range(5):
        value, at = _pickles.load(path, data, find, storage_of(storages), begin=at)
        pickles.append(value)
    magic, _, machine, top, keys = pickles
    if magic != _LEGACY_MAGIC or not isinstance(machine, dict) or not isinstance(keys, list):
        raise CheckpointError(f"{path} is broken: it does not begin as torch.save's files do")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved on a big-endian machine, which fastllm does not read")
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.data is not None:
            raise CheckpointError(f"{path} is broken: it has storages that its tensors do not name, or has one twice")
        size = storage.count * _arrays.size(storage.kind)
        if at + 8 + size > len(data):
            raise CheckpointError(
                f"{path} is truncated: storage {key!r} ends at byte {at + 8 + size:,}, the file at {len(data):,}"
            )
        if struct.unpack_from("<q", data, at) != (storage.count,):
            raise CheckpointError(f"{path} is broken: storage {key!r} is not of {storage.count:,} values")
        storage.data = _arrays.data(data[at + 8 : at + 8 + size])
        at += 8 + size
    return top


def _tensor(path: Path, name: str, view: View) -> Tensor:
    """The tensor that a view shows. Its type may differ from its storage's: a newer file's storage is of bytes."""
    storage = view.storage
    source = storage.base.data
    if source is None:
        raise CheckpointError(f"{path} is truncated: the storage of tensor {name!r} is missing")
    width = _arrays.size(storage.kind)
    start, size = storage.offset * width, storage.count * width

    def data(begin: int, end: int) -> memoryview:
        return source(start + begin, start + end)

    return _arrays.tensor(
        view.kind,
        view.shape,
        data,
        f"tensor {name!r} of {path}",
        strides=view.strides,
        count=size // _arrays.size(view.kind),
        offset=view.offset,
    )
