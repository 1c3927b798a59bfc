"""torch.save's files, read without torch: .pth, .pt, .bin, and what libtorch (so tch, as .ot) and TorchScript save.

A zip archive: data.pkl is a pickle of the object, whose tensors name their storages; storage k is the archive's file
data/k, as it is. Before torch 1.6: four pickles (a magic number, a version, the machine's sizes, the object), a fifth
of the storages' names, then the storages. https://pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint, _arrays, _pickles, _zips
from fastllm.tensors import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_DEPTH, _MOST_NAMES, _MOST_NAME = 64, 1 << 17, 1024  # of a TorchScript archive's modules, which may share modules


def read(path: Path, data: memoryview) -> Checkpoint:
    """A lone file, with the config.json that lies beside it; a part of Meta's layout with its other parts."""
    if re.fullmatch(r"consolidated\.\d+\.pth", path.name) and (path.parent / "params.json").exists():
        from fastllm.formats import meta

        return meta.read_folder(path.parent)
    found = _contents(path, data)
    arguments = found.top.get("model_args")
    if isinstance(arguments, dict) and "layers.0.feed_forward.w1.weight" in found.tensors:
        # llama2.c's training; the width inside the feed-forward follows from others of its arguments.
        header = {**arguments, "hidden_dim": found.tensors["layers.0.feed_forward.w1.weight"].rows}
        return Checkpoint(path, "llama2.c training", "meta.llama", header, found.tensors)
    if isinstance(arguments, dict) and "transformer.wte.weight" in found.tensors:
        return Checkpoint(path, "nanoGPT training", "nanoGPT", arguments, found.tensors)
    from fastllm.formats.huggingface import checkpoint

    return checkpoint(path, path.parent, "torch.save", found.tensors)


def tensors(path: Path, data: memoryview) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises CheckpointError for a broken file, or one whose pickle wants more.

    The object is a dict of tensors, or what training has left: a dict with one under state_dict or another of _WEIGHTS,
    or else the one that has the most; or a TorchScript module, whose tensors have dotted names. Objects of other kinds
    beside the tensors are not made. Two names of the same values are the same Tensor.
    """
    return _contents(path, data).tensors


class _Contents(NamedTuple):
    """Of a file: the tensors by name, and the dict that they are in, or in a part of."""

    tensors: dict[str, Tensor]
    top: Mapping[Any, Any]


def _contents(path: Path, data: memoryview) -> _Contents:
    top = _read_zip(path, data) if bytes(data[:2]) == b"PK" else _read_legacy(path, data)
    views = dict(_attributes(path, top)) if isinstance(top, _Module) else _named(path, _mapping(top))
    if not views:
        if isinstance(top, _pickles.Foreign):
            raise CheckpointError(
                f"{path} holds an object of {top.name[:200]!r}, no tensors by name: save its state_dict()"
            )
        raise CheckpointError(f"{path} has no tensors by name: it is neither a state_dict nor a module")
    same: dict[_View, Tensor] = {}
    for name, view in views.items():
        if view not in same:
            same[view] = _tensor(path, name, view)
    return _Contents({name: same[view] for name, view in views.items()}, _mapping(top))


# ---- what a pickle may build


class _Kind(NamedTuple):
    """A type of numbers by numpy's name (see _arrays.py); unknown ones have a size of 1 and V."""

    name: str


class _Storage:
    """Values that tensors lie in. Where they are is known when the whole pickle has been read."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count
        self.data: _arrays.Data | None = None
        self.base, self.offset = self, 0  # in old files one may be a part of another


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str


class _Module(_pickles.Built):
    """An object of a TorchScript class."""

    attributes: dict[Any, Any]

    def __init__(self) -> None:
        self.attributes = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError
        self.attributes = state


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View | _pickles.Foreign:
    """torch._utils._rebuild_tensor, _v2 (what follows: gradient, hooks) and _v3 (and then the type)."""
    if isinstance(storage, _pickles.Foreign):
        return storage
    if not isinstance(storage, _Storage) or type(offset) is not int:
        raise TypeError
    kind = rest[2].name if len(rest) > 2 and isinstance(rest[2], _Kind) else storage.kind
    return _View(storage, offset, _pickles.numbers(shape), _pickles.numbers(strides), kind)


def _of_class(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, or of a class that is more than a tensor."""
    name = kind.name if isinstance(kind, _pickles.Foreign) else ""
    if function is not _rebuild or name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return _pickles.Foreign(name, args)
    return _rebuild(*args)


def _ordered_dict() -> dict[Any, Any]:  # dict itself would copy what it is given
    return {}


def _first(value: Any, *_: Any) -> Any:
    return value


_KINDS = {
    "f4": ("FloatStorage", "float32", "float"),
    "f2": ("HalfStorage", "float16", "half"),
    "V2": ("BFloat16Storage", "bfloat16"),
    "f8": ("DoubleStorage", "float64", "double"),
    "i8": ("LongStorage", "int64", "long"),
    "i4": ("IntStorage", "int32", "int"),
    "i2": ("ShortStorage", "int16", "short"),
    "i1": ("CharStorage", "int8"),
    "u1": ("ByteStorage", "uint8"),
    "u2": ("uint16",),
    "u4": ("uint32",),
    "u8": ("uint64",),
    "b1": ("BoolStorage", "bool"),
    "c8": ("ComplexFloatStorage", "complex64", "cfloat"),
    "c16": ("ComplexDoubleStorage", "complex128", "cdouble"),
    "V1": ("storage.UntypedStorage", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
}
_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.Size": _pickles.numbers,
    **{f"torch.{name}": _Kind(f"<{kind}") for kind, names in _KINDS.items() for name in names},
}


def _find(name: str) -> Any:
    return _Module if name.startswith("__torch__.") else _GLOBALS.get(name) or _pickles.Foreign(name)


def _storages(found: dict[str, _Storage]) -> Callable[[Any], _Storage | _pickles.Foreign]:
    """What a pickle's references to storages stand for, noted in `found`."""

    def refer(what: Any) -> _Storage | _pickles.Foreign:
        if isinstance(what, tuple) and len(what) > 1 and isinstance(what[1], _pickles.Foreign):
            return what[1]  # ("module", class, file, source), or a storage of numbers that are not read
        if not isinstance(what, tuple) or len(what) not in (5, 6):
            raise TypeError
        word, kind, key, _, count, *view = what
        if (
            word != "storage"
            or not isinstance(kind, _Kind)
            or type(count) is not int
            or count < 0
            or not isinstance(key, str)
        ):
            raise TypeError
        if key not in found:
            found[key] = _Storage(kind.name, key, count)
        if not view or view[0] is None:
            return found[key]
        _, offset, count = view[0]
        if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= found[key].count:
            raise ValueError
        part = _Storage(kind.name, key, count)
        part.base, part.offset = found[key], offset
        return part

    return refer


# ---- the two kinds of file


def _read_zip(path: Path, data: memoryview) -> Any:
    """The object that was saved."""
    files = _zips.entries(path, data)
    root = next((name[: -len("data.pkl")] for name in files if re.fullmatch("([^/]+/)?data.pkl", name)), None)
    if root is None:
        raise CheckpointError(f"{path} is a zip archive without data.pkl: torch.save did not write it")
    order = files.get(f"{root}byteorder")
    if order is not None and bytes(order.reader(path)(0, min(order.size, 8))) != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine, which fastllm does not read")
    found: dict[str, _Storage] = {}
    top, _ = _pickles.load(path, _content(path, files[f"{root}data.pkl"]), _find, _storages(found))
    for key, storage in found.items():
        file = files.get(f"{root}data/{key}")
        if file is None:
            raise CheckpointError(f"{path} is broken: its storage {key!r} is missing")
        if storage.count * _arrays.size(storage.kind) > file.size:
            raise CheckpointError(
                f"{path} is broken: its storage {key!r} would hold {storage.count:,} values in {file.size:,} bytes"
            )
        storage.data = file.reader(path)
    return top


def _content(path: Path, file: _zips.Entry) -> memoryview:
    return file.reader(path)(0, file.size)


def _read_legacy(path: Path, data: memoryview) -> Any:
    """The object that was saved."""
    found: dict[str, _Storage] = {}
    at, parts = 0, []
    for _ in range(5):
        part, at = _pickles.load(path, data, _find, _storages(found), begin=at)
        parts.append(part)
    magic, _, machine, top, keys = parts
    if magic != _LEGACY_MAGIC or not isinstance(machine, dict) or not isinstance(keys, list):
        raise CheckpointError(f"{path} is broken: it does not begin as torch.save's files do")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved on a big-endian machine, which fastllm does not read")
    for key in keys:
        storage = found.get(key) if isinstance(key, str) else None
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


# ---- from objects to tensors


# What training code calls the model's weights, and the average of them, which comes after all that has half as many.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network", "weights", "params")
_AVERAGES = ("ema", "ema_state_dict", "model_ema", "ema_model")


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value.items if isinstance(value, _pickles.Foreign) else value if isinstance(value, dict) else {}


def _views(values: Mapping[Any, Any]) -> dict[str, _View]:
    return {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, _View)}


def _named(path: Path, top: Mapping[Any, Any]) -> dict[str, _View]:
    """The model's tensors among all that a file has."""
    places = {name: _weights_in(_mapping(value)) for name, value in top.items() if isinstance(name, str)} | {"": top}
    counts = {name: len(_views(values)) / (1 + (name in _AVERAGES)) for name, values in places.items()}
    place = next((name for name in _WEIGHTS if counts.get(name)), None)
    if place is None:
        most = max(counts.values())
        found = [name for name, count in counts.items() if count == most]
        if most and len(found) > 1:
            names = " and ".join(repr(name[:100]) for name in found[:2])
            raise CheckpointError(f"{path} has tensors under {names}: which of them are the model's is not known")
        place = found[-1]
    for name, value in places[place].items():
        if isinstance(value, _pickles.Foreign) and _has_values(value):
            raise CheckpointError(f"{path} has {str(name)[:200]!r} as {value.name[:200]}, which fastllm does not read")
    views = _views(places[place])
    if "pytorch-lightning_version" in top and len(first := {name.partition(".")[0] for name in views}) == 1:
        views = _without(views, f"{first.pop()}.")  # the attribute that the model is in
    # What torch.compile and DistributedDataParallel put before and between.
    views = {name.replace("_orig_mod.", ""): view for name, view in views.items()}
    return _without(views, "module.") if all(name.startswith("module.") for name in views) else views


def _weights_in(values: Mapping[Any, Any], depth: int = 3) -> Mapping[Any, Any]:
    """The dict itself where it has tensors, or what it has under a name of _WEIGHTS, which may go on so."""
    inner = next((values[name] for name in _WEIGHTS if _mapping(values.get(name))), None)
    if not depth or inner is None or _views(values):
        return values
    return _weights_in(_mapping(inner), depth - 1)


def _without(views: dict[str, _View], prefix: str) -> dict[str, _View]:
    return {name.removeprefix(prefix): view for name, view in views.items()}


def _has_values(value: _pickles.Foreign) -> bool:
    """Whether a tensor's values are what an unknown object is made of: it may be a weight, in a form of its own."""
    args = value.args if isinstance(value.args, tuple) else ()
    inside = [*args, *(item for each in args[:64] if isinstance(each, tuple) for item in each)]
    return value.name.endswith("Storage") or any(isinstance(each, (_Storage, _View)) for each in inside)


def _attributes(path: Path, module: _Module) -> list[tuple[str, _View]]:
    """The tensors of a module and of those inside it. tch writes one module, with | for the dots of its names."""
    found: list[tuple[str, _View]] = []
    waiting = [("", module, 0)]
    while waiting:
        prefix, part, depth = waiting.pop()
        for key, value in part.attributes.items():
            name = prefix + str(key)[:_MOST_NAME].replace("|", ".")
            if isinstance(value, _View):
                found.append((name, value))
            elif isinstance(value, _Module):
                waiting.append((f"{name}.", value, depth + 1))
        if depth > _MOST_DEPTH or len(prefix) > _MOST_NAME or len(found) + len(waiting) > _MOST_NAMES:
            raise CheckpointError(f"{path} is broken: its modules contain each other without end")
    return found


def _tensor(path: Path, name: str, view: _View) -> Tensor:
    """A view on its storage. Both may have a type: where they differ, the storage is of bytes."""
    storage = view.storage
    source = storage.base.data
    if source is None:
        raise CheckpointError(f"{path} is truncated: the storage of tensor {name!r} is missing")
    width, own = _arrays.size(view.kind), _arrays.size(storage.kind)
    start, size = storage.offset * own, storage.count * own

    def data(begin: int, end: int) -> memoryview:
        return source(start + begin, start + end)

    return _arrays.tensor(
        view.kind,
        view.shape,
        data,
        f"tensor {name!r} of {path}",
        strides=view.strides,
        count=size // width,
        offset=view.offset,
    )
