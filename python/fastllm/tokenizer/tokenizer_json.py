"""Hugging Face's tokenizer.json: https://huggingface.co/docs/tokenizers/components says what its parts do."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._library import LibraryTokenizer, bert_normalizer, library, refusals
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files

if TYPE_CHECKING:
    import tokenizers

_MOST_GROWTH = 64  # times that a normalizer may make a text longer


def read(files: Files) -> LibraryTokenizer:
    """The tokenizer of a tokenizer.json. Raises TokenizerError where it, or a file beside it, is broken."""
    hf = library("tokenizer.json")
    with refusals("tokenizers"):
        _check_growth(files["tokenizer.json"])
        tokenizer, settings = hf.Tokenizer.from_buffer(files["tokenizer.json"]), Settings(files)
        if settings.llama and b'"ByteLevel"' not in files["tokenizer.json"]:
            _put_spaces_as_llama(hf, tokenizer, settings)
            for role, text in (("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")):
                if tokenizer.token_to_id(text) is not None:
                    settings.propose(role, text)
        if settings.bert and isinstance(tokenizer.normalizer, hf.normalizers.BertNormalizer):
            tokenizer.normalizer = bert_normalizer(hf, settings)
        return LibraryTokenizer(tokenizer, settings)


def _put_spaces_as_llama(hf: Any, tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
    """Replaces the file's rules for spaces by those of transformers' LlamaTokenizer.

    That class takes nothing but the vocabulary and the merges from the file.
    """
    scheme = "always" if settings.legacy else "first"
    steps = [hf.decoders.Replace("\u2581", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
    if settings.flag("add_prefix_space") is False:
        scheme = "never"
    else:
        steps.append(hf.decoders.Strip(content=" ", left=1))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    tokenizer.decoder = hf.decoders.Sequence(steps)


def _check_growth(blob: bytes) -> None:
    """Raises TokenizerError for a normalizer that makes texts far longer: the library would fill all memory."""
    state = json.loads(blob)
    if not isinstance(state, dict):
        raise TokenizerError("it is no JSON object")
    if _growth(state.get("normalizer") or {}) > _MOST_GROWTH:
        raise TokenizerError(f"its normalizer makes texts more than {_MOST_GROWTH} times longer")


def _growth(step: dict[str, Any]) -> int:
    """How many times longer a step, with the steps in it, may make a text."""
    inner = step.get("normalizers") or []
    own = len(step.get("content") or step.get("prepend") or "") if step.get("type") in ("Replace", "Prepend") else 1
    return max(1, own) * prod(map(_growth, inner))
