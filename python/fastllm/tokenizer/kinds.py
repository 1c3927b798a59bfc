"""The kinds of tokenizers: a row of a table and a file of this folder for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module

from fastllm.errors import TokenizerError
from fastllm.tokenizer._ends import known_ends
from fastllm.tokenizer.base import Files, Tokenizer

# Kind -> its module in this package, and the name under which its `read` finds the main file.
KINDS: dict[str, tuple[str, str]] = {
    "llama2.c": ("llama2c", "tokenizer.bin"),
    "sentencepiece": ("sentencepiece", "tokenizer.model"),
    "tokenizer.json": ("tokenizer_json", "tokenizer.json"),
    "unigram": ("unigram", "tokenizer.model"),
    "tiktoken": ("tiktoken", "tokenizer.model"),
    "tekken": ("tekken", "tekken.json"),
    "gpt2": ("gpt2", "vocab.json"),
    "wordpiece": ("wordpiece", "vocab.txt"),
    "letters": ("letters", "vocab.txt"),
    "characters": ("characters", "characters"),
    "gguf": ("gguf", "metadata"),
}
_PACKED = b'{"files": '


def from_blob(kind: str, blob: bytes) -> Tokenizer:
    """A tokenizer from its kind and the bytes of its file, or of `pack` where it has several. Raises TokenizerError."""
    if kind not in KINDS:
        raise TokenizerError(f"no tokenizer of the kind {kind!r} is known")
    module, name = KINDS[kind]
    files = _unpack(blob) if blob.startswith(_PACKED) else {name: blob}
    if name not in files:
        raise TokenizerError(f"it has no {name}")
    reader: Callable[[Files], Tokenizer] = import_module(f"fastllm.tokenizer.{module}").read
    tokenizer = reader(files)
    tokenizer.kind, tokenizer.blob = kind, blob
    tokenizer.ends = tuple(dict.fromkeys((*tokenizer.ends, *known_ends(tokenizer))))
    return tokenizer


def pack(files: Files) -> bytes:
    """Several files as one blob: JSON, with base64 of those that are no text."""
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
