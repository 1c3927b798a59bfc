"""The objects that a pickle of torch.save may build: storages, views on them, dicts, and TorchScript's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastllm.formats import _arrays
from fastllm.formats._pickles import Built, Foreign, numbers


class Storage:
    """A run of `count` values of type `kind`, numpy's name.

    data: reads the values' bytes; set when the whole pickle has been read, for only then it is known where they lie.
    base, offset: in files from before torch 1.6 a storage may be a part of another, from value `offset` on.
    """

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count
        self.data: _arrays.Data | None = None
        self.base, self.offset = self, 0


class View(NamedTuple):
    """A tensor: value (i, j, ...) is value offset + i * strides[0] + j * strides[1] + ... of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str


class Module(Built):
    """An object of a TorchScript class."""

    attributes: dict[Any, Any]

    def __init__(self) -> None:
        self.attributes = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError
        self.attributes = state


class _Kind(NamedTuple):
    """A torch dtype or class of storages, by numpy's name of the type."""

    name: str


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Foreign:
    """torch._utils._rebuild_tensor, _rebuild_tensor_v2 and _v3.

    rest: v2 adds requires_grad, hooks and metadata; in v3 the third is the dtype.
    """
    if isinstance(storage, Foreign):
        return storage
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise TypeError
    kind = rest[2].name if len(rest) > 2 and isinstance(rest[2], _Kind) else storage.kind
    return View(storage, offset, numbers(shape), numbers(strides), kind)


def _rebuild_from_type(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor that has attributes. A subclass of tensors stays a Foreign."""
    name = kind.name if isinstance(kind, Foreign) else ""
    if function is not _rebuild or name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return Foreign(name, args)
    return _rebuild(*args)


def _ordered_dict() -> dict[Any, Any]:
    """Takes no arguments, as dict itself does: it would copy a large one as often as the pickle says."""
    return {}


def _first(value: Any, *_: Any) -> Any:
    return value


# numpy's name of a type -> its names in torch: classes of storages, dtypes. Types of V1 and c8, c16 are not read.
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
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.Size": numbers,
    **{f"torch.{name}": _Kind(f"<{kind}") for kind, names in _KINDS.items() for name in names},
}


def find(name: str) -> Any:
    """What a global in the pickle stands for. Unknown ones become a Foreign, which is not built."""
    return Module if name.startswith("__torch__.") else _GLOBALS.get(name) or Foreign(name)


def storage_of(storages: dict[str, Storage]) -> Callable[[Any], Storage | Foreign]:
    """A function that turns the pickle's persistent ids into storages, kept in `storages` by key.

    An id is ("storage", class, key, device, count), in files from before torch 1.6 with a sixth item: None, or (key,
    offset, count) of a part.
    """

    def refer(what: Any) -> Storage | Foreign:
        if isinstance(what, tuple) and len(what) > 1 and isinstance(what[1], Foreign):
            return what[1]  # ("module", class, file, source), or a storage of a type that is not read
        if not isinstance(what, tuple) or len(what) not in (5, 6):
            raise TypeError
        word, kind, key, _, count, *part = what
        if (
            word != "storage"
            or not isinstance(kind, _Kind)
            or type(count) is not int
            or count < 0
            or not isinstance(key, str)
        ):
            raise TypeError
        if key not in storages:
            storages[key] = Storage(kind.name, key, count)
        return _part_of(storages[key], kind, part[0]) if part and part[0] is not None else storages[key]

    return refer


def _part_of(base: Storage, kind: _Kind, place: Any) -> Storage:
    _, offset, count = place
    if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= base.count:
        raise ValueError
    part = Storage(kind.name, base.key, count)
    part.base, part.offset = base, offset
    return part
