"""Parsing of a tokenizer's files: JSON, and text with a token a line. Each function raises TokenizerError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer.base import Files


def load_json(blob: bytes, what: str) -> Any:
    """The value of a JSON text. what: the name of the file, for the error."""
    try:
        return json.loads(blob.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise TokenizerError(f"{what} is no JSON: {error}") from None


def json_object(files: Files, name: str) -> Mapping[str, Any]:
    """The object in a JSON file; empty where the file is missing."""
    value = load_json(files[name], name) if name in files else {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} is no JSON object")
    return value


def token_lines(blob: bytes) -> list[str]:
    """The lines of a vocab.txt, a token each; the line's number is the token's id."""
    try:
        text = blob.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"it is no UTF-8 text: byte {error.start:,} is not") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]
