"""Vocabularies of letters, such as those of amino acids and nucleotides: a vocab.txt with a token a line.

Protein models have them (ESM-2, AMPLIFY, AntiBERTy), and DNA models with tokens of several nucleotides (k-mers).
"""

from __future__ import annotations

import re

from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import special_splitter
from fastllm.tokenizer._classes import class_of
from fastllm.tokenizer._parsing import token_lines
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer._specials import by_role, texts_by_role
from fastllm.tokenizer.base import Files, Stream, Tokenizer

_NAMED = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")  # <mask>, [MASK]


class LetterTokenizer(Tokenizer):
    """Greedy longest match: at each place of a text, from left to right, the longest token that stands there is taken.

    tokens: by their ids; those in <> or [] are special. each: whether each character is looked up by itself and is
    `unknown` where it is no token, a space too, as in AMPLIFY; otherwise spaces only separate, and a run of other
    characters is a single `unknown`, as in transformers' EsmTokenizer. prefix, suffix: the ids around a text. unknown:
    an id.
    """

    def __init__(
        self, tokens: list[str], *, each: bool, prefix: tuple[int, ...], suffix: tuple[int, ...], unknown: int
    ) -> None:
        self.size = self.plain = len(tokens)
        self.prefix, self.suffix = prefix, suffix
        self._each, self._unknown = each, unknown
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._special = {token: i for token, i in self._ids.items() if _NAMED.fullmatch(token)}
        self.special = self._special.keys()
        self._letters = {token: i for token, i in self._ids.items() if token and token not in self._special}
        self._lengths = sorted({len(token) for token in self._letters}, reverse=True)
        self._pieces = [b"" if token in self._special else token.encode() for token in tokens]
        self._splitter = special_splitter(self._special)

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        if not special or self._splitter is None:
            return self._plain(text)
        ids: list[int] = []
        for i, part in enumerate(self._splitter.split(text)):
            ids += [self._special[part]] if i % 2 else self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        if self._each:
            return [self._letters.get(letter, self._unknown) for letter in text]
        ids: list[int] = []
        at, in_run = 0, False  # in_run: whether the character before `at` is of a run of unknown ones
        while at < len(text):
            found = next((n for n in self._lengths if text[at : at + n] in self._letters), 0)
            if found:
                ids.append(self._letters[text[at : at + found]])
            elif not in_run and not text[at].isspace():
                ids.append(self._unknown)
            in_run = not found and not text[at].isspace()
            at += found or 1
        return ids

    def stream(self, previous: int | None = None) -> Stream:
        return Stream(self._pieces)

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)


_ESM = by_role(unk="<unk>", cls="<cls>", pad="<pad>", mask="<mask>", eos="<eos>")


def read(files: Files) -> LetterTokenizer:
    """The tokenizer of a vocab.txt of letters. Raises TokenizerError where it, or a file beside it, is broken."""
    tokens, settings = token_lines(files["vocab.txt"]), Settings(files)
    esm = class_of(files) == "EsmTokenizer"
    if esm:
        tokens = [token.strip() for token in tokens]
        roles = texts_by_role(files, _ESM)
        names = [[roles[role]] if role in roles else [] for role in ("unk_token", "cls_token", "eos_token")]
    else:
        names = [["<unk>", "[UNK]"], ["<cls>", "<bos>", "[CLS]"], ["<eos>", "[SEP]"]]
    ids = {token: i for i, token in enumerate(tokens)}
    unknown, first, last = ([ids[token] for token in some if token in ids][:1] for some in names)
    if not unknown:
        raise TokenizerError(f"it has no token {' or '.join(names[0]) or 'for what it does not know'}")
    each = "<bos>" in ids and not esm
    tokenizer = LetterTokenizer(tokens, each=each, prefix=tuple(first), suffix=tuple(last), unknown=unknown[0])
    settings.describe(tokenizer)
    return tokenizer


def is_letters(lines: list[str], class_name: str) -> bool:
    """Whether a vocab.txt is one of letters: every line is a letter or special, and one of these is <unk> or [UNK].

    class_name: the class of transformers that it is for, as far as the files say.
    """
    if class_name == "EsmTokenizer":
        return True
    has_unknown = not {"<unk>", "[UNK]"}.isdisjoint(lines)
    return has_unknown and all(len(line) == 1 or _NAMED.fullmatch(line) for line in lines if line)
