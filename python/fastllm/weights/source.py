"""From what a user names to a checkpoint, its recipe and its tokenizer."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError, CheckpointWarning, OptionError, TokenizerError
from fastllm.formats import open_checkpoint
from fastllm.tokenizer import Tokenizer, find, from_blob, read
from fastllm.weights import store

if TYPE_CHECKING:
    from fastllm.families import Recipe
    from fastllm.formats import Checkpoint

Adapters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_LLAMA_WORDS = 32000  # llama2.c's files with so many have Llama's
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+)?")  # ./owner/name is a path


class Opened(NamedTuple):
    """A checkpoint, opened.

    about: its format and architecture, for people. dtype: what its weights become where nobody says, None for what they
    are.
    """

    about: str
    recipe: Recipe
    tokenizer: Tokenizer | TokenizerError
    dtype: str | None

    def stored(self) -> store.Stored:
        """What a converted file says of it, without tensors."""
        words = self.tokenizer
        blob = None if isinstance(words, TokenizerError) else (words.kind, words.blob)
        return store.Stored.of(self.recipe, {}, tokenizer=blob, source=self.about)


def find_source(name: str | os.PathLike[str], revision: str | None) -> tuple[Path, bool]:
    """The file or folder of that name, and whether it came from the hub, which is asked where nothing is here."""
    path = Path(name)
    if path.exists() or not _HUB_NAME.fullmatch(os.fspath(name).replace(os.sep, "/")) or ".." in path.parts:
        if revision is not None:
            raise OptionError(f"{path} is not a name of the hub: only those have revisions")
        return path, False
    from fastllm.weights import hub

    return hub.fetch(path.as_posix(), revision), True


def find_adapters(names: Adapters | None) -> list[Path]:
    """The adapters of those names, here or on the hub."""
    if names is None:
        return []
    several = [names] if isinstance(names, (str, os.PathLike)) else list(names)
    for name in several:
        if not isinstance(name, (str, os.PathLike)):
            raise OptionError(f"lora takes paths of adapters, not {name!r}")
    return [find_source(name, None)[0] for name in several]


def check_not_converted(path: Path, adapters: Sequence[Path]) -> None:
    """Raises OptionError for adapters beside a file whose weights are packed."""
    if adapters:
        raise OptionError(f"{path} is already converted: apply {adapters[0]} to the checkpoint it was made from")


def open_source(
    path: Path, tokenizer: str | os.PathLike[str] | None, *, from_hub: bool = False, adapters: Sequence[Path] = ()
) -> Opened:
    """Opens a checkpoint and finds its tokenizer, the one that is named if one is.

    adapters: to add to its weights. Warns (CheckpointWarning) of tensors that have no effect. Raises CheckpointError,
    and TokenizerError for a tokenizer that was named and does not fit.
    """
    from fastllm import families
    from fastllm.families.names import unused_sentence
    from fastllm.formats.quantized import dequantized
    from fastllm.weights import lora

    lora.check_is_model(path, with_adapters=bool(adapters))
    checkpoint = dequantized(open_checkpoint(path))
    lora.check_has_no_factors(checkpoint)
    dtype = _natural_dtype(checkpoint)
    if adapters:
        dtype = dtype or _common_dtype(checkpoint)
        checkpoint = lora.merged(checkpoint, adapters)
    try:
        recipe = families.recipe(checkpoint)
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path} cannot be used: {error}") from None
    if recipe.unused:
        warnings.warn(unused_sentence(path, recipe.unused), CheckpointWarning, stacklevel=3)
    recipe = _with_sentences(path, checkpoint, recipe)
    vocab_size = recipe.config.vocab_size
    words: Tokenizer | TokenizerError
    if tokenizer is not None:
        words = read(Path(tokenizer), vocab_size)
    elif checkpoint.tokenizer is not None:
        words = _from_blob(path, *checkpoint.tokenizer)
    else:
        try:
            words = find(checkpoint.path if checkpoint.path.is_dir() else path, vocab_size)
        except TokenizerError as error:
            words = error
            if from_hub and vocab_size == _LLAMA_WORDS and checkpoint.format.startswith("llama2.c"):
                from fastllm.weights import hub

                words = read(hub.llama_tokenizer(), vocab_size)
    about = f"{checkpoint.format}, {checkpoint.architecture}"
    return Opened(about, recipe, words, dtype)


def _with_sentences(path: Path, checkpoint: Checkpoint, recipe: Recipe) -> Recipe:
    """The recipe, with what sentence-transformers' files beside a checkpoint's config.json say."""
    from fastllm.formats import cross_encoder, sentence_transformers

    if checkpoint.format.startswith("GGUF") or not (path.is_dir() or (path.parent / "config.json").exists()):
        return recipe
    folder = path if path.is_dir() else path.parent
    recipe = recipe._replace(ranking=cross_encoder.read(folder, checkpoint))
    found = sentence_transformers.read(folder)
    if found is None:
        return recipe
    layers = {"embedding": found.layers} if found.layers else {}
    return recipe._replace(embedding=found.embedding, dense={**recipe.dense, **layers})


def stored_tokenizer(
    stored: store.Stored, path: Path, tokenizer: str | os.PathLike[str] | None
) -> Tokenizer | TokenizerError:
    """The tokenizer of a converted file, the one that is named if one is."""
    vocab_size = stored.config.vocab_size
    if tokenizer is not None:
        return read(Path(tokenizer), vocab_size)
    if stored.tokenizer is not None:
        return _from_blob(path, *stored.tokenizer)
    try:
        return find(path, vocab_size)
    except TokenizerError as error:
        return error


def _from_blob(path: Path, kind: str, blob: bytes) -> Tokenizer | TokenizerError:
    """A tokenizer inside a checkpoint; one that cannot be used leaves the model with token ids."""
    try:
        return from_blob(kind, blob)
    except TokenizerError as error:
        return TokenizerError(f"{path} has no usable tokenizer: {error}")


def _natural_dtype(checkpoint: Checkpoint) -> str | None:
    """q8 for weights of a few bits, which are read as floats: as floats they would take several times the memory."""
    return "q8" if any(tensor.stored for tensor in checkpoint.tensors.values()) else None


def _common_dtype(checkpoint: Checkpoint) -> str | None:
    """The type of all matrices, which sums with adapters are rounded to as well; None where they differ."""
    found = {tensor.dtype for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2 and tensor.raw is None}
    return found.pop() if len(found) == 1 and found <= {"f32", "f16", "bf16"} else None
