"""From the name of a checkpoint to an LLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError, OptionError
from fastllm.files import reading
from fastllm.llm.llm import LLM
from fastllm.machine import check_threads
from fastllm.weights import store
from fastllm.weights.source import (
    Adapters,
    check_not_converted,
    find_adapters,
    find_source,
    open_source,
    stored_tokenizer,
)

if TYPE_CHECKING:
    from fastllm.weights.packing import Progress

KV_DTYPES = ("f32", "f16", "q8")


@_core.standard_floats
def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    kv: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    lora: Adapters | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Loads a checkpoint: a file, a folder, or a name of the Hugging Face hub, owner/name or owner/name/file.

    dtype: f32, f16, bf16, q8 or q4 converts the weights; None keeps what the file has, and makes q8 of weights of a few
    bits: GGUF's, and those of GPTQ, AWQ, MLX, compressed-tensors and FP8. kv: f32, f16 or q8 keys and values; None is
    f32 beside f32 weights, else f16. q8, int8 with a scale for every 32 channels, takes 9/16 of f16's memory. threads:
    None takes OMP_NUM_THREADS, or as many as the machine gives this process; fewer run where that is faster, as beside
    a busy program. context: positions a text may have, at most what the model was made for (None); a model with two
    sets of rotary frequencies (LongRoPE) has the short context's by default, and with a context beyond that computes
    everything with the long one's. tokenizer: its file; None looks beside the checkpoint and in the current folder. A
    checkpoint for which none is found loads all the same: token ids work, text raises TokenizerError. revision: a
    branch, tag or commit on the hub. lora: an adapter of the PEFT library, or several, added to the weights one after
    the other: each a folder, or a name of the hub. progress: is called with the bytes packed so far and in all; a
    converted file has nothing to pack.

    Raises CheckpointError, TokenizerError (a tokenizer that was named does not fit), OptionError.
    """
    store.check_dtype(dtype)
    if kv is not None and kv not in KV_DTYPES:
        raise OptionError(f"kv must be one of {', '.join(KV_DTYPES)}, not {kv!r}")
    count = check_threads(threads)
    found, from_hub = find_source(path, revision)
    adapters = find_adapters(lora)
    with reading() as read:
        if (stored := store.open_file(found)) is not None:
            check_not_converted(found, adapters)
            _check_stored_dtype(found, stored, dtype)
            words = stored_tokenizer(stored, found, tokenizer)
        else:
            from fastllm.weights.packing import assemble

            source = open_source(found, tokenizer, from_hub=from_hub, adapters=adapters)
            try:
                stored = assemble(
                    source.recipe, dtype=dtype or source.dtype, threads=count, progress=read.watched(progress)
                )
            except CheckpointError as error:
                raise CheckpointError(f"{found} cannot be used: {error}") from None
            words = source.tokenizer
        return LLM(stored, words, threads=count, context=context, path=found, kv=kv)


def _check_stored_dtype(path: Path, stored: store.Stored, dtype: str | None) -> None:
    have = stored.dtypes
    if dtype is not None and have != [dtype]:
        raise OptionError(
            f"{path} is already converted to {', '.join(have)}: for {dtype}, load the checkpoint it was made from"
        )
