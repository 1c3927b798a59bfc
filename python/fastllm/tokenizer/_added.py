"""Tokens that are added to a vocabulary and taken out of a text before it is cut into pieces.

What they match is what the tokenizers library lets them match (its AddedVocabulary), for vocabularies that it does not
run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_CIRCLED = [(0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)]  # symbols that are letters


class AddedToken(NamedTuple):
    """A token and how it is found in a text.

    special: whether it is none of what people write: taken only where that is asked for, and never shown. lstrip,
    rstrip: whether it takes the spaces before and after it. single_word: whether it must not touch a letter, digit or
    underscore. normalized: whether it is looked for after those that are not, in what they have left.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class AddedTokens:
    """Cuts texts at added tokens. tokens: id -> token."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._found = {token.content: (i, token) for i, token in tokens.items() if token.content}
        rounds = [[t.content for _, t in self._found.values() if t.normalized is late] for late in (False, True)]
        self._rounds = [splitter for contents in rounds if (splitter := special_splitter(contents)) is not None]
        self._all_special = all(token.special for _, token in self._found.values())

    def split(self, text: str, *, special: bool) -> list[str | int]:
        """The text's parts in order, as text, and between them the ids of tokens. special: whether special ones count.

        No part is empty.
        """
        parts: list[str | int] = [text] if text else []
        if self._all_special and not special:
            return parts
        for splitter in self._rounds:
            cut = [self._cut(part, splitter, special) if isinstance(part, str) else [part] for part in parts]
            parts = [part for some in cut for part in some]
        return parts

    def _cut(self, text: str, splitter: re.Pattern[str], special: bool) -> Iterator[str | int]:
        at = 0
        for found in splitter.finditer(text):
            i, token = self._found[found[0]]
            start, end = found.span()
            if token.special and not special:
                continue
            if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            while token.lstrip and at < start and _is_space(text[start - 1]):
                start -= 1
            while token.rstrip and end < len(text) and _is_space(text[end]):
                end += 1
            if at < start:
                yield text[at:start]
            yield i
            at = end
        if at < len(text):
            yield text[at:]


def _is_space(character: str) -> bool:
    """Whether it is white space to Unicode: Python counts four separators more."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_word(character: str) -> bool:
    """Whether a regular expression's \\w matches it, by Unicode's definition."""
    if not character:
        return False
    kind = unicodedata.category(character)
    joins = character in "\u200c\u200d"
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or joins or any(a <= ord(character) <= z for a, z in _CIRCLED)


def special_splitter(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Splits a text at special tokens, the longest first: text, token, text, token, ... text. None: there are none."""
    texts = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None
