"""Byte-level BPE given by ranks, as tiktoken and tekken have it: a token's rank is the order in which merges make it.

The tiktoken library encodes (https://github.com/openai/tiktoken; BPE: Sennrich et al., 2016,
https://arxiv.org/abs/1508.07909); a table of bytes decodes. Special tokens are handled here.
"""

from __future__ import annotations

from typing import Any

from fastllm.errors import TokenizerError, import_error
from fastllm.tokenizer._added import special_splitter
from fastllm.tokenizer._library import refusals
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Stream, Tokenizer


class RankTokenizer(Tokenizer):
    """A vocabulary of ranks and special tokens.

    ranks: token -> rank; the token's id is `first` + rank. special: special token -> id. pattern: the regular
    expression whose matches are the words of a text; merges stay inside a word.
    """

    def __init__(
        self, ranks: dict[bytes, int], special: dict[str, int], settings: Settings, *, pattern: str, first: int = 0
    ) -> None:
        try:
            import tiktoken
        except (ImportError, OSError) as error:
            missing = TokenizerError("a vocabulary of ranks needs the tiktoken library: pip install 'fastllm[hf]'")
            raise import_error(error, "tiktoken", missing) from None
        self._special, self.special, self._first = special, special.keys(), first
        self._splitter = special_splitter(special)
        self.plain = first + len(ranks)
        self.size = max(self.plain, max(special.values(), default=-1) + 1)
        with refusals("tiktoken"):
            self._encoding: Any = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._pieces = [b""] * self.size
        for piece, rank in ranks.items():
            self._pieces[first + rank] = piece
        bos = special.get(settings.token("bos_token") or "<|begin_of_text|>")
        self.prefix, self.suffix = settings.affixes(self.token_id, None if bos is None else (bos,), ())
        settings.describe(self)

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # A lone surrogate stands for a byte that was not UTF-8 when the text was read; it becomes "?".
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        for i, part in enumerate(self._splitter.split(text) if special and self._splitter else [text]):
            ids += [self._special[part]] if i % 2 else self._ordinary(part)
        return ids

    def _ordinary(self, text: str) -> list[int]:
        with refusals("tiktoken"):
            return [self._first + rank for rank in self._encoding.encode_ordinary(text)]

    def stream(self, previous: int | None = None) -> Stream:
        return Stream(self._pieces)

    def token_id(self, text: str) -> int | None:
        if text in self._special:
            return self._special[text]
        piece = text.encode("utf-8", "replace")
        return self._pieces.index(piece) if piece and piece in self._pieces else None
