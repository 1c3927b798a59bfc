"""Vocabularies of single letters, a token a line: AMPLIFY's and ESM-2's proteins, AntiBERTy's antibodies."""

from __future__ import annotations

import re

from fastllm.errors import TokenizerError
from fastllm.tokenizer import Files, Stream, Tokenizer
from fastllm.tokenizer.added import special_splitter

_NAMED = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")  # <mask>, [MASK]


class LetterTokenizer(Tokenizer):
    """A letter is a token. What is put around a text are the tokens <cls> or <bos> or [CLS], and <eos> or [SEP].

    AMPLIFY has an <unk> for each other character, a space too. Elsewhere a space only separates and what is unknown
    between two letters is one <unk>, as transformers has it for ESM.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.size = self.plain = len(tokens)
        self._ids: dict[str, int] = {}
        for i, token in enumerate(tokens):
            self._ids.setdefault(token, i)
        unknown = self._first("<unk>", "[UNK]")
        if unknown is None:
            raise TokenizerError("it has no token <unk> or [UNK]")
        self._unknown = unknown
        self._each = "<bos>" in self._ids
        self._special = {token: i for token, i in self._ids.items() if _NAMED.fullmatch(token)}
        self.special = self._special.keys()
        self._pieces = [b"" if token in self._special else token.encode() for token in tokens]
        self._splitter = special_splitter(self._special)
        first, last = self._first("<cls>", "<bos>", "[CLS]"), self._first("<eos>", "[SEP]")
        self.prefix = () if first is None else (first,)
        self.suffix = () if last is None else (last,)

    def _first(self, *tokens: str) -> int | None:
        return next((self._ids[token] for token in tokens if token in self._ids), None)

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        if not special or self._splitter is None:
            return self._letters(text)
        ids: list[int] = []
        for i, part in enumerate(self._splitter.split(text)):
            ids += [self._special[part]] if i % 2 else self._letters(part)
        return ids

    def _letters(self, text: str) -> list[int]:
        if self._each:
            return [self._ids.get(letter, self._unknown) for letter in text]
        ids: list[int] = []
        fresh = True
        for letter in text:
            known = self._ids.get(letter)
            if letter.isspace():
                fresh = True
            elif known is not None:
                ids.append(known)
                fresh = True
            elif fresh:
                ids.append(self._unknown)
                fresh = False
        return ids

    def stream(self, previous: int | None = None) -> Stream:
        return Stream(self._pieces)

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)


def read(files: Files) -> LetterTokenizer:
    return LetterTokenizer(lines_of(files["vocab.txt"]))


def lines_of(blob: bytes) -> list[str]:
    """The tokens of a vocab.txt. Raises TokenizerError where it is no text."""
    try:
        text = blob.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"it is no UTF-8 text: byte {error.start:,} is not") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def kind_of(blob: bytes, vocab_size: int, name: str) -> str:
    """What a text file is: a vocabulary of letters or of word pieces, or a text whose characters are the vocabulary."""
    lines = lines_of(blob)
    if not {"<unk>", "[UNK]"} & set(lines) or (len(lines) > vocab_size and not name.endswith("vocab.txt")):
        return "characters"
    return "letters" if all(len(line) == 1 or _NAMED.fullmatch(line) for line in lines if line) else "wordpiece"
