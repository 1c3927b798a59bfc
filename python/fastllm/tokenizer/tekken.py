"""Mistral's tekken.json: ranks of tokens in base64, the pattern of words, and special tokens, which have the first ids.

The format is that of mistral-common: https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py.
"""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer._ranks import RankTokenizer
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files

# The special tokens of files up to version 7 that list none.
_OLD_SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
_OLD_SPECIAL += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"]
_OLD_SPECIAL += ["[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
_OLD_VERSIONS = ("v1", "v2", "v3", "v7")
_MOST_SPECIAL = 1 << 16
_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def read(files: Files) -> RankTokenizer:
    """The tokenizer of a tekken.json, which puts <s> before a text. Raises TokenizerError where the file is broken."""
    content = json_object(files, "tekken.json")
    config = content.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise TokenizerError("its config has no pattern")
    special = _special_tokens(content, config)
    first = len(special)
    size = _count(config, "default_vocab_size", None)
    settings = Settings(files)
    settings.roles = {f"{role}_token": text for role, text in _ROLES.items() if text in special}
    for text in ("<s>", "</s>"):
        if text not in special:
            raise TokenizerError(f"it has no special token {text}")
    ranks = _ranks(content.get("vocab"), None if size is None else size - first)
    tokenizer = RankTokenizer(
        ranks, {text: i for i, text in enumerate(special)}, settings, pattern=config["pattern"], first=first
    )
    tokenizer.prefix, tokenizer.suffix = (special.index("<s>"),), ()
    return tokenizer


def _special_tokens(content: Any, config: dict[str, Any]) -> list[str]:
    """The special tokens in the order of their ids, filled up with <SPECIAL_n> to the number that the config says."""
    entries = content.get("special_tokens")
    if entries is None:
        if config.get("version") not in _OLD_VERSIONS:
            raise TokenizerError(f"it has no special_tokens, which its version {config.get('version')!r} needs"[:200])
        named = _OLD_SPECIAL
    else:
        pairs = [
            (entry["rank"], entry["token_str"])
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and type(entry.get("rank")) is int and isinstance(entry.get("token_str"), str)
        ]
        named = [text for _, text in sorted(pairs)]
        if not isinstance(entries, list) or sorted(rank for rank, _ in pairs) != list(range(len(entries))):
            raise TokenizerError("its special_tokens are no list of texts with the ranks 0, 1, 2, ...")
    count = _count(config, "default_num_special_tokens", len(named))
    if not len(named) <= count <= _MOST_SPECIAL:
        raise TokenizerError(f"it has {len(named):,} special tokens where its config says {count:,}")
    tokens = named + [f"<SPECIAL_{i}>" for i in range(len(named), count)]
    if len(set(tokens)) < len(tokens) or "" in tokens:
        raise TokenizerError("it has a special token twice, or an empty one")
    return tokens


def _count(config: dict[str, Any], name: str, default: Any) -> Any:
    """A number of the config that is 0 or more, or the default. Raises TokenizerError for any other value."""
    value = config.get(name, default)
    if value is not None and (type(value) is not int or value < 0):
        raise TokenizerError(f"its config has {name} {value!r}"[:200])
    return value


def _ranks(entries: Any, count: int | None) -> dict[bytes, int]:
    """token -> rank for the first `count` entries of "vocab" (None: all). The first 256 must be the single bytes."""
    if not isinstance(entries, list) or (count is not None and not 256 <= count <= len(entries)):
        raise TokenizerError("its vocab is no list, or shorter than its config's default_vocab_size says")
    ranks: dict[bytes, int] = {}
    for i, entry in enumerate(entries[:count]):
        try:
            token = b64decode(entry["token_bytes"], validate=True)
            rank = entry["rank"]
        except (TypeError, KeyError, ValueError):
            raise TokenizerError(f"entry {i:,} of its vocab is no token in base64 with its rank") from None
        if rank != i or type(rank) is not int or token in ranks or not token or (i < 256 and token != bytes([i])):
            raise TokenizerError(f"entry {i:,} of its vocab has another rank, or is there twice, or is not its byte")
        ranks[token] = i
    if len(ranks) < 256:
        raise TokenizerError("its vocab misses single bytes")
    return ranks
