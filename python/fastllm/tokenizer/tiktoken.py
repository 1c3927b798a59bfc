"""Llama 3's tokenizer.model: on each line a token in base64 and its rank, the format of OpenAI's tiktoken.

Pattern and special tokens are not in the file; they are those of Meta's reference code (llama-models,
models/llama3/tokenizer.py).
"""

from __future__ import annotations

from base64 import b64decode

from fastllm.errors import TokenizerError
from fastllm.tokenizer._ranks import RankTokenizer
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = 256  # special tokens, whose ids follow the ranks


def read(files: Files) -> RankTokenizer:
    """The tokenizer of a tokenizer.model. Raises TokenizerError where it, or a file beside it, is broken."""
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
    special = {text: count + i for i, text in enumerate(_special_tokens())}
    if settings.added:
        special = {token.content: i for i, token in settings.added.items() if i >= count}
    return RankTokenizer(ranks, special, settings, pattern=_PATTERN)


def _special_tokens() -> list[str]:
    """Llama 3.1's special tokens in the order of their ids. Llama 3.0 has reserved tokens where 3.1 has new ones."""
    first = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    first += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"]
    first += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    return first + [f"<|reserved_special_token_{i}|>" for i in range(3, _SPECIAL - len(first) + 3)]
