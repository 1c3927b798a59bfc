"""Converts a checkpoint to the file that is mapped and run as it lies on disk (store), or to llama2.c's (_llama2c)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError, OptionError, TokenizerError
from fastllm.families import Recipe, Weight
from fastllm.files import check_target, read_file, reading
from fastllm.heads import dense
from fastllm.machine import check_threads
from fastllm.tensors import Bytes, Tensor
from fastllm.tokenizer import Frame, stop_tokens
from fastllm.weights import store
from fastllm.weights.packing import Plan, Progress, assemble, chunks, pack, plan, vectors
from fastllm.weights.source import (
    Adapters,
    Opened,
    check_not_converted,
    find_adapters,
    find_source,
    open_source,
    stored_tokenizer,
)

if TYPE_CHECKING:
    from fastllm.weights.calibration import Calibration

FORMATS = ("fastllm", "llama2c")


@_core.standard_floats
def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    format: str = "fastllm",  # noqa: A002  # the command line's word
    version: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    lora: Adapters | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TokenizerError | None:
    """Converts a checkpoint, anything that fastllm.load takes, to the file `out`.

    dtype, tokenizer, revision, lora, threads, progress: as for load. format: "fastllm", with the tokenizer inside, or
    "llama2c", whose version (default 0) says the type: 0 and 1 are f32, 2 is int8. The same input gives the same bytes
    on any machine. The file appears whole or not at all. Only a piece of a matrix is in memory at a time.

    calibrate: a file of UTF-8 text, 256 to some thousand tokens of the kind that the model is for. q4 is then packed
    for the least error in what the model computes on that text (fastllm.weights.calibration). That takes minutes
    instead of seconds, and memory for the model as q8.

    Returns the reason why there is no tokenizer inside, or None if there is one. Raises CheckpointError, OptionError,
    and TokenizerError for a `tokenizer` that does not fit.
    """
    _check_options(dtype, format, version, calibrate)
    count = check_threads(threads)
    path, from_hub = find_source(source, revision)
    adapters = find_adapters(lora)
    target = Path(out)
    check_target(target)
    for source_path in (path, *adapters):
        _check_apart(source_path, target)
    with reading() as read:
        if (stored := store.open_file(path)) is not None:
            check_not_converted(path, adapters)
            opened = _reopened(path, stored, tokenizer)
        else:
            opened = open_source(path, tokenizer, from_hub=from_hub, adapters=adapters)
        text = None if calibrate is None else _text(Path(calibrate))
        check_target(target)  # again: now the files that are read are known, which must not be overwritten
        watched = read.watched(progress)
        try:
            if format == "llama2c":
                from fastllm.weights import _llama2c

                _llama2c.write(target, opened.recipe, version or 0, progress=watched)
            else:
                plans = plan(opened.recipe, dtype or opened.dtype)
                seen = None if text is None else _calibration(opened, text, count)
                store.write(target, opened.stored(), parts(opened.recipe, plans, count, watched, seen))
        except CheckpointError as error:
            if str(path) in str(error) or str(target) in str(error):
                raise
            raise CheckpointError(f"{path} cannot be converted: {error}") from None
    return opened.tokenizer if isinstance(opened.tokenizer, TokenizerError) and format == "fastllm" else None


def _check_options(dtype: str | None, form: str, version: int | None, calibrate: object) -> None:
    """Raises OptionError for a value that is not known, or does not go with the others."""
    store.check_dtype(dtype)
    if form not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    if form == "llama2c" and dtype is not None:
        raise OptionError("llama2.c's version says the dtype: 0 and 1 are f32, 2 is int8")
    if form != "llama2c" and version is not None:
        raise OptionError("a version is llama2.c's: it goes with the format llama2c")
    if calibrate is not None and (dtype != "q4" or form != "fastllm"):
        raise OptionError("a calibration text is for the dtype q4")


def _text(path: Path) -> str:
    """A calibration text."""
    try:
        return read_file(path).decode("utf-8")
    except (CheckpointError, UnicodeDecodeError) as error:
        raise OptionError(f"the calibration text {path} cannot be read: {error}") from None


def _calibration(opened: Opened, text: str, threads: int) -> Calibration:
    """The calibration of a checkpoint by a text, which the model reads as q8."""
    from fastllm.weights.calibration import Calibration

    recipe, words = opened.recipe, opened.tokenizer
    if isinstance(words, TokenizerError):
        raise words
    stop, _ = stop_tokens(recipe.stop, recipe.chat_stop, words.ends)
    frame = Frame(words, recipe.bos, stop, encoder=not recipe.config.causal)
    stored = assemble(recipe, dtype="q8", threads=threads)
    return Calibration(stored, frame.tokenize(""), words.encode(text), threads=threads)


def parts(
    recipe: Recipe, plans: dict[str, Plan], threads: int, progress: Progress, calibration: Calibration | None = None
) -> dict[str, store.Part]:
    """The file's tensors. A matrix is packed piece by piece, while the file is written."""
    total, done = sum(p.nbytes for p in plans.values()), 0

    def packed(name: str, matrix: Plan) -> Iterator[Bytes]:
        nonlocal done
        for rows in chunks(matrix):
            out = memoryview(_core.Buffer(rows.nbytes))
            pack(matrix, rows, out, threads=threads, name=name, calibration=calibration)
            done += rows.nbytes
            progress(done, total)
            yield out

    found = {name: store.Part(p.dtype, p.shape, p.nbytes, packed(name, p)) for name, p in plans.items()}
    for name, vector in vectors(recipe).items():
        found[name] = store.Part(None, vector.shape, vector.nbytes, (vector.data,))
    return found


def _reopened(path: Path, stored: store.Stored, tokenizer: str | os.PathLike[str] | None) -> Opened:
    """A converted file whose weights are floats, as a checkpoint to convert."""
    have = stored.dtypes
    if not set(have) <= {"f32", "f16", "bf16"}:
        raise OptionError(f"{path} is already converted to {', '.join(have)}: convert the checkpoint it was made from")
    matrices = {n: Weight(_unpacked(t)) for n, t in stored.tensors.items() if isinstance(t, _core.Matrix)}
    values = {n: t.data for n, t in stored.tensors.items() if isinstance(t, _core.Vector)}
    chains = {
        chain: [
            dense.Layer(_unpacked(layer.matrix), None if layer.bias is None else layer.bias.data, layer.act)
            for layer in layers
        ]
        for chain, layers in stored.dense.items()
    }
    recipe = Recipe(**store.shared(stored), matrices=matrices, vectors=values, dense=chains)
    words = stored_tokenizer(stored, path, tokenizer)
    return Opened(stored.source, recipe, words, have[0] if len(have) == 1 else None)


def _unpacked(matrix: _core.Matrix) -> Tensor:
    """A matrix, or a stack of them, read as f32 from its panels."""
    *_, d, n = matrix.shape
    size = _core.matrix_bytes(matrix.dtype, d, n)
    stack = [_core.Matrix(matrix.dtype, d, n, matrix.data[at : at + size]) for at in range(0, len(matrix.data), size)]

    def read(begin: int, end: int) -> Bytes:
        import numpy

        out = numpy.empty((end - begin, n), numpy.float32)
        for i in range(begin, end):
            stack[i // d].row(i % d, out[i - begin])
        return out

    return Tensor("f32", matrix.shape, read)


def _check_apart(source: Path, target: Path) -> None:
    """Raises CheckpointError where `target` is a file in the checkpoint's folder, even one that is not read."""
    if target.exists() and source.resolve() in target.resolve().parents:
        raise CheckpointError(f"{target} cannot be written: it is what would be converted, or a part of it")
