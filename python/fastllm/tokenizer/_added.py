"""Added tokens: they are searched for in a text and cut out of it before the rest is split into tokens.

The tokenizers library does this for the vocabularies that it runs (its AddedVocabulary, tokenizers/src/tokenizer/
added_vocabulary.rs). This is the same, match for match, for the other vocabularies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

# Circled and squared letters: symbols by their category, letters to a regular expression's \w (Other_Alphabetic).
_CIRCLED = [(0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)]


class AddedToken(NamedTuple):
    """A token and how it is found in a text.

    content: its text. special: whether it is a control token: matched only where encode(special=True) asks for it, and
    not shown. lstrip, rstrip: whether it takes the white space before and after it. single_word: whether it matches
    only where no letter, digit or underscore touches it. normalized: whether it is searched for in a second round, in
    what the tokens that are not normalized have left.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class AddedTokens:
    """Cuts texts at added tokens, the longest first where several match. tokens: id -> token."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self.tokens = tokens
        self._found = {token.content: (i, token) for i, token in tokens.items() if token.content}
        self._all_special = all(token.special for _, token in self._found.values())

    @cached_property
    def _rounds(self) -> list[re.Pattern[str]]:
        """A pattern for each round, made when it is first needed: for thousands of tokens that takes a while."""
        rounds = [[t.content for _, t in self._found.values() if t.normalized is late] for late in (False, True)]
        return [splitter for contents in rounds if (splitter := special_splitter(contents)) is not None]

    def split(self, text: str, *, special: bool) -> list[str | int]:
        """The parts of a text in order: ids of added tokens, and the texts between them, none of which is empty.

        special: whether special tokens are matched too.
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
    """Whether it has Unicode's property White_Space. str.isspace has four more: the separators U+001C to U+001F."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_word(character: str) -> bool:
    """Whether \\w matches it by Unicode's definition (https://www.unicode.org/reports/tr18/, Annex C)."""
    if not character:
        return False
    category = unicodedata.category(character)
    joins = character in "\u200c\u200d"
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or joins
        or any(a <= ord(character) <= z for a, z in _CIRCLED)
    )


def special_splitter(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern whose split() gives text, token, text, token, ..., text; None where there are no tokens.

    Of several tokens that match at one place the longest is taken.
    """
    texts = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None
