"""What Hugging Face keeps beside a vocabulary: added and special tokens, BOS and EOS policy, the chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._classes import BERT, CODE_LLAMA, LLAMA
from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer.base import CLASS_FILE, Files, Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Classes whose texts have no token types, though a vocabulary's file may number those of a pair.
_UNTYPED = {f"{name}Tokenizer" for name in ("Albert", "DistilBert", "Herbert", "MPNet", "RemBert")}


class Settings:
    """tokenizer_config.json, special_tokens_map.json, added_tokens.json and the chat template's files, as far as they
    are there, with transformers' precedence (5.x, PreTrainedTokenizerBase._from_pretrained).

    added: the added tokens whose ids the files say. special: special tokens that are named without their ids, by role
    or in a list. roles: the text of "bos_token" and so on, and of roles of the model's own, such as "image_token".
    ends: ids that end a text, from generation_config.json. llama: whether transformers' LlamaTokenizer decides where
    spaces are put; legacy: whether that puts one after each special token too, None where the files do not say. bert:
    whether its BertTokenizer decides what becomes of case and accents. token_types: whether the second of two texts has
    a token type of its own, where the vocabulary's file says so.
    """

    def __init__(self, files: Files) -> None:
        config = self._config = dict(json_object(files, "tokenizer_config.json"))
        beside = json_object(files, "special_tokens_map.json")
        listed = config.get("added_tokens_decoder")
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        oldest: Any = []
        if listed is None:  # then the files are of the time when others said this
            config.update((key, value) for key, value in beside.items() if not key.endswith("special_tokens"))
            more = beside.get("extra_special_tokens")
            extra = [*extra, *more] if isinstance(extra, list) and isinstance(more, list) else more or extra
            oldest = [] if extra else beside.get("additional_special_tokens") or []
        named = {key: value for key, value in config.items() if _is_role(key, value)}
        for tokens in (extra, config.get("model_specific_special_tokens")):
            if isinstance(tokens, Mapping):
                named.update(tokens)
        special = {name: _token(value, name, special=True) for name, value in named.items()}
        self.roles = {name: token.content for name, token in special.items()}
        extras = [] if isinstance(extra, Mapping) else _tokens(extra, "extra_special_tokens")
        others = _tokens(oldest, "additional_special_tokens")
        always = set(self.roles.values())
        if listed is not None:
            found = _by_id(listed)
        else:
            # These are looked for in the raw text.
            early = {self.roles[role] for role in ROLES if role in self.roles} | {token.content for token in extras}
            found = _older(json_object(files, "added_tokens.json"), early)
            always |= {token.content for token in others}
        self.added = {i: t._replace(special=t.special or t.content in always) for i, t in found.items()}
        flags = {token.content: token for token in self.added.values()}
        both = {t.content: flags.get(t.content, t) for t in (*special.values(), *extras, *others)}
        self.special = list(both.values())
        named_class = files.get(CLASS_FILE, b"").decode("utf-8", "replace")
        self.llama = named_class in (LLAMA, CODE_LLAMA)
        self.legacy = self.flag("legacy") if named_class != CODE_LLAMA else False
        self.bert = named_class == BERT
        ends = json_object(files, "generation_config.json").get("eos_token_id")
        self.ends = tuple(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i >= 0)
        self._templates = _templates(files, config)
        inputs, name = config.get("model_input_names"), config.get("tokenizer_class")
        untyped = isinstance(name, str) and name.removesuffix("Fast") in _UNTYPED
        self.token_types = "token_type_ids" in inputs if isinstance(inputs, list) else not untyped

    def describe(self, tokenizer: Tokenizer) -> None:
        """Gives a tokenizer what is known of its conversations."""
        tokenizer.roles = self.roles
        tokenizer.chat_template, tokenizer.tool_template = map(self._templates.get, ("default", "tool_use"))
        last = tokenizer.token_id(self.roles["eos_token"]) if "eos_token" in self.roles else None
        tokenizer.ends = self.ends if last is None else (*self.ends, last)

    def flag(self, name: str) -> bool | None:
        """A yes or no of tokenizer_config.json; None where it does not say."""
        value = self._config.get(name)
        return value if isinstance(value, bool) else None

    def propose(self, role: str, text: str) -> None:
        """Says the text of a role where no file says one, or that there is none."""
        if role not in self._config:
            self.roles[role] = text

    def token(self, name: str) -> str | None:
        """The text of a token by its role, such as "bos_token"."""
        return self.roles.get(name)

    def check_added(self, size: int) -> None:
        """Raises TokenizerError for an added token far beyond the vocabulary: a list up to there would be empty."""
        if max(self.added, default=0) > size + (1 << 16):
            raise TokenizerError(f"it adds the token {max(self.added):,} to {size:,}")

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


def _is_role(key: str, value: Any) -> bool:
    """Whether a value of tokenizer_config.json names a special token by its role; transformers takes any such."""
    if key in ROLES:
        return value is not None and value != ""
    content = value.get("content") if isinstance(value, Mapping) else value
    return key.endswith("_token") and isinstance(content, str) and content != ""


def _token(value: Any, what: str, *, special: bool | None = None) -> AddedToken:
    """A token is its text, or an object with its text as "content". special: whether it is, where that is settled."""
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
    """added_tokens_decoder: an object of tokens by their ids."""
    if not isinstance(tokens, Mapping):
        raise TokenizerError("its added_tokens_decoder is no JSON object")
    for key in tokens:
        if not key.isdecimal() or len(key) > 9:
            raise TokenizerError(f"its added_tokens_decoder has a broken id {key!r}"[:200])
    return {int(key): _token(token, "added_tokens_decoder") for key, token in tokens.items()}


def _older(tokens: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: an object of ids by the tokens' texts. special: those that other files call so."""
    for text, i in tokens.items():
        if not text or type(i) is not int or not 0 <= i < 10**9:
            raise TokenizerError(f"added_tokens.json has the token {text!r} with the id {i!r}"[:200])
    return {i: AddedToken(text, text in special, normalized=text not in special) for text, i in tokens.items()}


def _templates(files: Files, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: "default", and maybe "tool_use", for conversations with tools."""
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
