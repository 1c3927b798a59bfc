"""GPT-2's vocab.json and merges.txt: BPE over bytes; and CLIP's, which lower-cases and marks a word's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer import Files
from fastllm.tokenizer.settings import Settings, load_json
from fastllm.tokenizer.tokenizer_json import LibraryTokenizer, library, refusals

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read(files: Files) -> LibraryTokenizer:
    settings = Settings(files)
    vocabulary = vocabulary_of(load_json(files["vocab.json"], "vocab.json"))
    if "merges.txt" not in files:
        raise TokenizerError("it has no merges.txt")
    try:
        lines = files["merges.txt"].decode().split("\n")
    except UnicodeDecodeError:
        raise TokenizerError("merges.txt is no UTF-8") from None
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    clip = any(merge[-1].endswith(_WORD_END) for merge in merges[:1000])
    with refusals("tokenizers"):
        return LibraryTokenizer((_clip if clip else _gpt2)(vocabulary, merges, settings), settings)


def _gpt2(vocabulary: dict[str, int], merges: list[tuple[str, ...]], settings: Settings) -> Any:
    hf = library("vocab.json")
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space") or False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    add_special(tokenizer, [settings.roles.get(role, _END) for role in ("bos_token", "eos_token", "unk_token")])
    return tokenizer


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, ...]], settings: Settings) -> Any:
    hf = library("vocab.json")
    around = [settings.roles.get("bos_token", _START), settings.roles.get("eos_token", _END)]
    for token in around:
        if token not in vocabulary:
            raise TokenizerError(f"it has no token {token}")
    unknown = settings.roles.get("unk_token", _END)
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, merges, end_of_word_suffix=_WORD_END, unk_token=unknown))
    spaces = hf.normalizers.Replace(hf.Regex(r"\s+"), " ")
    tokenizer.normalizer = hf.normalizers.Sequence([hf.normalizers.NFC(), spaces, hf.normalizers.Lowercase()])
    words = hf.pre_tokenizers.Split(hf.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = hf.decoders.ByteLevel()
    add_special(tokenizer, around)
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single=[around[0], "$A", around[1]], special_tokens=[(token, vocabulary[token]) for token in around]
    )
    return tokenizer


def vocabulary_of(value: Any) -> dict[str, int]:
    """token -> id. Raises TokenizerError unless it is that."""
    if not isinstance(value, Mapping) or not all(type(i) is int and 0 <= i < 1 << 31 for i in value.values()):
        raise TokenizerError("its vocabulary is no JSON object of ids")
    return dict(value)


def add_special(tokenizer: Any, tokens: list[str]) -> None:
    """Makes those that are in the vocabulary special."""
    hf = library("its vocabulary")
    inside = [token for token in dict.fromkeys(tokens) if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([hf.AddedToken(token, special=True, normalized=False) for token in inside])
