"""The ready form of a tokenizer: its vocabulary as the loops of its constructor left it, for a start without them.

It is for the packed cache. Only the version of fastllm that wrote it reads it.

    4 bytes    the length of the JSON, little-endian
    JSON       class, the attributes that all kinds have, those of the class, and the lengths of the parts
    parts      of the class: tables, a model of a library; each begins at a multiple of 16 bytes
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer.base import Bytes, Pair, Tokenizer

# The classes that have one, by name, and their modules: for all others the loops are short.
_CLASSES = {"LibraryTokenizer": "_library", "PieceTokenizer": "_pieces"}
_ALIGN = 16
_TUPLES = ("prefix", "suffix", "ends")
_TEMPLATES = ("chat_template", "tool_template", "response_template")
_COMMON = ("size", "plain", "exact", *_TUPLES, "special", "added", "roles", *_TEMPLATES)


def dump(tokenizer: Tokenizer) -> bytes:
    """The ready form of a tokenizer; empty where its class has none."""
    name = type(tokenizer).__name__
    if name not in _CLASSES:
        return b""
    own, parts = tokenizer.parts()  # type: ignore[attr-defined]  # both classes have it
    common: dict[str, Any] = {key: getattr(tokenizer, key) for key in _COMMON}
    common["special"], common["added"], common["roles"] = (
        list(tokenizer.special),
        list(tokenizer.added),
        dict(tokenizer.roles),
    )
    about = {"class": name, "common": common, "pair": tokenizer.pair, "own": own, "parts": list(map(len, parts))}
    text = json.dumps(about).encode()
    text += b" " * (-(len(text) + 4) % _ALIGN)
    padded = [data for part in parts for data in (part, bytes(-len(part) % _ALIGN))]
    return b"".join([len(text).to_bytes(4, "little"), text, *padded])


def load(data: Bytes) -> Tokenizer:
    """A tokenizer, but for its kind and blob. Raises TokenizerError where its library refuses it, or it is damaged."""
    view = memoryview(data)
    try:
        at = 4 + int.from_bytes(view[:4], "little")
        about = json.loads(bytes(view[4:at]))
        parts = []
        for nbytes in about["parts"]:
            parts.append(view[at : at + nbytes])
            at += nbytes + -nbytes % _ALIGN
        made = getattr(import_module(f"fastllm.tokenizer.{_CLASSES[about['class']]}"), about["class"])
        tokenizer: Tokenizer = made.from_parts(about["own"], parts)
        for key, value in about["common"].items():
            setattr(tokenizer, key, tuple(value) if key in _TUPLES and value is not None else value)
        pair = about["pair"]
        if pair is not None:
            prefix, between, suffix, second = pair
            tokenizer.pair = Pair(tuple(prefix), tuple(between), tuple(suffix), second)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"its ready form is damaged: {error}") from None
    return tokenizer
