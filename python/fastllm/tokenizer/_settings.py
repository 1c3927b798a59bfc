"""What Hugging Face keeps beside a vocabulary: added and special tokens, BOS and EOS policy, the chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer.base import CLASS_FILE, Files, Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# transformers' classes that override a vocabulary's own rules, see Settings.
BERT, LLAMA, CODE_LLAMA = "BertTokenizer", "LlamaTokenizer", "CodeLlamaTokenizer"
# Classes whose models have no token types, though the post-processor in a tokenizer.json may number those of a pair.
_UNTYPED = {f"{name}Tokenizer" for name in ("Albert", "DistilBert", "Herbert", "MPNet", "RemBert")}


class Settings:
    """What tokenizer_config.json and the other files beside a vocabulary say, as far as they are there.

    Where several of them say the same thing, the precedence is transformers' (5.x, _from_pretrained of
    PreTrainedTokenizerBase).

    added: the added tokens that the files give with their ids. special: the special tokens that they give without ids,
    by role or in a list. roles: the texts of "bos_token" and so on, and of a model's own roles, such as "image_token".
    ends: the ids that end a text, from generation_config.json.
    llama: whether the rules for spaces are those of transformers' LlamaTokenizer. legacy: whether these put a space
    after each special token too; None where the files do not say. bert: whether its BertTokenizer decides about case
    and accents. token_types: whether the second of two texts may have a token type of its own.

    Raises TokenizerError for broken files.
    """

    added: dict[int, AddedToken]
    special: list[AddedToken]
    roles: dict[str, str]

    def __init__(self, files: Files) -> None:
        self._config = dict(json_object(files, "tokenizer_config.json"))
        self._read_tokens(files)
        class_name = files.get(CLASS_FILE, b"").decode("utf-8", "replace")
        self.llama = class_name in (LLAMA, CODE_LLAMA)
        self.legacy = self.flag("legacy") if class_name != CODE_LLAMA else False
        self.bert = class_name == BERT
        ends = json_object(files, "generation_config.json").get("eos_token_id")
        self.ends = tuple(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i >= 0)
        self._templates = _templates(files, self._config)
        inputs, named = self._config.get("model_input_names"), self._config.get("tokenizer_class")
        untyped = isinstance(named, str) and named.removesuffix("Fast") in _UNTYPED
        self.token_types = "token_type_ids" in inputs if isinstance(inputs, list) else not untyped

    def _read_tokens(self, files: Files) -> None:
        """Sets added, special and roles; fills _config from special_tokens_map.json where that counts."""
        config, beside = self._config, json_object(files, "special_tokens_map.json")
        listed = config.get("added_tokens_decoder")
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        oldest: Any = []
        if listed is None:  # older files, whose tokens are in special_tokens_map.json and added_tokens.json
            config.update((key, value) for key, value in beside.items() if not key.endswith("special_tokens"))
            more = beside.get("extra_special_tokens")
            extra = [*extra, *more] if isinstance(extra, list) and isinstance(more, list) else more or extra
            oldest = [] if extra else beside.get("additional_special_tokens") or []
        by_role = {key: value for key, value in config.items() if _is_role(key, value)}
        for tokens in (extra, config.get("model_specific_special_tokens")):
            if isinstance(tokens, Mapping):
                by_role.update(tokens)
        special = {role: _token(value, role, special=True) for role, value in by_role.items()}
        self.roles = {role: token.content for role, token in special.items()}
        extras = [] if isinstance(extra, Mapping) else _tokens(extra, "extra_special_tokens")
        others = _tokens(oldest, "additional_special_tokens")
        always = set(self.roles.values())  # special, whatever their own flag says
        if listed is not None:
            found = _by_id(listed)
        else:
            # These are searched for in the raw text, before it is normalized.
            raw = {self.roles[role] for role in ROLES if role in self.roles} | {token.content for token in extras}
            found = _older(json_object(files, "added_tokens.json"), raw)
            always |= {token.content for token in others}
        self.added = {i: t._replace(special=t.special or t.content in always) for i, t in found.items()}
        flags = {token.content: token for token in self.added.values()}
        both = {t.content: flags.get(t.content, t) for t in (*special.values(), *extras, *others)}
        self.special = list(both.values())

    def describe(self, tokenizer: Tokenizer) -> None:
        """Sets a tokenizer's roles, ends, chat templates and response template."""
        tokenizer.roles = self.roles
        tokenizer.response_template = self._config.get("response_template")
        tokenizer.chat_template, tokenizer.tool_template = map(self._templates.get, ("default", "tool_use"))
        last = tokenizer.token_id(self.roles["eos_token"]) if "eos_token" in self.roles else None
        tokenizer.ends = self.ends if last is None else (*self.ends, last)

    def flag(self, name: str) -> bool | None:
        """A boolean of tokenizer_config.json; None where it is missing or no boolean."""
        value = self._config.get(name)
        return value if isinstance(value, bool) else None

    def propose(self, role: str, text: str) -> None:
        """Sets the text of a role that no file names; null in a file means that there is none, and stays."""
        if role not in self._config:
            self.roles[role] = text

    def token(self, name: str) -> str | None:
        """The text of a token by its role, such as "bos_token"."""
        return self.roles.get(name)

    def check_added(self, size: int) -> None:
        """Raises TokenizerError for an added token whose id is far beyond the vocabulary's `size`: tables up to that id
        would be nearly empty, and huge."""
        if max(self.added, default=0) > size + (1 << 16):
            raise TokenizerError(f"it adds the token {max(self.added):,} to {size:,}")

    def affixes(
        self,
        token_id: Callable[[str], int | None],
        prefix: tuple[int, ...] | None,
        suffix: tuple[int, ...] | None,
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Prefix and suffix after add_bos_token and add_eos_token of tokenizer_config.json.

        prefix, suffix: what other files say, None where they say nothing. True adds BOS or EOS where it is missing;
        false makes None empty.
        """
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


def _is_role(key: str, value: Any) -> bool:
    """Whether an entry of tokenizer_config.json is a special token by its role: transformers takes any "..._token"."""
    if key in ROLES:
        return value is not None and value != ""
    content = value.get("content") if isinstance(value, Mapping) else value
    return key.endswith("_token") and isinstance(content, str) and content != ""


def _token(value: Any, what: str, *, special: bool | None = None) -> AddedToken:
    """A token of a file: its text, or an object with the text as "content".

    what: where it was found, for the error. special: overrides the object's own flag.
    """
    token = value if isinstance(value, Mapping) else {"content": value, "special": True}
    content = token.get("content")
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"its {what} has a broken token: {value!r}"[:200])
    special = token.get("special") is True if special is None else special
    lstrip, rstrip, single_word = (token.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
    normalized = token.get("normalized", not special) is True
    return AddedToken(content, special, lstrip, rstrip, single_word, normalized)


def _tokens(values: Any, what: str) -> list[AddedToken]:
    if not isinstance(values, list):
        raise TokenizerError(f"its {what} are no list of tokens")
    return [_token(value, what, special=True) for value in values]


def _by_id(tokens: Any) -> dict[int, AddedToken]:
    """The tokens by id in added_tokens_decoder, an object id -> token."""
    if not isinstance(tokens, Mapping):
        raise TokenizerError("its added_tokens_decoder is no JSON object")
    for key in tokens:
        if not key.isdecimal() or len(key) > 9:
            raise TokenizerError(f"its added_tokens_decoder has a broken id {key!r}"[:200])
    return {int(key): _token(token, "added_tokens_decoder") for key, token in tokens.items()}


def _older(tokens: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """The tokens by id in added_tokens.json, an object text -> id. special: the texts that other files call special."""
    for text, i in tokens.items():
        if not text or type(i) is not int or not 0 <= i < 10**9:
            raise TokenizerError(f"added_tokens.json has the token {text!r} with the id {i!r}"[:200])
    return {i: AddedToken(text, text in special, normalized=text not in special) for text, i in tokens.items()}


def _templates(files: Files, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: "default", and where there is one "tool_use", for conversations with tools."""
    if "chat_template.jinja" in files:
        more = "additional_chat_templates/tool_use.jinja"
        names = {"default": "chat_template.jinja", "tool_use": more}
        try:
            return {name: files[file].decode() for name, file in names.items() if file in files}
        except UnicodeDecodeError as error:
            raise TokenizerError(f"its chat template's file is no UTF-8 text: byte {error.start:,} is not") from None
    if "chat_template.json" in files:
        config = json_object(files, "chat_template.json")
    given = config.get("chat_template")
    if isinstance(given, list):  # several by name
        given = {str(each.get("name")): each.get("template") for each in given if isinstance(each, dict)}
    named = given if isinstance(given, dict) else {"default": given}
    return {name: template for name, template in named.items() if isinstance(template, str)}
