"""fastllm inspect: what a model file holds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    from fastllm.tensors import Tensor
    from fastllm.weights.store import Stored

_LONG = 200  # characters of a value that inspect shows


def options(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("file", metavar="PATH", help="a file, a folder, or a name of the hub")


class _Contents(NamedTuple):
    """What inspect shows of a file. rows: name, type, shape and bytes of each tensor."""

    format: str
    header: dict[str, Any]
    rows: list[tuple[str, str, tuple[int, ...], int]]
    tokenizer: tuple[str, bytes] | None
    as_read: str = ""
    unused: frozenset[str] = frozenset()
    refusal: str = ""


def run(args: argparse.Namespace) -> int:
    from fastllm.files import reading
    from fastllm.weights import store
    from fastllm.weights.source import find_source

    path, _ = find_source(args.file, None)
    with reading():
        stored = store.open_file(path)
        found = _of_checkpoint(path) if stored is None else _of_stored(stored)
    header, rows = found.header, found.rows
    if found.tokenizer:
        header["tokenizer"] = f"{found.tokenizer[0]}, {len(found.tokenizer[1]):,} bytes"
    total = sum(nbytes for *_, nbytes in rows)
    print(f"{path}: {found.format}, {total if path.is_dir() else path.stat().st_size:,} bytes")
    for key, value in header.items():
        text = str(value).replace("\n", "\\n")
        print(f"  {key:14} {text if len(text) <= _LONG else text[:_LONG] + ' ...'}")
    width = max((len(key) for key, *_ in rows), default=0)
    for key, dtype, shape, nbytes in rows:
        mark = "  unused" if key in found.unused else ""
        print(f"  {key:{width}}  {dtype:6}  {' x '.join(map(str, shape)):>16}  {nbytes:>14,} bytes{mark}")
    parameters = sum(math.prod(shape) for _, _, shape, _ in rows)
    print(f"{len(rows)} tensors, {parameters:,} parameters, {total:,} bytes{found.as_read}")
    if found.unused:
        print(f"{len(found.unused)} of them have no effect: unused")
    if found.refusal:
        print(f"cannot be run: {found.refusal}")
    return 0


def _of_stored(stored: Stored) -> _Contents:
    header = stored.config.to_json()
    if embedding := stored.embedding.to_json():
        header["embedding"] = embedding
    if stored.sampling:
        header["sampling"] = dict(stored.sampling)
    if stored.source:
        header["source"] = stored.source
    if stored.pruning is not None:
        header["pruned"] = stored.pruning
    if stored.classifier is not None:
        header["labels"] = stored.classifier.labels
    rows = [(k, getattr(t, "dtype", "f32"), t.shape, t.nbytes) for k, t in stored.tensors.items()]
    for chain, layers in stored.dense.items():
        matrices = [layer.matrix for layer in layers]
        rows += [(f"{chain}.{i}", m.dtype, m.shape, m.nbytes) for i, m in enumerate(matrices)]
    return _Contents("fastllm", header, rows, stored.tokenizer)


def _of_checkpoint(path: Path) -> _Contents:
    from fastllm import families
    from fastllm.formats import open_checkpoint, quantized

    checkpoint = open_checkpoint(path)
    header = dict(checkpoint.header)
    header["architecture"] = checkpoint.architecture
    if (scheme := quantized.scheme(checkpoint)) is not None:
        header["quantized"] = scheme
    rows = [(k, *_as_stored(t)) for k, t in checkpoint.tensors.items()]
    unpacked = any(t.stored not in (None, t.dtype) and not t.raw for t in checkpoint.tensors.values())
    as_read = " as they are read" if unpacked else ""
    unused, refusal = frozenset[str](), ""
    try:
        recipe = families.recipe(quantized.dequantized(checkpoint))
        unused = frozenset(recipe.unused)
        if recipe.sampling:
            header["sampling"] = recipe.sampling
    except CheckpointError as error:
        refusal = str(error)
    return _Contents(checkpoint.format, header, rows, checkpoint.tokenizer, as_read, unused, refusal)


def _as_stored(tensor: Tensor) -> tuple[str, tuple[int, ...], int]:
    """A tensor's type, shape and bytes as stored in the file; some types have the bytes that are read."""
    if tensor.raw is not None:
        return tensor.raw.kind, tensor.shape, math.prod(tensor.shape) * tensor.raw.size
    return tensor.stored or tensor.dtype, tensor.shape, tensor.nbytes
