"""What each token of a tokenizers.Tokenizer is shown as, as a table of bytes made from its decoder.

The library decodes whole texts. From a table a text in pieces is the text as a whole, whatever the pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer.pieces import byte_or

Step = dict[str, Any]

_MOST_TEXT = 1 << 12  # characters of a token that its decoder replaces something in


def decoding_table(tokenizer: Any, words: Mapping[int, str], size: int) -> tuple[list[bytes], bool]:
    """The bytes of tokens 0 .. size - 1, none for those that are not in `words`, and whether a space at the start of a
    text is left out. Raises TokenizerError for a decoder that is not known."""
    decoder = tokenizer.decoder
    # Without a decoder the library puts a space between any two tokens.
    steps = [{}] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    texts, space, fused = list(words.values()), False, False
    to_bytes: Callable[[str], bytes] = _plain
    for step in steps:
        kind = step.get("type")
        if kind in _TEXT and to_bytes is _plain and not fused:
            texts = [_TEXT[kind](text, step) for text in texts]
            # After these every word begins with its space.
            space = kind in (None, "WordPiece") or (kind == "Metaspace" and step.get("prepend_scheme") != "never")
        elif kind == "ByteLevel":
            to_bytes = _from_alphabet
        elif kind == "ByteFallback":
            to_bytes = _from_name
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step["content"] == " " and step["start"] <= 1 and not step["stop"]:
            space = step["start"] == 1
        else:
            raise TokenizerError(f"its decoder {kind!r} is not known here")
    # CLIP's pieces end a word with this; transformers shows a space there.
    end = (getattr(tokenizer.model, "end_of_word_suffix", None) or "\0\0").encode()
    table = [b""] * size
    for i, text in zip(words, texts, strict=True):
        piece = to_bytes(text)
        table[i] = piece.removesuffix(end) + b" " if piece.endswith(end) else piece
    return table, space


def _steps(decoder: Step) -> list[Step]:
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _replaced(text: str, step: Step) -> str:
    if "String" not in step["pattern"]:
        raise TokenizerError("its decoder replaces by a regular expression, which is not known here")
    text = text.replace(step["pattern"]["String"], step["content"][:_MOST_TEXT])
    if len(text) > _MOST_TEXT:
        raise TokenizerError(f"its decoder makes a token more than {_MOST_TEXT:,} characters long")
    return text


def _word_piece(text: str, step: Step) -> str:
    """A piece as it is shown after another one: a word after a space, unless it is a word's end or punctuation."""
    prefix = step["prefix"]
    text = text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
    if step["cleanup"]:
        for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
            text = text.replace(f" {mark}", mark)
    return text


_TEXT: dict[str | None, Callable[[str, Step], str]] = {
    None: lambda text, _: f" {text}",
    "Replace": _replaced,
    "Metaspace": lambda text, step: text.replace(step["replacement"], " "),
    "WordPiece": _word_piece,
    "BPEDecoder": lambda text, step: text.replace(step["suffix"], " "),
}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others follow from U+0100."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _from_alphabet(text: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in text])
    except KeyError:  # an added token is written as it is
        return text.encode()


def _plain(text: str) -> bytes:
    return text.encode()


def _from_name(text: str) -> bytes:
    return byte_or(text.encode(), text.encode())
