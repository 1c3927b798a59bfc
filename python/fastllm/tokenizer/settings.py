"""What Hugging Face keeps beside a vocabulary: which tokens are special, BOS and EOS policy, the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer import Files, Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_json(blob: bytes, what: str) -> Any:
    """Raises TokenizerError, naming what it is, when it is no JSON."""
    try:
        return json.loads(blob.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise TokenizerError(f"{what} is no JSON: {error}") from None


class Settings:
    """tokenizer_config.json, special_tokens_map.json and the chat template's files, as far as they are there.

    added: id -> (text, whether it is special) of the tokens that were added to the vocabulary. roles: the text of
    "bos_token" and so on. ends: ids that end a text, from generation_config.json.
    """

    def __init__(self, files: Files) -> None:
        self._config = _mapping(files, "tokenizer_config.json")
        self._special = _mapping(files, "special_tokens_map.json")
        self.added: dict[int, tuple[str, bool]] = {}
        added = self._config.get("added_tokens_decoder") or {}
        for key, token in added.items() if isinstance(added, Mapping) else ():
            text = _text(token)
            if text is None or not key.isdecimal() or len(key) > 9:
                raise TokenizerError(f"tokenizer_config.json has a broken added token {key!r}"[:200])
            self.added[int(key)] = (text, bool(token.get("special")) if isinstance(token, Mapping) else True)
        self.roles = {role: text for role in ROLES if (text := self.token(role)) is not None}
        ends = _mapping(files, "generation_config.json").get("eos_token_id")
        self.ends = tuple(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i >= 0)
        self._templates = _templates(files, self._config)

    def describe(self, tokenizer: Tokenizer) -> None:
        """Gives a tokenizer what is known of its conversations."""
        tokenizer.roles = self.roles
        tokenizer.chat_template, tokenizer.tool_template = map(self._templates.get, ("default", "tool_use"))
        last = tokenizer.token_id(self.roles["eos_token"]) if "eos_token" in self.roles else None
        tokenizer.ends = self.ends or (() if last is None else (last,))

    def flag(self, name: str) -> bool | None:
        """A yes or no of tokenizer_config.json; None where it does not say."""
        value = self._config.get(name)
        return value if isinstance(value, bool) else None

    def token(self, name: str) -> str | None:
        """The text of a token by its role, such as "bos_token"."""
        return _text(self._config.get(name)) or _text(self._special.get(name))

    def check_added(self, size: int) -> None:
        """Raises TokenizerError for an added token far beyond the vocabulary: a list up to there would be empty."""
        if max(self.added, default=0) > size + (1 << 16):
            raise TokenizerError(f"tokenizer_config.json adds the token {max(self.added):,} to {size:,}")

    def affixes(
        self,
        token_id: Callable[[str], int | None],
        prefix: tuple[int, ...] | None,
        suffix: tuple[int, ...] | None,
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Prefix and suffix, with BOS and EOS where add_bos_token and add_eos_token ask for them and they miss."""
        for role in ("bos", "eos"):
            wanted, text = self.flag(f"add_{role}_token"), self.token(f"{role}_token")
            token = None if text is None else token_id(text)
            given = prefix if role == "bos" else suffix
            if wanted is False and given is None:
                given = ()
            elif wanted and token is not None and token not in (given or ()):
                given = (token, *(given or ())) if role == "bos" else (*(given or ()), token)
            if role == "bos":
                prefix = given
            else:
                suffix = given
        return prefix, suffix


def _mapping(files: Files, name: str) -> Mapping[str, Any]:
    value = load_json(files[name], name) if name in files else {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} is no JSON object")
    return value


def _text(token: Any) -> str | None:
    """A token is its text, or an object with its text as "content"."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _templates(files: Files, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: "default", and maybe "tool_use", for conversations with tools."""
    if "chat_template.jinja" in files:
        more = "additional_chat_templates/tool_use.jinja"
        names = {"default": "chat_template.jinja", "tool_use": more}
        return {name: files[file].decode("utf-8", "replace") for name, file in names.items() if file in files}
    if "chat_template.json" in files:
        config = _mapping(files, "chat_template.json")
    given = config.get("chat_template")
    if isinstance(given, list):  # several by name
        given = {str(each.get("name")): each.get("template") for each in given if isinstance(each, dict)}
    named = given if isinstance(given, dict) else {"default": given}
    return {name: template for name, template in named.items() if isinstance(template, str)}
