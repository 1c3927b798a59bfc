"""SentencePiece's own .model."""

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

# Role, its id's field in the model's TrainerSpec, the id where it is not there, the piece's type.
_ROLES = (("unk_token", 40, 0, UNKNOWN), ("bos_token", 41, 1, CONTROL), ("eos_token", 42, 2, CONTROL))


def read(files: Files) -> PieceTokenizer:
    """A SentencePiece .model: a protobuf of pieces (1: text, 2: score, 3: type) and a normalizer."""
    blob, settings = files["tokenizer.model"], Settings(files)
    words, types, others = _core.proto_pieces(blob)
    if not words:
        raise TokenizerError("it is no SentencePiece model: it has no pieces")
    trainer, normalizer = dict[int, Any](), dict[int, Any]()
    for number, value in others:
        if number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_core.proto_fields(value))
    for role, field, default, kind in _ROLES:
        i = trainer.get(field, default)
        if isinstance(i, int) and i < len(words) and types[i] == kind:
            settings.propose(role, words[i].decode("utf-8", "replace"))
    prefix, trims = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    space, rule, first = prefix or trims, b"", settings.legacy is False
    if settings.llama:
        # transformers' LlamaTokenizer takes the pieces from the model and none of its rules for spaces.
        prefix, space, first = False, settings.flag("add_prefix_space") is not False, not settings.legacy
        rule = proto_field(
            3,
            proto_field(1, b"identity")
            + proto_field(2, b"")
            + proto_field(3, int(space))
            + proto_field(4, 0)
            + proto_field(5, 1),
        )
    added = _added(words, types, settings, early=prefix)
    # The library takes a user-defined piece for itself wherever it is written: one that is taken before must not be.
    changed = {
        i: CONTROL if token.special else NORMAL
        for i, token in added.items()
        if i < len(types) and types[i] == USER_DEFINED and (token.special or settings.llama)
    }
    pieces, inside = shown(words, types), len(words)
    gap = range(inside, max(added, default=-1) + 1)
    words += [b"" for _ in gap]
    pieces += [b"" for _ in gap]
    for i, token in added.items():
        content = token.content.encode("utf-8", "replace")
        if token.special:
            pieces[i] = b""
        elif words[i] != content:
            pieces[i] = content
        words[i] = content

    def model() -> bytes:
        return (_retyped(blob, changed) if changed else blob) + rule

    unspaced = " \u2581" if first or settings.llama else ""
    tokenizer = PieceTokenizer(words, pieces, model, added, space=space, first=first, unspaced=unspaced)
    tokenizer.plain = inside
    tokenizer.added = [*tokenizer.added, *user_defined(words, types, added)]
    tokenizer.prefix, tokenizer.suffix = settings.affixes(tokenizer.token_id, None, None)
    settings.describe(tokenizer)
    return tokenizer


def _added(words: Sequence[bytes], types: Sequence[int], settings: Settings, *, early: bool) -> dict[int, AddedToken]:
    """The tokens that are taken out of a text first: the model's own control pieces, and what the settings add.

    A text that is a piece keeps the piece's id, whatever the settings say; one that is nowhere gets the next. early:
    whether none waits until others have been found.
    """
    settings.check_added(len(words))
    own = (CONTROL, USER_DEFINED, UNKNOWN) if settings.llama else (CONTROL,)
    added = {
        i: AddedToken(words[i].decode("utf-8", "replace"), kind != USER_DEFINED)
        for i, kind in enumerate(types)
        if kind in own
    }
    if settings.added or settings.special:
        places = {word: i for i, word in reversed(list(enumerate(words)))}
        for i, token in sorted(settings.added.items()):
            place = places.setdefault(token.content.encode("utf-8", "replace"), i)
            added[place] = token._replace(normalized=token.normalized and not early)
        end = max(len(words) - 1, max(added, default=0)) + 1
        for token in settings.special:
            place = places.setdefault(token.content.encode("utf-8", "replace"), end)
            added[place] = token
            end += place == end
    return added


def _retyped(blob: bytes, kinds: Mapping[int, int]) -> bytes:
    """The model with these pieces' types changed."""
    out, index, fields = [], 0, _core.proto_fields(blob)
    for number, value in fields:
        if number != 1 or not isinstance(value, bytes):
            continue
        out.append(proto_field(1, value + proto_field(3, kinds[index]) if index in kinds else value))
        index += 1
    others = [proto_field(number, value) for number, value in fields if number in (2, 3, 5)]
    return b"".join(out + others)
