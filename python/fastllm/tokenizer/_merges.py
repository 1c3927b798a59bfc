"""Byte-pair encoding of the tokenizers library, taken apart: the library splits texts, the core merges.

A tokenizer.json of a vocabulary that has hundreds of thousands of tokens takes the library up to half a second to load.
Without tokens of several characters, and without merges, it is loaded in an instant, and splits a text into words, and
these into the ids of their characters, as it would otherwise before it merges. The tables of tokens and merges lie in
the packed cache's file as they are searched (pyx/merges.pxi).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.tokenizer.base import Bytes

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Parted(NamedTuple):
    """A tokenizer.json that was taken apart.

    small: what the library is given. tables: as _core.merge_tables gives them. whole: see _core.Merges.
    """

    small: str
    tables: tuple[Bytes, ...]
    whole: bool

    @classmethod
    def of(cls, text: str, alphabet: list[str]) -> Parted | None:
        """A tokenizer.json taken apart; None for one that is no byte-pair encoding, or not a plain one.

        alphabet: the characters that stand for bytes in vocabularies of bytes.
        """
        settings = json.loads(text)
        model = settings["model"]
        added = {token["content"]: token["id"] for token in settings["added_tokens"]}
        if model.get("type") != "BPE" or not _is_plain(settings, model, added, alphabet):
            return None
        vocabulary, merges, whole = model["vocab"], model["merges"], bool(model["ignore_merges"])
        kept = {*_BYTES, model["unk_token"], *added}
        model["vocab"] = {word: i for word, i in vocabulary.items() if len(word) == 1 or word in kept} | added
        model["merges"], model["ignore_merges"] = [], False
        return cls(json.dumps(settings), _core.merge_tables(vocabulary, merges), whole)


def _is_plain(
    settings: Mapping[str, Any], model: Mapping[str, Any], added: Mapping[str, int], alphabet: list[str]
) -> bool:
    """Whether the ids of characters, and the words that they are in, are all that merging needs to know."""
    vocabulary, merges = model["vocab"], model["merges"]
    if model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return False
    if not all(isinstance(merge, list) for merge in merges) or len(set(vocabulary.values())) < len(vocabulary):
        return False
    if any(len(content) == 1 and content not in vocabulary for content in added):
        return False  # with special tokens switched off, the small one would find it as a character
    if not model["ignore_merges"]:
        return True
    # A word is looked up as what its characters' tokens make: none may be missing, or stand for another.
    to_bytes = '"ByteLevel"' in json.dumps([settings["normalizer"], settings["pre_tokenizer"]])
    return to_bytes and model["unk_token"] is None and all(character in vocabulary for character in alphabet)
