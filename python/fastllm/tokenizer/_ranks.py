"""Llama 3's tokenizer.model: lines of a token in base64 and its rank, run by the tiktoken library."""

from __future__ import annotations

from typing import Any

from fastllm.errors import TokenizerError, import_error
from fastllm.tokenizer._added import special_splitter
from fastllm.tokenizer._library import refusals
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Stream, Tokenizer


class RankTokenizer(Tokenizer):
    """A tiktoken vocabulary beside special tokens.

    ranks: token -> rank; its id is `first` + rank. pattern: splits a text into words.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        special: dict[str, int],
        settings: Settings,
        *,
        pattern: str,
        first: int = 0,
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
        # Lone surrogates are bytes that were not UTF-8 to begin with.
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
