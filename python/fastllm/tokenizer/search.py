"""From a path to a tokenizer: reading a tokenizer's file with what lies beside it, and finding a checkpoint's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastllm.errors import CheckpointError, TokenizerError
from fastllm.files import StandInError, current_folder, exists, is_folder, matching, read_file
from fastllm.tokenizer.base import Tokenizer
from fastllm.tokenizer.kinds import FILE_NAMES, Candidate, from_blob, pack, recognized

# What Hugging Face puts beside a vocabulary. config.json tells the class of transformers only and is not stored.
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "config.json",
)


def read(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a file, with what lies beside it, for a model whose vocabulary has vocab_size ids.

    Raises TokenizerError, naming the file, where it is broken or does not fit, and CheckpointError for a web page or a
    Git LFS pointer in its place.
    """
    blob = _load(path)
    try:
        names = (*_BESIDE, *(("merges.txt",) if path.name == "vocab.json" else ()))
        beside = {name: _load(path.parent / name) for name in names if exists(path.parent / name)}
        kind, files = recognized(Candidate(path, blob, beside, vocab_size))
        tokenizer = from_blob(kind, blob if len(files) == 1 else pack(files))
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no usable tokenizer: {error}") from None
    check_fit(tokenizer, vocab_size, str(path))
    return tokenizer


def _load(path: Path) -> bytes:
    try:
        blob = read_file(path)
    except StandInError:  # stays a CheckpointError: find must not pass over it to another tokenizer
        raise
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if not blob and path.suffix in (".json", ".model"):
        raise TokenizerError(f"{path} is empty")
    return blob


def check_fit(tokenizer: Tokenizer, vocab_size: int, where: str, *, exact: bool = False) -> None:
    """Raises TokenizerError unless the model has an id for every token of plain text.

    where: the file, for the error. exact: whether each id of the model must be a word, as Tokenizer.exact asks too.
    """
    if tokenizer.plain > vocab_size or ((exact or tokenizer.exact) and tokenizer.size < vocab_size):
        raise TokenizerError(f"{where} has {tokenizer.size:,} words, the model {vocab_size:,}")


def find(checkpoint: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint, a file or a folder: the first file that fits, in the order of FILE_NAMES.

    A folder, and a file with a config.json beside it, has its tokenizer in the same folder, where *.model files of any
    name are tried last. Any other file (llama2.c's) has it beside it or in the current folder, tokenizer.bin first;
    there nothing but its size says that a tokenizer is the model's, so that it must match. Raises TokenizerError that
    names every place looked at and what was wrong there.
    """
    llama2c = ("tokenizer.bin", f"tok{vocab_size}.bin")
    common = ("tokenizer.model", "tokenizer.json")
    inside = is_folder(checkpoint) and checkpoint.name != "ckpt-0"  # Grok-1's tokenizer is beside its folder of weights
    folder = checkpoint if inside else checkpoint.parent
    own = is_folder(checkpoint) or exists(folder / "config.json")
    names = dict.fromkeys((*FILE_NAMES, *llama2c) if own else (*llama2c, *common, *FILE_NAMES))
    if own:
        names |= dict.fromkeys(path.name for path in matching(folder, "*.model"))
    looked: list[str] = []
    found = _first(folder, list(names), vocab_size, looked, exact=not own)
    # Asked last: what was found beside the checkpoint is found from any other current folder too.
    if found is None and not own and folder.resolve() != (here := current_folder()):
        found = _first(here, [*llama2c, *common], vocab_size, looked, exact=True)
    if found is None:
        raise TokenizerError(f"no tokenizer fits {checkpoint}: {'; '.join(looked)}")
    return found


def _first(folder: Path, names: Sequence[str], vocab_size: int, looked: list[str], *, exact: bool) -> Tokenizer | None:
    """The first tokenizer of these names in a folder that fits, or None. looked: gets what was wrong there."""
    missing = []
    for name in names:
        if not exists(folder / name):
            missing.append(name)
            continue
        try:
            tokenizer = read(folder / name, vocab_size)
            check_fit(tokenizer, vocab_size, str(folder / name), exact=exact)
        except TokenizerError as error:
            looked.append(str(error))
        else:
            return tokenizer
    looked.append(f"{'the current folder' if folder == Path() else folder} has no {', '.join(missing)}")
    return None
