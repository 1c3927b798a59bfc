"""Finds the model's weights in an object that torch.save wrote: a state_dict, a training run's dict, a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.formats._pickles import Foreign
from fastllm.formats._torch_objects import Module, Storage, View

# The keys under which training code saves a model's weights, and those of their moving average.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network", "weights", "params")
_AVERAGES = ("ema", "ema_state_dict", "model_ema", "ema_model")
# Limits for TorchScript modules. They may share modules, so a small file may describe a tree of any size.
_MOST_DEPTH, _MOST_NAMES, _MOST_NAME = 64, 1 << 17, 1024


def views_of(path: Path, top: Any) -> dict[str, View]:
    """The model's tensors in a saved object, by name; empty if it has none.

    Raises CheckpointError where it is ambiguous which tensors are the model's, or one has a form that is not read.
    """
    return _views_of_module(path, top) if isinstance(top, Module) else _views_of_dict(path, mapping(top))


def mapping(value: Any) -> Mapping[Any, Any]:
    """The items of a dict or of an unknown kind of dict; empty for any other object."""
    return value.items if isinstance(value, Foreign) else value if isinstance(value, dict) else {}


def _views_of_dict(path: Path, top: Mapping[Any, Any]) -> dict[str, View]:
    weights = _weights_of(path, top)
    for name, value in weights.items():
        if isinstance(value, Foreign) and _holds_values(value):
            raise CheckpointError(f"{path} has {str(name)[:200]!r} as {value.name[:200]}, which fastllm does not read")
    views = _views(weights)
    # Lightning saves its own module, which has the model as an attribute: "net.layers.0..." for self.net.
    if "pytorch-lightning_version" in top and len(first := {name.partition(".")[0] for name in views}) == 1:
        views = _without(views, f"{first.pop()}.")
    # torch.compile puts _orig_mod. into names, DistributedDataParallel module. before them.
    views = {name.replace("_orig_mod.", ""): view for name, view in views.items()}
    return _without(views, "module.") if all(name.startswith("module.") for name in views) else views


def _weights_of(path: Path, top: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The dict that holds the model's tensors: what lies under a key of _WEIGHTS, else the one with most tensors.

    A moving average counts half, so that it is not taken where other weights have as many tensors.
    """
    places = {name: _innermost(mapping(value)) for name, value in top.items() if isinstance(name, str)} | {"": top}
    counts = {name: len(_views(values)) / (1 + (name in _AVERAGES)) for name, values in places.items()}
    place = next((name for name in _WEIGHTS if counts.get(name)), None)
    if place is None:
        most = max(counts.values())
        found = [name for name, count in counts.items() if count == most]
        if most and len(found) > 1:
            names = " and ".join(repr(name[:100]) for name in found[:2])
            raise CheckpointError(f"{path} has tensors under {names}: which of them are the model's is not known")
        place = found[-1]
    return places[place]


def _innermost(values: Mapping[Any, Any], depth: int = 3) -> Mapping[Any, Any]:
    """The dict itself if it has tensors, else what it has under a key of _WEIGHTS, at most `depth` levels down."""
    inner = next((values[name] for name in _WEIGHTS if mapping(values.get(name))), None)
    if not depth or inner is None or _views(values):
        return values
    return _innermost(mapping(inner), depth - 1)


def _views(values: Mapping[Any, Any]) -> dict[str, View]:
    return {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, View)}


def _without(views: dict[str, View], prefix: str) -> dict[str, View]:
    return {name.removeprefix(prefix): view for name, view in views.items()}


def _holds_values(value: Foreign) -> bool:
    """Whether an unknown object is made of a tensor or storage, so that it may be a weight of a class of its own."""
    args = value.args if isinstance(value.args, tuple) else ()
    inside = [*args, *(item for each in args[:64] if isinstance(each, tuple) for item in each)]
    return value.name.endswith("Storage") or any(isinstance(each, (Storage, View)) for each in inside)


def _views_of_module(path: Path, module: Module) -> dict[str, View]:
    """The tensors of a TorchScript module and of the modules inside it, by dotted names.

    tch (libtorch in Rust) saves a single module, in whose names | stands for the dots.
    """
    found: list[tuple[str, View]] = []
    waiting = [("", module, 0)]
    while waiting:
        prefix, part, depth = waiting.pop()
        for key, value in part.attributes.items():
            name = prefix + str(key)[:_MOST_NAME].replace("|", ".")
            if isinstance(value, View):
                found.append((name, value))
            elif isinstance(value, Module):
                waiting.append((f"{name}.", value, depth + 1))
        if depth > _MOST_DEPTH or len(prefix) > _MOST_NAME or len(found) + len(waiting) > _MOST_NAMES:
            raise CheckpointError(f"{path} is broken: its modules contain each other without end")
    return dict(found)
