"""From what a user names, a path or a name on the hub, to a checkpoint's recipe and tokenizer."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError, CheckpointWarning, OptionError, TokenizerError
from fastllm.files import exists, is_folder
from fastllm.formats import open_checkpoint
from fastllm.tensors import SIZES
from fastllm.tokenizer import Tokenizer, find, from_blob, read
from fastllm.weights import store

if TYPE_CHECKING:
    from fastllm.families import Recipe
    from fastllm.formats import Checkpoint
    from fastllm.tensors import Bytes

Adapters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_LLAMA_WORDS = 32000  # the vocabulary of Llama 1 and 2; llama2.c's files with that size have their tokenizer
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+)?")  # owner/name or owner/name/file; ./owner/name is a path


class Opened(NamedTuple):
    """A checkpoint, opened.

    about: its format and architecture, for people. tokenizer: or why there is none. dtype: the type that weights are
    packed as unless the user asks for another; None keeps the type of each, and blocks as nearly as they can be.
    vocabulary: the kind and bytes of the tokenizer, also of one inside the checkpoint that cannot be used here; None
    where there is none. place: where tokenizers were looked for. pruning: what was pruned of it.
    """

    about: str
    recipe: Recipe
    tokenizer: Tokenizer | TokenizerError
    dtype: str | None
    vocabulary: tuple[str, Bytes] | None = None
    place: Path = Path()
    pruning: store.Pruning | None = None

    def stored(self) -> store.Stored:
        """Its converted file, still without tensors."""
        words = self.tokenizer
        blob = None if isinstance(words, TokenizerError) else (words.kind, words.blob)
        return store.Stored.of(self.recipe, {}, tokenizer=blob, source=self.about, pruning=self.pruning)


def find_source(name: str | os.PathLike[str], revision: str | None) -> tuple[Path, bool]:
    """The file or folder of that name, and whether it came from the hub.

    The hub is asked for names of the form owner/name that are no path here. Raises CheckpointError where it has no such
    model, OptionError for a revision of a path.
    """
    path = Path(name)
    if path.exists() or not _HUB_NAME.fullmatch(os.fspath(name).replace(os.sep, "/")) or ".." in path.parts:
        if revision is not None:
            raise OptionError(f"{path} is not a name of the hub: only those have revisions")
        return path, False
    from fastllm.weights import _hub

    return _hub.fetch(path.as_posix(), revision), True


def find_adapters(names: Adapters | None) -> list[Path]:
    """The paths of the adapters of these names, here or on the hub. Raises as find_source does."""
    if names is None:
        return []
    several = [names] if isinstance(names, (str, os.PathLike)) else list(names)
    for name in several:
        if not isinstance(name, (str, os.PathLike)):
            raise OptionError(f"lora takes paths of adapters, not {name!r}")
    return [find_source(name, None)[0] for name in several]


def check_not_converted(path: Path, adapters: Sequence[Path]) -> None:
    """Raises OptionError for adapters to a converted file, whose weights are packed already."""
    if adapters:
        raise OptionError(f"{path} is already converted: apply {adapters[0]} to the checkpoint it was made from")


def open_source(
    path: Path, tokenizer: str | os.PathLike[str] | None, *, from_hub: bool = False, adapters: Sequence[Path] = ()
) -> Opened:
    """Opens a checkpoint and its tokenizer: `tokenizer` if it is not None, else the checkpoint's own.

    adapters: LoRA adapters to add to its weights. from_hub: whether the hub may be asked for Llama's tokenizer. Warns
    (CheckpointWarning) of tensors that nothing uses. Raises CheckpointError, and TokenizerError for a `tokenizer` that
    does not fit; a broken one of the checkpoint's own leaves a model that takes token ids.
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
    place = checkpoint.path if is_folder(checkpoint.path) else path
    if tokenizer is not None:
        words = read(Path(tokenizer), vocab_size)
    elif checkpoint.tokenizer is not None:
        words = tokenizer_inside(path, *checkpoint.tokenizer)
    else:
        try:
            words = find(place, vocab_size)
        except TokenizerError as error:
            words = error
            if from_hub and vocab_size == _LLAMA_WORDS and checkpoint.format.startswith("llama2.c"):
                from fastllm.weights import _hub

                words = read(_hub.llama_tokenizer(), vocab_size)
    about = f"{checkpoint.format}, {checkpoint.architecture}"
    vocabulary = checkpoint.tokenizer if isinstance(words, TokenizerError) else (words.kind, words.blob)
    return Opened(about, recipe, words, dtype, vocabulary, place)


def _with_sentences(path: Path, checkpoint: Checkpoint, recipe: Recipe) -> Recipe:
    """The recipe with the embedding and ranking that sentence-transformers' files beside a config.json describe."""
    from fastllm.formats import cross_encoder, sentence_transformers

    if checkpoint.format.startswith("GGUF") or not (is_folder(path) or exists(path.parent / "config.json")):
        return recipe
    folder = path if is_folder(path) else path.parent
    recipe = recipe._replace(ranking=cross_encoder.read(folder, checkpoint))
    found = sentence_transformers.read(folder)
    if found is None:
        return recipe
    layers = {"embedding": found.layers} if found.layers else {}
    return recipe._replace(embedding=found.embedding, dense={**recipe.dense, **layers})


def stored_tokenizer(
    stored: store.Stored, path: Path, tokenizer: str | os.PathLike[str] | None
) -> Tokenizer | TokenizerError:
    """The tokenizer of a converted file: `tokenizer` if it is not None, else the one inside, else one beside it."""
    vocab_size = stored.config.vocab_size
    if tokenizer is not None:
        return read(Path(tokenizer), vocab_size)
    if stored.tokenizer is not None:
        return tokenizer_inside(path, *stored.tokenizer)
    try:
        return find(path, vocab_size)
    except TokenizerError as error:
        return error


def tokenizer_inside(path: Path, kind: str, blob: Bytes) -> Tokenizer | TokenizerError:
    """A tokenizer inside a checkpoint, or the reason why it cannot be used."""
    try:
        return from_blob(kind, bytes(memoryview(blob)))
    except TokenizerError as error:
        return TokenizerError(f"{path} has no usable tokenizer: {error}")


def _natural_dtype(checkpoint: Checkpoint) -> str | None:
    """q8 for weights that are quantized in another way than in blocks, and are read as f32; else None."""
    return "q8" if any(t.stored and t.dtype in SIZES for t in checkpoint.tensors.values()) else None


def _common_dtype(checkpoint: Checkpoint) -> str | None:
    """The type that all matrices, and stacks of them, have, or None. Sums with adapters, which are f32, are rounded to
    it as well."""
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) in (2, 3)]
    found = {tensor.dtype for tensor in matrices if tensor.raw is None}
    return found.pop() if len(found) == 1 and found <= {"f32", "f16", "bf16"} else None
