"""Converts a checkpoint to the file that is mapped and run as it lies on disk (store), or to llama2.c's (_llama2c)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from fastllm import _core
from fastllm.errors import CheckpointError, OptionError, TokenizerError
from fastllm.families import Recipe, Weight
from fastllm.files import check_target, reading
from fastllm.heads import dense
from fastllm.machine import check_threads
from fastllm.tensors import Bytes, Tensor, unblocked
from fastllm.weights import budget, store, text
from fastllm.weights.ahead import packed
from fastllm.weights.calibration import Calibration, calibrated, is_rounded
from fastllm.weights.packing import Known, Plan, Progress, Rows, chunks, pack, plan, vectors
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
from fastllm.weights.text import Text

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
    bits: float | None = None,
    calibrate: str | os.PathLike[str] | Literal[False] | None = None,
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

    calibrate: weights are rounded to four bits for the least error in what the model computes on a text
    (fastllm.weights.calibration), which takes a few times as long. None: on our own text, where the model is a causal
    language model with a tokenizer. A file of UTF-8 text, 256 to some thousand tokens: on that, of the kind that the
    model is for. False: each weight is rounded by itself.

    bits: instead of dtype, the mean bits of a weight, 4.5 to 8.5. Each matrix becomes q4 or q8, or stays in the four
    bits that the file has, as costs the model least on the text (fastllm.weights.budget). That takes memory for the
    model as q8 and q4, and as many forwards as there are matrices.

    prune: sets weights of linear layers to zero before they are packed: "magnitude:0.5" the smallest half of each
    matrix, "threshold:0.1" those below 0.1, "wanda:0.5" and "sparsegpt:0.5" those that the text `calibrate` shows to
    matter least, "magnitude:2of4" (or wanda, sparsegpt) two of each four neighbours. drop_layers: how many layers are
    left out, those that change the text's hidden states least. The text also serves to measure what both cost. The
    file says what was done (fastllm.weights.store.Pruning). Pruned matrices lie in a temporary file beside `out`.

    Returns the reason why there is no tokenizer inside, or None if there is one. Raises CheckpointError, OptionError,
    and TokenizerError for a `tokenizer` that does not fit.
    """
    method = None if prune is None else options.parse(prune)
    options.check(method, drop_layers, text=calibrate is not False)
    pruning = method is not None or drop_layers is not None
    _check_options(dtype, format, version, bits, calibrate, precise=precise, pruning=pruning)
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
        words = None if calibrate is None or calibrate is False else text.read(Path(calibrate))
        check_target(target)  # again: now the files that are read are known, which must not be overwritten
        watched = read.watched(progress)
        try:
            if format == "llama2c":
                from fastllm.weights import _llama2c

                _llama2c.write(target, opened.recipe, version or 0, progress=watched)
            else:
                weights = _Weights(dtype, bits, words, calibrate is not False, method, drop_layers or 0)
                _write(target, path, opened, weights, scratch, threads=count, progress=watched)
        except CheckpointError as error:
            if str(path) in str(error) or str(target) in str(error):
                raise
            raise CheckpointError(f"{path} cannot be converted: {error}") from None
    return opened.tokenizer if isinstance(opened.tokenizer, TokenizerError) and format == "fastllm" else None


def _check_options(
    dtype: str | None,
    form: str,
    version: int | None,
    bits: float | None,
    calibrate: object,
    *,
    precise: bool,
    pruning: bool,
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
    if bits is not None:
        budget.check(bits)
        if dtype is not None:
            raise OptionError(f"bits chooses the types of weights: it does not go with the dtype {dtype}")
        if form != "fastllm":
            raise OptionError("bits goes with the format fastllm")
        if calibrate is False:
            raise OptionError("bits measures on a text what types cost: it does not go with calibrate=False")
    if not isinstance(calibrate, (str, os.PathLike)) and calibrate is not None and calibrate is not False:
        raise OptionError(f"calibrate must be a file of text, False or None, not {calibrate!r}")
    if calibrate and ((dtype != "q4" and bits is None and not pruning) or form != "fastllm"):
        raise OptionError("a calibration text is for the dtype q4, for bits, and for pruning")


class _Weights(NamedTuple):
    """What is to be done to the weights: convert's arguments.

    words: the user's text; calibrated: whether our own takes the place of none. method, drop: of pruning.
    """

    dtype: str | None
    bits: float | None
    words: str | None
    calibrated: bool
    method: options.Method | None
    drop: int


def _write(
    target: Path, path: Path, opened: Opened, asked: _Weights, scratch: Scratch, *, threads: int, progress: Progress
) -> None:
    """Prunes and packs the checkpoint `path` into the file `target`."""
    told = _text(opened, path, asked)
    if asked.method is not None or asked.drop:
        opened, progress = _pruned(opened, asked, told, scratch, threads=threads, progress=progress)
    zeros = opened.pruning is not None and opened.pruning.zeros is not None
    if asked.bits is not None:
        assert told is not None
        chosen = budget.choose(
            opened.recipe,
            asked.bits,
            Calibration(opened.recipe, told, threads=threads),
            pruned=zeros,
            threads=threads,
            progress=progress,
        )
        found = {name: store.Part.of(tensor) for name, tensor in (chosen | vectors(opened.recipe)).items()}
        store.write(target, opened.stored(), found)
        return
    plans = plan(opened.recipe, asked.dtype or opened.dtype, pruned=zeros)
    known = None
    if asked.calibrated:
        known, progress = calibrated(opened, plans, path, told, threads=threads, progress=progress)
    store.write(target, opened.stored(), parts(opened.recipe, plans, threads, progress, known))


def _text(opened: Opened, path: Path, asked: _Weights) -> Text | None:
    """The user's text as the checkpoint `path` reads it; without one our own where a text is needed, else None.

    Raises OptionError for a text that would have no effect, and where our own says nothing about the checkpoint.
    """
    pruning = asked.method is not None or asked.drop > 0
    if asked.words is not None:
        if asked.bits is None and not pruning and not is_rounded(plan(opened.recipe, asked.dtype).values()):
            raise OptionError(f"calibrate has no effect: {path} has its weights in four bits, which stay")
        return text.given(opened, asked.words)
    if asked.bits is None and not asked.drop and (asked.method is None or not asked.method.learns):
        return None
    found = text.default(opened)
    if isinstance(found, str):
        raise OptionError(f"{path} needs a text that it can read: give one with calibrate ({found})")
    return found


def _pruned(
    opened: Opened, asked: _Weights, told: Text | None, scratch: Scratch, *, threads: int, progress: Progress
) -> tuple[Opened, Progress]:
    """The checkpoint pruned, and the progress of packing it, before which pruning is half."""
    from fastllm.weights.pruning.prune import Pruner

    if asked.method is not None:  # blocks that weights are taken out of are blocks no more
        matrices = {name: w._replace(tensor=unblocked(w.tensor)) for name, w in opened.recipe.matrices.items()}
        opened = opened._replace(recipe=opened.recipe._replace(matrices=matrices))
    plans = plan(opened.recipe, asked.dtype or opened.dtype, pruned=asked.method is not None)
    total = sum(p.nbytes for p in plans.values())
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(total * done // pruner.steps, 2 * total)

    pruner = Pruner(
        opened.recipe,
        method=asked.method,
        drop=asked.drop,
        text=told,
        scratch=scratch,
        dtype=opened.dtype,
        threads=threads,
        step=step,
    )
    recipe, pruning = pruner.run()
    opened = opened._replace(recipe=recipe, pruning=pruning)
    return opened, lambda part, whole: progress(whole + part, 2 * whole)


def parts(
    recipe: Recipe, plans: dict[str, Plan], threads: int, progress: Progress, known: Known | None = None
) -> dict[str, store.Part]:
    """The file's tensors. Matrices are packed piece by piece, in this order, while the file is written."""
    total, done = sum(p.nbytes for p in plans.values()), 0

    def pack_piece(name: str, matrix: Plan, rows: Rows, data: Bytes, out: memoryview) -> None:
        # A reordered matrix is one piece, and what is calibrated is so in order: these have all threads.
        team = threads if known or matrix.weight.rows is not None else 1
        pack(matrix, rows, out, threads=team, name=name, known=known, data=data)

    pieces = packed(plans, pack_piece, 1 if known else threads)

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
