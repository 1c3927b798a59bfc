"""Converts a checkpoint to the file that is mapped and run as it lies on disk (store), or to llama2.c's (_llama2c)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError, OptionError, TokenizerError
from fastllm.families import Recipe, Weight
from fastllm.files import check_target, read_file, reading
from fastllm.heads import dense
from fastllm.machine import check_threads
from fastllm.tensors import SIZES, Bytes, Tensor, unblocked
from fastllm.tokenizer import Frame, stop_tokens
from fastllm.weights import store
from fastllm.weights.ahead import packed
from fastllm.weights.packing import Plan, Progress, Rows, assemble, chunks, pack, plan, vectors
from fastllm.weights.pruning import options
from fastllm.weights.pruning.scratch import Scratch
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
    precise: bool = False,
    format: str = "fastllm",  # noqa: A002  # the command line's word
    version: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    prune: str | None = None,
    drop_layers: int | None = None,
    revision: str | None = None,
    lora: Adapters | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TokenizerError | None:
    """Converts a checkpoint, anything that fastllm.load takes, to the file `out`.

    dtype, tokenizer, revision, lora, threads, progress: as for load. format: "fastllm", with the tokenizer inside, or
    "llama2c", whose version (default 0) says the type: 0 and 1 are f32, 2 is int8. The same input gives the same bytes
    on any machine. The file appears whole or not at all. Only a piece of a matrix is in memory at a time.

    precise: the file is run with activations of 15 bits instead of 8, unless load says otherwise.

    calibrate: a file of UTF-8 text, 256 to some thousand tokens of the kind that the model is for. q4 is then packed
    for the least error in what the model computes on that text (fastllm.weights.calibration). That takes minutes
    instead of seconds, and memory for the model as q8.

    prune: sets weights of linear layers to zero before they are packed: "magnitude:0.5" the smallest half of each
    matrix, "threshold:0.1" those below 0.1, "wanda:0.5" and "sparsegpt:0.5" those that the text `calibrate` shows to
    matter least, "magnitude:2of4" (or wanda, sparsegpt) two of each four neighbours. drop_layers: how many layers are
    left out, those that change the text's hidden states least. `calibrate` also serves to measure what both cost. The
    file says what was done (fastllm.weights.store.Pruning). Pruned matrices lie in a temporary file beside `out`.

    Returns the reason why there is no tokenizer inside, or None if there is one. Raises CheckpointError, OptionError,
    and TokenizerError for a `tokenizer` that does not fit.
    """
    method = None if prune is None else options.parse(prune)
    options.check(method, drop_layers, text=calibrate is not None)
    pruning = method is not None or drop_layers is not None
    _check_options(dtype, format, version, calibrate, precise=precise, pruning=pruning)
    count = check_threads(threads)
    path, from_hub = find_source(source, revision)
    adapters = find_adapters(lora)
    target = Path(out)
    check_target(target)
    for source_path in (path, *adapters):
        _check_apart(source_path, target)
    with reading() as read, Scratch(Path(os.path.realpath(target)).parent) as scratch:
        if (stored := store.open_file(path)) is not None:
            check_not_converted(path, adapters)
            if pruning and stored.pruning is not None:
                raise OptionError(f"{path} is already pruned: prune the checkpoint it was made from")
            opened = _reopened(path, stored, tokenizer)
        else:
            opened = open_source(path, tokenizer, from_hub=from_hub, adapters=adapters)
        if precise:
            opened = opened._replace(recipe=opened.recipe._replace(config=opened.recipe.config._replace(precise=True)))
        text = None if calibrate is None else _text(Path(calibrate))
        check_target(target)  # again: now the files that are read are known, which must not be overwritten
        watched = read.watched(progress)
        try:
            if format == "llama2c":
                from fastllm.weights import _llama2c

                _llama2c.write(target, opened.recipe, version or 0, progress=watched)
            else:
                if pruning:
                    opened, watched = _pruned(
                        opened,
                        text,
                        method=method,
                        drop=drop_layers or 0,
                        scratch=scratch,
                        dtype=dtype,
                        threads=count,
                        progress=watched,
                    )
                zeros = opened.pruning is not None and opened.pruning.zeros is not None
                plans = plan(opened.recipe, dtype or opened.dtype, pruned=zeros)
                rounded = any(p.dtype == "q4" and p.source.dtype in SIZES for p in plans.values())
                if text is not None and not pruning and not rounded:
                    raise OptionError(f"calibrate has no effect: {path} has its weights in four bits, which stay")
                seen = None if text is None or dtype != "q4" else _calibration(opened, text, count)
                store.write(target, opened.stored(), parts(opened.recipe, plans, count, watched, seen))
        except CheckpointError as error:
            if str(path) in str(error) or str(target) in str(error):
                raise
            raise CheckpointError(f"{path} cannot be converted: {error}") from None
    return opened.tokenizer if isinstance(opened.tokenizer, TokenizerError) and format == "fastllm" else None


def _check_options(
    dtype: str | None, form: str, version: int | None, calibrate: object, *, precise: bool, pruning: bool
) -> None:
    """Raises OptionError for a value that is not known, or does not go with the others."""
    store.check_dtype(dtype)
    if form not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    if form == "llama2c" and dtype is not None:
        raise OptionError("llama2.c's version says the dtype: 0 and 1 are f32, 2 is int8")
    if form != "llama2c" and version is not None:
        raise OptionError("a version is llama2.c's: it goes with the format llama2c")
    if precise and form == "llama2c":
        raise OptionError("llama2.c's files cannot say that they are to be run precisely")
    if pruning and form != "fastllm":
        raise OptionError("prune and drop_layers go with the format fastllm, and its files can be converted to llama2c")
    if calibrate is not None and ((dtype != "q4" and not pruning) or form != "fastllm"):
        raise OptionError("a calibration text is for the dtype q4, and for pruning")


def _text(path: Path) -> str:
    """A calibration text."""
    try:
        return read_file(path).decode("utf-8")
    except (CheckpointError, UnicodeDecodeError) as error:
        raise OptionError(f"the calibration text {path} cannot be read: {error}") from None


def _tokens(opened: Opened, text: str) -> tuple[list[int], list[int]]:
    """The ids that a checkpoint's texts begin with, and those of a text. Raises the TokenizerError that it has."""
    recipe, words = opened.recipe, opened.tokenizer
    if isinstance(words, TokenizerError):
        raise words
    stop, _ = stop_tokens(recipe.stop, recipe.chat_stop, words.ends)
    frame = Frame(words, recipe.bos, stop, encoder=not recipe.config.causal)
    return frame.tokenize(""), words.encode(text)


def _calibration(opened: Opened, text: str, threads: int) -> Calibration:
    """The calibration of a checkpoint by a text, which the model reads as q8."""
    from fastllm.weights.calibration import Calibration

    stored = assemble(opened.recipe, dtype="q8", threads=threads)
    return Calibration(stored, *_tokens(opened, text), threads=threads)


def _pruned(
    opened: Opened,
    text: str | None,
    *,
    method: options.Method | None,
    drop: int,
    scratch: Scratch,
    dtype: str | None,
    threads: int,
    progress: Progress,
) -> tuple[Opened, Progress]:
    """The checkpoint pruned, and the progress of packing it, before which pruning counts as as many bytes again."""
    from fastllm.weights.pruning.prune import Pruner, Text

    if method is not None:  # blocks that weights are taken out of are blocks no more
        matrices = {name: w._replace(tensor=unblocked(w.tensor)) for name, w in opened.recipe.matrices.items()}
        opened = opened._replace(recipe=opened.recipe._replace(matrices=matrices))
    plans = plan(opened.recipe, dtype or opened.dtype, pruned=method is not None)
    total = sum(p.nbytes for p in plans.values())
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(total * done // pruner.steps, 2 * total)

    pruner = Pruner(
        opened.recipe,
        method=method,
        drop=drop,
        text=None if text is None else Text(*_tokens(opened, text)),
        scratch=scratch,
        dtype=opened.dtype,
        threads=threads,
        step=step,
    )
    recipe, pruning = pruner.run()
    opened = opened._replace(recipe=recipe, pruning=pruning)
    return opened, lambda part, whole: progress(total + part, total + whole)


def parts(
    recipe: Recipe, plans: dict[str, Plan], threads: int, progress: Progress, calibration: Calibration | None = None
) -> dict[str, store.Part]:
    """The file's tensors. Matrices are packed piece by piece, in this order, while the file is written."""
    total, done = sum(p.nbytes for p in plans.values()), 0

    def pack_piece(name: str, matrix: Plan, rows: Rows, data: Bytes, out: memoryview) -> None:
        # What is calibrated is so in order, and a reordered matrix is one piece: each has all threads.
        team = threads if calibration or matrix.weight.rows is not None else 1
        pack(matrix, rows, out, threads=team, name=name, calibration=calibration, data=data)

    pieces = packed(plans, pack_piece, 1 if calibration else threads)

    def of(matrix: Plan) -> Iterator[Bytes]:
        nonlocal done
        for piece in islice(pieces, sum(1 for _ in chunks(matrix))):
            done += len(piece)
            progress(done, total)
            yield piece

    found = {name: store.Part(p.dtype, p.shape, p.nbytes, of(p), p.values) for name, p in plans.items()}
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
    return Opened(stored.source, recipe, words, have[0] if len(have) == 1 else None, pruning=stored.pruning)


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
