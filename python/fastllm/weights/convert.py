"""Converting a checkpoint: to the file that is mapped and run as it lies on disk, or to llama2.c's."""

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
from fastllm.tokenizer.frame import Frame, stop_tokens
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
    """Converts a checkpoint, which load would take, to the file `out`.

    dtype, tokenizer, revision, lora, threads, progress: as for load. format: "fastllm", which has the tokenizer inside,
    or "llama2c", whose version (0) is 0 or 1, in f32, or 2, in int8; it has no other dtype. The same input gives the
    same bytes on any machine; the file appears whole or not at all, and memory is needed for one piece of a matrix.

    calibrate: a file of UTF-8 text, 256 to some thousand tokens of the kind the model is for; q4 is packed for the
    least error in what the model computes while it reads that (see fastllm.weights.calibration), which takes minutes
    rather than seconds, and memory for the model as q8.

    Returns why there is no tokenizer inside, where there is none. Raises CheckpointError, TokenizerError (a tokenizer
    that was named does not fit), OptionError.
    """
    store.check_dtype(dtype)
    if format not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if format == "llama2c" and dtype is not None:
        raise OptionError("llama2.c's version says the dtype: 0 and 1 are f32, 2 is int8")
    if format != "llama2c" and version is not None:
        raise OptionError("a version is llama2.c's: it goes with the format llama2c")
    if calibrate is not None and (dtype != "q4" or format != "fastllm"):
        raise OptionError("a calibration text is for the dtype q4")
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
        check_target(target)  # now that it is known what is read
        watched = read.watched(progress)
        try:
            if format == "llama2c":
                from fastllm.weights import llama2c

                llama2c.write(target, opened.recipe, version or 0, progress=watched)
            else:
                plans = plan(opened.recipe, dtype or opened.dtype)
                seen = None if text is None else _calibration(opened, text, count)
                store.write(target, opened.stored(), _parts(opened.recipe, plans, count, watched, seen))
        except CheckpointError as error:
            if str(path) in str(error) or str(target) in str(error):
                raise
            raise CheckpointError(f"{path} cannot be converted: {error}") from None
    return opened.tokenizer if isinstance(opened.tokenizer, TokenizerError) and format == "fastllm" else None


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8")
    except (CheckpointError, UnicodeDecodeError) as error:
        raise OptionError(f"the calibration text {path} cannot be read: {error}") from None


def _calibration(opened: Opened, text: str, threads: int) -> Calibration:
    """What the model's inputs are while it reads a text."""
    from fastllm.weights.calibration import Calibration

    recipe, words = opened.recipe, opened.tokenizer
    if isinstance(words, TokenizerError):
        raise words
    stop, _ = stop_tokens(recipe.stop, recipe.chat_stop, words.ends)
    frame = Frame(words, recipe.bos, stop, encoder=not recipe.config.causal)
    stored = assemble(recipe, dtype="q8", threads=threads)
    return Calibration(stored, frame.tokenize(""), words.encode(text), threads=threads)


def _parts(
    recipe: Recipe, plans: dict[str, Plan], threads: int, progress: Progress, calibration: Calibration | None
) -> dict[str, store.Part]:
    """What the file holds; a matrix is packed when its part is written."""
    total, done = sum(p.nbytes for p in plans.values()), 0

    def packed(name: str, matrix: Plan) -> Iterator[Bytes]:
        nonlocal done
        for rows in chunks(matrix):
            out = memoryview(_core.Buffer(rows.nbytes))
            pack(matrix, rows, out, threads=threads, name=name, calibration=calibration)
            done += rows.nbytes
            progress(done, total)
            yield out

    parts = {name: store.Part(p.dtype, p.shape, p.nbytes, packed(name, p)) for name, p in plans.items()}
    for name, vector in vectors(recipe).items():
        parts[name] = store.Part(None, vector.shape, vector.nbytes, (vector.data,))
    return parts


# ---- from a converted file -------------------------------------------------------------------------------------------


def _reopened(path: Path, stored: store.Stored, tokenizer: str | os.PathLike[str] | None) -> Opened:
    """A converted file's floats as a source again."""
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
    recipe = Recipe(
        stored.config,
        matrices,
        values,
        stored.bos,
        stored.stop,
        stored.chat_stop,
        chains,
        stored.embedding,
        stored.classifier,
        stored.ranking,
    )
    words = stored_tokenizer(stored, path, tokenizer)
    return Opened(stored.source, recipe, words, have[0] if len(have) == 1 else None)


def _unpacked(matrix: _core.Matrix) -> Tensor:
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


# ---- what must not happen --------------------------------------------------------------------------------------------


def _check_apart(source: Path, target: Path) -> None:
    """Nothing that lies in the checkpoint's folder is written over, though nothing be read of it."""
    if target.exists() and source.resolve() in target.resolve().parents:
        raise CheckpointError(f"{target} cannot be written: it is what would be converted, or a part of it")
