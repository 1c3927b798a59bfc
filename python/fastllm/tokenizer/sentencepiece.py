"""SentencePiece's .model whose ids are the file's own: Llama 1 and 2, Mistral, Gemma.

The file is a protobuf of pieces (1: text, 2: score, 3: type), a TrainerSpec and a NormalizerSpec:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._pieces import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    PieceTokenizer,
    proto_field,
    shown,
    user_defined,
)
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files

# Role, the field of TrainerSpec that holds its id, the id where that field is missing, the type its piece must have.
_ROLES = (("unk_token", 40, 0, UNKNOWN), ("bos_token", 41, 1, CONTROL), ("eos_token", 42, 2, CONTROL))


def read(files: Files) -> PieceTokenizer:
    """The tokenizer of a tokenizer.model. Raises TokenizerError where it, or a file beside it, is broken."""
    blob, settings = files["tokenizer.model"], Settings(files)
    words, types, others = _core.proto_pieces(blob)
    if not words:
        raise TokenizerError("it is no SentencePiece model: it has no pieces")
    trainer, normalizer = _specs(others)
    for role, field, default, type_ in _ROLES:
        i = trainer.get(field, default)
        if isinstance(i, int) and i < len(words) and types[i] == type_:
            settings.propose(role, words[i].decode("utf-8", "replace"))
    # add_dummy_prefix and remove_extra_whitespaces of NormalizerSpec
    dummy_prefix, trims = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    space, rules, at_start_only = dummy_prefix or trims, b"", settings.legacy is False
    if settings.llama:
        # transformers' LlamaTokenizer takes the pieces from the model and none of its rules for spaces: a second
        # NormalizerSpec overrides those of the first.
        dummy_prefix, space, at_start_only = False, settings.flag("add_prefix_space") is not False, not settings.legacy
        rules = proto_field(1, b"identity") + proto_field(2, b"")  # name, precompiled_charsmap
        rules += proto_field(3, int(space)) + proto_field(4, 0) + proto_field(5, 1)
        rules = proto_field(3, rules)
    added = _added(words, types, settings, early=dummy_prefix)
    # The library matches USER_DEFINED pieces wherever they are written. Those that AddedTokens matches become pieces of
    # another type: where it passes over one (special=False, single_word), the text is to be split like any other.
    changed = {
        i: CONTROL if token.special else NORMAL
        for i, token in added.items()
        if i < len(types) and types[i] == USER_DEFINED and (token.special or settings.llama)
    }
    count = len(words)  # of the model's own pieces
    words, pieces = _with_added(words, shown(words, types), added)

    def model() -> bytes:
        return (_retyped(blob, changed) if changed else blob) + rules

    tokenizer = PieceTokenizer(
        words,
        pieces,
        model,
        added,
        strips_space=space,
        space_at_start_only=at_start_only,
        unspaced=" \u2581" if at_start_only or settings.llama else "",
    )
    tokenizer.plain = count
    tokenizer.added = [*tokenizer.added, *user_defined(words, types, added)]
    tokenizer.prefix, tokenizer.suffix = settings.affixes(tokenizer.token_id, None, None)
    settings.describe(tokenizer)
    return tokenizer


def _specs(fields: Sequence[tuple[int, int | bytes]]) -> tuple[dict[int, Any], dict[int, Any]]:
    """The fields of a ModelProto's TrainerSpec and NormalizerSpec by their numbers."""
    trainer, normalizer = dict[int, Any](), dict[int, Any]()
    for number, value in fields:
        if number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_core.proto_fields(value))
    return trainer, normalizer


def _added(words: Sequence[bytes], types: Sequence[int], settings: Settings, *, early: bool) -> dict[int, AddedToken]:
    """The tokens that are taken out of a text first, by id: the model's own CONTROL pieces, and what the settings add.

    A token that is a piece of the model keeps the piece's id, whatever id the settings give it; a special token without
    an id that is no piece gets the next free one. early: whether all of them are searched for in the raw text, also
    those that the settings call normalized.
    """
    settings.check_added(len(words))
    own = (CONTROL, USER_DEFINED, UNKNOWN) if settings.llama else (CONTROL,)
    added = {
        i: AddedToken(words[i].decode("utf-8", "replace"), type_ != USER_DEFINED)
        for i, type_ in enumerate(types)
        if type_ in own
    }
    if settings.added or settings.special:
        ids = {word: i for i, word in reversed(list(enumerate(words)))}
        for i, token in sorted(settings.added.items()):
            place = ids.setdefault(token.content.encode("utf-8", "replace"), i)
            added[place] = token._replace(normalized=token.normalized and not early)
        end = max(len(words) - 1, max(added, default=0)) + 1
        for token in settings.special:
            place = ids.setdefault(token.content.encode("utf-8", "replace"), end)
            added[place] = token
            end += place == end
    return added


def _with_added(
    words: list[bytes], pieces: list[bytes], added: Mapping[int, AddedToken]
) -> tuple[list[bytes], list[bytes]]:
    """words and pieces up to the last added token, with their texts in place: ids that no token has are empty."""
    gap = [b""] * (max(added, default=-1) + 1 - len(words))
    words, pieces = [*words, *gap], [*pieces, *gap]
    for i, token in added.items():
        content = token.content.encode("utf-8", "replace")
        if token.special:
            pieces[i] = b""
        elif words[i] != content:
            pieces[i] = content
        words[i] = content
    return words, pieces


def _retyped(blob: bytes, types: Mapping[int, int]) -> bytes:
    """The model with the types of these pieces changed: in a message the last field of a number counts."""
    out, index, fields = [], 0, _core.proto_fields(blob)
    for number, value in fields:
        if number != 1 or not isinstance(value, bytes):
            continue
        out.append(proto_field(1, value + proto_field(3, types[index]) if index in types else value))
        index += 1
    others = [proto_field(number, value) for number, value in fields if number in (2, 3, 5)]
    return b"".join(out + others)
