"""From a path to a tokenizer: reading a tokenizer's file with what lies beside it, and finding a checkpoint's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fastllm.errors import CheckpointError, TokenizerError
from fastllm.files import StandInError, read_file
from fastllm.tokenizer.base import CLASS_FILE, Files, Tokenizer
from fastllm.tokenizer.kinds import KINDS, from_blob, pack

# What Hugging Face puts beside the vocabulary: the policy, the chat template, the tokens that end a text.
_POLICY = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja")
_BESIDE = (*_POLICY, *_TEMPLATES)


def _load(path: Path) -> bytes:
    try:
        blob = read_file(path)
    except StandInError:  # no reason to look for another tokenizer
        raise
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if not blob and path.suffix in (".json", ".model"):
        raise TokenizerError(f"{path} is empty")
    return blob


def _class_of(beside: Files) -> str:
    found: str = import_module("fastllm.tokenizer._classes").class_of(beside)
    return found


def _own_rules(beside: Files) -> str:
    """The class for which a tokenizer.json is, where that has rules of its own in place of the file's; else nothing."""
    bert: str = import_module("fastllm.tokenizer._classes").BERT
    return _llama_class(beside) or (bert if _class_of(beside) == bert else "")


def _llama_class(beside: Files) -> str:
    found: str = import_module("fastllm.tokenizer._classes").llama_class(beside)
    return found


def _kind_of(path: Path, blob: bytes, beside: Files, vocab_size: int) -> tuple[str, str]:
    """The kind of a file, by its name, its first bytes and what lies beside it; and the class that it is for, empty
    where that is not said or makes no difference."""
    if path.name == "vocab.json" and "merges.txt" in beside:
        return "gpt2", _class_of(beside)
    if path.suffix == ".json" or blob[:1] == b"{":
        characters, tekken = path.name in ("vocab.json", "chars.json"), b'"token_bytes"' in blob
        if characters or tekken:
            return "characters" if characters else "tekken", ""
        return "tokenizer.json", _own_rules(beside)
    if path.suffix == ".txt":
        found = _class_of(beside)
        return import_module("fastllm.tokenizer.letters").kind_of(blob, vocab_size, path.name, found), found
    # A SentencePiece model begins with field 1, a piece of a few bytes; a tiktoken one with base64 and a rank; a
    # tokenizer.bin with a small int32.
    if blob[:1] == b"\x0a" and blob[2:3] == b"\x0a":
        found = import_module("fastllm.tokenizer.unigram").class_for(_class_of(beside), path.name, blob, vocab_size)
        return ("unigram", found) if found else ("sentencepiece", _llama_class(beside))
    line = blob[:400].split(b"\n", 1)[0].split()
    return "tiktoken" if len(line) == 2 and line[1].isdigit() else "llama2.c", ""


def read(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a file, with what lies beside it; it must fit a model of vocab_size words.

    Raises TokenizerError, naming the file, and CheckpointError where something else is in a file's place.
    """
    blob = _load(path)
    try:
        names = (*_BESIDE, "config.json", *(("merges.txt",) if path.name == "vocab.json" else ()))
        beside = {name: _load(path.parent / name) for name in names if (path.parent / name).exists()}
        kind, found = _kind_of(path, blob, beside, vocab_size)
        files = {KINDS[kind][1]: blob}
        if kind not in ("llama2.c", "characters"):
            files |= {name: data for name, data in beside.items() if name != "config.json"}
            files |= {CLASS_FILE: found.encode()} if found else {}
        tokenizer = from_blob(kind, blob if len(files) == 1 else pack(files))
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no usable tokenizer: {error}") from None
    check_fit(tokenizer, vocab_size, str(path))
    return tokenizer


def check_fit(tokenizer: Tokenizer, vocab_size: int, where: str, *, exact: bool = False) -> None:
    """Raises TokenizerError unless every id of plain text is the model's; exact: unless there are as many as it has."""
    if tokenizer.plain > vocab_size or ((exact or tokenizer.exact) and tokenizer.size < vocab_size):
        raise TokenizerError(f"{where} has {tokenizer.size:,} words, the model {vocab_size:,}")


# What a checkpoint's own folder may have, the best first: a tokenizer.json says most of how a text is split.
_OWN: tuple[str, ...] = ("tokenizer.json", "tekken.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_OWN += ("spm.model", "vocab.json", "vocab.txt", "amplify_vocab.txt", "chars.json", "chars.txt")


def find(checkpoint: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint, a file or a folder: the first of the names below that fits.

    A folder, or a file with a config.json beside it, has its own; a .model of any other name comes last. For another
    file the current folder is a place too, where llama2.c's users have it; nothing says that what is found is the
    model's but its size: it must be the same. Raises TokenizerError that names every place looked at and what was wrong
    there.
    """
    ours = ("tokenizer.bin", f"tok{vocab_size}.bin")
    shared = ("tokenizer.model", "tokenizer.json")
    inside = checkpoint.is_dir() and checkpoint.name != "ckpt-0"  # Grok-1's tokenizer is beside its ckpt-0
    folder = checkpoint if inside else checkpoint.parent
    own = checkpoint.is_dir() or (folder / "config.json").exists()
    names = dict.fromkeys((*_OWN, *ours) if own else (*ours, *shared, *_OWN))
    if own:
        names |= dict.fromkeys(sorted(path.name for path in folder.glob("*.model")))
    places = {folder: [*names]}
    if not own and folder.resolve() != Path.cwd():
        places[Path.cwd()] = [*ours, *shared]
    looked: list[str] = []
    for place, wanted in places.items():
        missing = []
        for name in wanted:
            if not (place / name).exists():
                missing.append(name)
                continue
            try:
                tokenizer = read(place / name, vocab_size)
                check_fit(tokenizer, vocab_size, str(place / name), exact=not own)
            except TokenizerError as error:
                looked.append(str(error))
            else:
                return tokenizer
        looked.append(f"{'the current folder' if place == Path() else place} has no {', '.join(missing)}")
    raise TokenizerError(f"no tokenizer fits {checkpoint}: {'; '.join(looked)}")
