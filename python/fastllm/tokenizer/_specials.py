"""Special tokens as transformers' tokenizer classes have them: by role, and around a text.

Without a tokenizer.json the class brings the special tokens, which the files beside the vocabulary may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._library import library
from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer._settings import ROLES, Settings
from fastllm.tokenizer.base import Files

Added = dict[str, Any]  # the arguments of tokenizers.AddedToken


def special(content: str, *, lstrip: bool = False) -> Added:
    """A special token. lstrip: whether it takes the spaces before it."""
    return {"content": content, "special": True, "normalized": False, "lstrip": lstrip}


def by_role(**tokens: str | Added) -> dict[str, Added]:
    """Special tokens by their role: by_role(mask="[MASK]") has the role "mask_token"."""
    return {f"{role}_token": special(token) if isinstance(token, str) else token for role, token in tokens.items()}


def texts_by_role(files: Files, defaults: Mapping[str, Added]) -> dict[str, str]:
    """The texts of the special tokens by their role: what the files say, else the class's `defaults`."""
    return {role: token["content"] for role, token in _tokens_by_role(files, defaults).items()}


def _tokens_by_role(files: Files, defaults: Mapping[str, Added]) -> dict[str, Added]:
    """The special tokens by their role. A role that the files set to null has no token, whatever the defaults."""
    config, named = json_object(files, "tokenizer_config.json"), json_object(files, "special_tokens_map.json")
    if "added_tokens_decoder" in config:  # then transformers does not read the map
        named = {}
    roles: dict[str, Added] = {}
    for role in ROLES:
        value = named.get(role, config.get(role, defaults.get(role)))
        if isinstance(value, str) and value:
            roles[role] = special(value)
        elif isinstance(value, Mapping):
            content = value.get("content")
            if not isinstance(content, str) or not content:
                raise TokenizerError(f"its {role} has no text")
            flags = ("lstrip", "rstrip", "single_word", "normalized")
            kept = {flag: value[flag] for flag in flags if isinstance(value.get(flag), bool)}
            kept.setdefault("normalized", role not in named)
            roles[role] = {"content": content, "special": True, **kept}
        elif value is not None:
            raise TokenizerError(f"its {role} is no token")
    return roles


def add_specials(
    tokenizer: Any,
    files: Files,
    settings: Settings,
    defaults: Mapping[str, Added],
    extras: Iterable[Added] = (),
) -> None:
    """Adds the special tokens of a class to a tokenizers.Tokenizer; those outside its vocabulary get the next ids.

    Sets settings.roles too. defaults: the class's special tokens by role. extras: more tokens; where one has a role
    too, the flags (lstrip, ...) are those of `extras`. Tokens that tokenizer_config.json or added_tokens.json list with
    ids are left to LibraryTokenizer, which adds them with these ids.
    """
    hf, roles = library("its vocabulary"), _tokens_by_role(files, defaults)
    settings.roles = {role: token["content"] for role, token in roles.items()}
    listed = json_object(files, "tokenizer_config.json").get("added_tokens_decoder")
    later = set(json_object(files, "added_tokens.json"))
    for token in listed.values() if isinstance(listed, Mapping) else ():
        text = token.get("content") if isinstance(token, Mapping) else token
        later.update([text] if isinstance(text, str) else [])
    tokens = {token["content"]: token for token in (*roles.values(), *extras) if token["content"] not in later}
    tokenizer.add_tokens([hf.AddedToken(**token) for token in tokens.values()])


def template(tokenizer: Any, before: list[str], after: list[str], *, double_sep: bool = False) -> Any:
    """The library's TemplateProcessing that puts the tokens `before` and `after` around a text.

    A pair is BERT's, `before` a `after` b `after`, where b and what follows have token type 1; or with double_sep
    RoBERTa's, `before` a `after` `after` b `after`, all of type 0. Raises TokenizerError where the vocabulary lacks one
    of the tokens.
    """
    ids = {token: tokenizer.token_to_id(token) for token in (*before, *after)}
    if missing := [token for token, i in ids.items() if i is None]:
        raise TokenizerError(f"it has no token {missing[0]}")
    first = [*before, "$A", *after]
    second = [*after, "$B", *after] if double_sep else [f"{token}:1" for token in ("$B", *after)]
    return library("its vocabulary").processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=list(ids.items())
    )
