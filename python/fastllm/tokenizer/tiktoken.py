"""Llama 3's tokenizer.model: lines of a token in base64 and its rank, run by the tiktoken library."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from fastllm.errors import TokenizerError, import_error
from fastllm.tokenizer._added import special_splitter
from fastllm.tokenizer._library import refusals
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files, Stream, Tokenizer

# Llama 3's own split of a text into words, from its reference tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = 256  # tokens after the ranks


def special_tokens() -> list[str]:
    """Llama 3.1's special tokens in the order of their ids; 3.0 has reserved ones in the places of the new ones."""
    first = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    first += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"]
    first += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    return first + [f"<|reserved_special_token_{i}|>" for i in range(3, _SPECIAL - len(first) + 3)]


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
        pattern: str = WORDS,
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


def read(files: Files) -> RankTokenizer:
    ranks: dict[bytes, int] = {}
    lines = files["tokenizer.model"].split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise TokenizerError(f"line {number:,} is no token in base64 and its rank") from None
    count = len(ranks)
    if sorted(ranks.values()) != list(range(count)) or not {bytes([b]) for b in range(256)} <= set(ranks):
        raise TokenizerError(f"its {count:,} tokens do not have the ranks 0 to {count - 1:,}, or miss single bytes")
    settings = Settings(files)
    settings.check_added(count)
    special = {text: count + i for i, text in enumerate(special_tokens())}
    if settings.added:
        special = {token.content: i for i, token in settings.added.items() if i >= count}
    return RankTokenizer(ranks, special, settings)
