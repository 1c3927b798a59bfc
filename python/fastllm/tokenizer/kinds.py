"""The kinds of tokenizers: a row of a table and a file of this folder for each.

To add a kind, write a module here with `read(files: Files) -> Tokenizer` and add a row to _KINDS, with the function
that recognizes its files. The module is imported when a tokenizer of the kind is read, so that no run waits for the
code of other kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path

from fastllm.errors import TokenizerError
from fastllm.tokenizer._ends import known_ends
from fastllm.tokenizer._parsing import token_lines
from fastllm.tokenizer.base import CLASS_FILE, Files, Tokenizer


class Candidate:
    """A file that may hold a vocabulary, as the functions see it that recognize its kind.

    path, blob: the file and its content. beside: other files of its folder that say how it is used. vocab_size: the
    model's.
    """

    def __init__(self, path: Path, blob: bytes, beside: Files, vocab_size: int) -> None:
        self.name, self.suffix = path.name, path.suffix
        self.blob, self.beside, self.vocab_size = blob, beside, vocab_size

    @cached_property
    def form(self) -> str:
        """What the content looks like: "json", "text", "sentencepiece" or "other"."""
        if self.suffix == ".json" or self.blob[:1] == b"{":
            return "json"
        if self.suffix == ".txt":
            return "text"
        # A SentencePiece model begins with the protobuf field 1, a piece, which begins with a field 1 of its own, its
        # text: the tag 0x0a, the length of the piece in one byte, the tag 0x0a.
        return "sentencepiece" if self.blob[:1] == b"\x0a" and self.blob[2:3] == b"\x0a" else "other"

    @cached_property
    def lines(self) -> list[str]:
        """The lines of a text. Raises TokenizerError where it is not UTF-8."""
        return token_lines(self.blob)

    @cached_property
    def class_name(self) -> str:
        """The class of transformers, or the unknown model type, that the files beside it name, see class_of."""
        from fastllm.tokenizer._classes import class_of

        return class_of(self.beside)

    @cached_property
    def is_corpus(self) -> bool:
        """Whether a text is one whose characters are the vocabulary, rather than a vocabulary with a token a line."""
        if self.class_name.endswith("Tokenizer"):
            return False
        has_unknown = not {"<unk>", "[UNK]"}.isdisjoint(self.lines)
        return not has_unknown or (len(self.lines) > self.vocab_size and not self.name.endswith("vocab.txt"))


# ---- recognizing a kind ----------------------------------------------------------------------------------------------
#
# One function a kind. It returns None for a file of another kind; for one of its own it returns the class of
# transformers whose rules apply, which is then stored with the vocabulary, or "" where no class matters. What a
# function needs beyond Candidate it imports itself, see above.

_CHARACTER_FILES = ("vocab.json", "chars.json")


def _tokenizer_json(file: Candidate) -> str | None:
    if file.form != "json" or file.name in _CHARACTER_FILES or _has_token_bytes(file):
        return None
    from fastllm.tokenizer._classes import overriding_class

    return overriding_class(file.beside)


def _tekken(file: Candidate) -> str | None:
    return "" if file.form == "json" and file.name not in _CHARACTER_FILES and _has_token_bytes(file) else None


def _has_token_bytes(file: Candidate) -> bool:
    return b'"token_bytes"' in file.blob


def _unigram(file: Candidate) -> str | None:
    if file.form != "sentencepiece":
        return None
    from fastllm.tokenizer.unigram import class_for

    return class_for(file.class_name, file.name, file.blob, file.vocab_size) or None


def _sentencepiece(file: Candidate) -> str | None:
    if file.form != "sentencepiece":
        return None
    from fastllm.tokenizer._classes import llama_class

    return llama_class(file.beside)


def _tiktoken(file: Candidate) -> str | None:
    line = file.blob[:400].split(b"\n", 1)[0].split()  # a token in base64 and its rank
    return "" if file.form == "other" and len(line) == 2 and line[1].isdigit() else None


def _gpt2(file: Candidate) -> str | None:
    return file.class_name if file.name == "vocab.json" and "merges.txt" in file.beside else None


def _letters(file: Candidate) -> str | None:
    if file.form != "text" or file.is_corpus:
        return None
    from fastllm.tokenizer.letters import is_letters

    return file.class_name if is_letters(file.lines, file.class_name) else None


def _wordpiece(file: Candidate) -> str | None:
    return file.class_name if file.form == "text" and not file.is_corpus else None


def _characters(file: Candidate) -> str | None:
    return "" if file.name in _CHARACTER_FILES or (file.form == "text" and file.is_corpus) else None


def _any(file: Candidate) -> str | None:
    return ""


def _none(file: Candidate) -> str | None:  # GGUF's vocabulary is inside the checkpoint
    return None


# ---- the table -------------------------------------------------------------------------------------------------------


class _Kind:  # no NamedTuple: that takes 0.2 ms to make, for which every start would wait
    """A row of the table.

    module: the file of this folder that has its `read`. file: the name under which `read` finds the vocabulary among
    its files. names: the names that the vocabulary may have in a checkpoint's folder. recognize: whether a file is of
    this kind, and for which class. settings: whether the files that Hugging Face puts beside a vocabulary are read too.
    """

    def __init__(
        self,
        module: str,
        file: str,
        names: tuple[str, ...],
        recognize: Callable[[Candidate], str | None],
        *,
        settings: bool = True,
    ) -> None:
        self.module, self.file, self.names, self.recognize, self.settings = module, file, names, recognize, settings


_PIECES = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")

# kind: module, file, names, recognize. Converted files store the kind, so that a renamed one makes them unreadable.
# A folder is searched for names in this order: a tokenizer.json says most about how a text is split. A file is of the
# first kind that recognizes it: llama2.c comes last, as it takes any file.
_KINDS: dict[str, _Kind] = {
    "tokenizer.json": _Kind("tokenizer_json", "tokenizer.json", ("tokenizer.json",), _tokenizer_json),
    "tekken": _Kind("tekken", "tekken.json", ("tekken.json",), _tekken),
    "unigram": _Kind("unigram", "tokenizer.model", _PIECES, _unigram),
    "sentencepiece": _Kind("sentencepiece", "tokenizer.model", _PIECES, _sentencepiece),
    "tiktoken": _Kind("tiktoken", "tokenizer.model", ("tokenizer.model",), _tiktoken),
    "gpt2": _Kind("gpt2", "vocab.json", ("vocab.json",), _gpt2),
    "letters": _Kind("letters", "vocab.txt", ("vocab.txt", "amplify_vocab.txt"), _letters),
    "wordpiece": _Kind("wordpiece", "vocab.txt", ("vocab.txt",), _wordpiece),
    "characters": _Kind("characters", "characters", ("chars.json", "chars.txt"), _characters, settings=False),
    "gguf": _Kind("gguf", "metadata", (), _none),
    "llama2.c": _Kind("llama2c", "tokenizer.bin", ("tokenizer.bin",), _any, settings=False),
}

# The names of all kinds' files, in the order of the search.
FILE_NAMES = tuple(dict.fromkeys(name for kind in _KINDS.values() for name in kind.names))


def recognized(candidate: Candidate) -> tuple[str, dict[str, bytes]]:
    """The kind of a file, and what this kind's `read` gets: the file under the name that it expects, and the files
    beside it. Raises TokenizerError."""
    found = ((name, kind.recognize(candidate)) for name, kind in _KINDS.items())
    name, class_name = next((name, class_name) for name, class_name in found if class_name is not None)
    files = {_KINDS[name].file: candidate.blob}
    if _KINDS[name].settings:
        files |= {beside: blob for beside, blob in candidate.beside.items() if beside != "config.json"}
        files |= {CLASS_FILE: class_name.encode()} if class_name else {}
    return name, files


def from_blob(kind: str, blob: bytes) -> Tokenizer:
    """A tokenizer from its kind and the bytes of its file, or of `pack` where it has several. Raises TokenizerError."""
    if kind not in _KINDS:
        raise TokenizerError(f"no tokenizer of the kind {kind!r} is known")
    module, name = _KINDS[kind].module, _KINDS[kind].file
    files = _unpack(blob) if blob.startswith(_PACKED) else {name: blob}
    if name not in files:
        raise TokenizerError(f"it has no {name}")
    read: Callable[[Files], Tokenizer] = import_module(f"fastllm.tokenizer.{module}").read
    tokenizer = read(files)
    tokenizer.kind, tokenizer.blob = kind, blob
    tokenizer.ends = tuple(dict.fromkeys((*tokenizer.ends, *known_ends(tokenizer))))
    return tokenizer


# ---- several files as one blob ---------------------------------------------------------------------------------------

_PACKED = b'{"files": '  # how such a blob begins


def pack(files: Files) -> bytes:
    """Several files as one blob: JSON {"files": {name: text}}, where binary content is a list of its base64."""
    from base64 import b64encode

    def text(blob: bytes) -> str | list[str]:
        try:
            return blob.decode()
        except UnicodeDecodeError:
            return [b64encode(blob).decode()]

    packed = {name: text(blob) for name, blob in files.items()}
    return json.dumps({"files": packed}, ensure_ascii=False).encode()


def _unpack(blob: bytes) -> dict[str, bytes]:
    from base64 import b64decode

    try:
        packed = json.loads(blob.decode())["files"]
        return {
            name: text.encode() if isinstance(text, str) else b64decode(text[0], validate=True)
            for name, text in packed.items()
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"its files cannot be unpacked: {error}") from None
