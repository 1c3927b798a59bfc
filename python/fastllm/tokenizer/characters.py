"""A vocabulary of single characters, as minGPT's chargpt has it: https://github.com/karpathy/minGPT.

The file is JSON, an object character -> id or a list of characters; or the text that the model was trained on, whose
characters in order of their code points are the vocabulary, as in minGPT's CharDataset.
"""

from __future__ import annotations

import json

from fastllm.errors import TokenizerError
from fastllm.tokenizer.base import Files, Stream, Tokenizer


class CharacterTokenizer(Tokenizer):
    """A token is a character. ids: character -> id. Other characters cannot be encoded."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.size = self.plain = len(ids)
        self._ids = ids
        self._pieces = [character.encode("utf-8", "replace") for character in sorted(ids, key=ids.__getitem__)]
        self.prefix = self.suffix = ()

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise TokenizerError(f"the vocabulary of characters has no {error.args[0]!r}") from None

    def stream(self, previous: int | None = None) -> Stream:
        return Stream(self._pieces)

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)


def read(files: Files) -> CharacterTokenizer:
    """The tokenizer of a file of characters. Raises TokenizerError where that is broken."""
    try:
        text = files["characters"].decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"it is no UTF-8 text: byte {error.start:,} is not") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        ids = value
    else:
        characters = value if isinstance(value, list) else sorted(set(text))
        if not all(isinstance(character, str) for character in characters):
            raise TokenizerError("its list is not one of characters")
        ids = {character: i for i, character in enumerate(characters)}
        if len(ids) < len(characters):
            raise TokenizerError("it has a character twice")
    if not ids or any(len(character) != 1 for character in ids):
        raise TokenizerError("it is no vocabulary of single characters")
    if not all(type(i) is int for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise TokenizerError(f"its {len(ids):,} characters do not have the ids 0 to {len(ids) - 1:,}")
    return CharacterTokenizer(ids)
