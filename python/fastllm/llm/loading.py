"""From the name of a checkpoint to an LLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm import _core
from fastllm.errors import OptionError
from fastllm.files import reading
from fastllm.llm.arguments import several, whole
from fastllm.llm.llm import LLM
from fastllm.machine import MOST_THREADS, check_threads
from fastllm.weights import store
from fastllm.weights.source import Adapters, check_not_converted, find_adapters, find_source, stored_tokenizer

if TYPE_CHECKING:
    from fastllm.weights.packing import Progress

KV_DTYPES = ("f32", "f16", "q8", "q4")


# The storyteller that comes with fastllm.
BUILT_IN = Path(__file__).parents[1] / "demo" / "stories.safetensors"


@_core.standard_floats
def load(
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    calibrate: bool = True,
    precise: bool | None = None,
    kv: str | None = None,
    kv_bytes: int | None = None,
    threads: int | None = None,
    context: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    lora: Adapters | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> LLM:
    """Loads a checkpoint: a file, a folder, or a name on the Hugging Face hub, owner/name or owner/name/file.

    path: None: the storyteller that comes with fastllm.

    dtype: f32, f16, bf16, q8 or q4: converts the weights. None keeps the file's type, except that weights of fewer bits
    (GPTQ, AWQ, MLX, compressed-tensors, FP8) become q8, and GGUF's and MXFP4's four bits stay what they are, as q4 or
    q4m. calibrate: whether weights become q4 by a text of our own, which brings them nearer to the model's and takes
    several times as long (see fastllm.weights.calibration); False: each is rounded by itself. precise: activations
    enter products of int8 and four-bit weights with 15 bits instead of 8, for a text nearer to f32's and up to half of
    the speed; None: what a converted file says, else not. kv: f32, f16, q8 or q4: the type of keys and values. None is
    f32 with f32 weights, else f16. q8 is int8, faster in a long context, in 0.55 of f16's memory; q4 is six bits for
    keys and four for values, in a third of it, for a text less near to f16's. kv_bytes: bytes that all keys and values
    may take together; None: half of the memory that is free now. threads: the most that a forward uses. None takes
    OMP_NUM_THREADS, or else the cores of this process; fewer are used where that is faster, for example beside a busy
    program. context: positions that a text may have; None: as many as the model was made for. A model with two sets of
    rotary frequencies (LongRoPE) has its short context by default, and uses the long set throughout if a longer context
    is asked for. tokenizer: a file; None looks beside the checkpoint and in the current folder. A checkpoint without a
    tokenizer loads all the same: token ids work, texts raise TokenizerError. revision: a branch, tag or commit on the
    hub. lora: an adapter of the PEFT library, or several that are added in order, each a folder or a name on the hub.
    cache_dir: a folder in which the keys and values of long prompts are kept for later processes; it is made if need
    be, and bounded (see fastllm.engine.disk). cache: whether the packed weights of a checkpoint that is not a converted
    file are kept in the user's cache folder, or in the one that FASTLLM_CACHE names, so that the next start maps them
    (see fastllm.weights.packed). progress: called with the bytes packed so far, and in all; a converted file, and one
    in the cache, has nothing to pack.

    Warns (CacheWarning) where packed weights cannot be kept, and (CheckpointWarning) of tensors that nothing uses.
    Raises CheckpointError, TokenizerError (a tokenizer that was named does not fit), OptionError.
    """
    path = _expanded("path", BUILT_IN if path is None else path)
    tokenizer = None if tokenizer is None else _expanded("tokenizer", tokenizer)
    given = [lora] if isinstance(lora, (str, os.PathLike)) else several("load", "lora", lora or ())
    adapters = [_expanded("lora", adapter) for adapter in given]
    folder = None if cache_dir is None else Path(_expanded("cache_dir", cache_dir))
    kv_bytes = None if kv_bytes is None else whole("kv_bytes", kv_bytes, 1)
    threads = None if threads is None else whole("threads", threads, 1, MOST_THREADS)
    store.check_dtype(dtype)
    if not isinstance(calibrate, bool):
        raise OptionError(f"calibrate must be True or False, not {calibrate!r}: convert takes a text")
    if precise is not None and not isinstance(precise, bool):
        raise OptionError(f"precise must be True, False or None, not {precise!r}")
    if kv is not None and kv not in KV_DTYPES:
        raise OptionError(f"kv must be one of {', '.join(KV_DTYPES)}, not {kv!r}")
    if not isinstance(cache, bool):
        raise OptionError(f"cache must be True or False, not {cache!r}")
    count = check_threads(threads)
    found, from_hub = find_source(path, revision)
    added = find_adapters(adapters)
    with reading() as read:
        if (stored := store.open_file(found)) is not None:
            check_not_converted(found, added)
            _check_stored_dtype(found, stored, dtype)
            words = stored_tokenizer(stored, found, tokenizer)
        else:
            from fastllm.weights import packed

            asked = packed.Asked(found, tokenizer, from_hub, added, dtype, calibrate)
            stored, words = packed.load(asked, threads=count, read=read, progress=progress, keep=cache)
        if precise is not None:
            stored = stored._replace(config=stored.config._replace(precise=precise))
        llm = LLM(stored, words, threads=count, context=context, path=found, kv=kv, kv_bytes=kv_bytes, cache_dir=folder)
    options: dict[str, Any] = {
        "dtype": dtype,
        "calibrate": calibrate,
        "precise": precise,
        "kv": kv,
        "kv_bytes": kv_bytes,
        "threads": threads,
        "context": context,
        "revision": revision,
        "cache_dir": folder and os.path.abspath(folder),
        "cache": cache,
    }
    options |= {"tokenizer": tokenizer and os.path.abspath(tokenizer), "lora": list(map(_absolute, adapters))}
    llm._origin = (_reopened, (_absolute(path), options))
    return llm


_latest: list[tuple[Any, LLM]] = []  # what was unpickled last in this process


def _reopened(path: str, options: dict[str, Any]) -> LLM:
    """What a pickle of an LLM becomes. Unpickling the same again gives the same object, so that a worker process that
    is sent an LLM with every task loads it once."""
    for made, llm in _latest:
        if made == (path, options) and llm._opened is not None:
            return llm
    _latest[:] = [((path, options), load(path, **options))]
    return _latest[0][1]


def _expanded(name: str, value: Any) -> str:
    """A path or a name of the hub as a str, with ~ as the home folder. Raises OptionError for anything else."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path:
        raise OptionError(f"{name} must be a path or a name on the hub, not {value!r}")
    return os.path.expanduser(path)


def _absolute(name: str) -> str:
    """A path for a process with another working folder; a name of the hub stays as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _check_stored_dtype(path: Path, stored: store.Stored, dtype: str | None) -> None:
    have = stored.dtypes
    if dtype is not None and have != [dtype]:
        raise OptionError(
            f"{path} is already converted to {', '.join(have)}: for {dtype}, load the checkpoint it was made from"
        )
