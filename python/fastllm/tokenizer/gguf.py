"""The vocabulary inside a GGUF file: the metadata under "tokenizer.", which formats gives as JSON.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. "tokenizer.ggml.model" is "llama" for SentencePiece
with scores, "gpt2" for byte-level BPE, "bert" for WordPiece. "tokenizer.ggml.pre" names the patterns that split a text
before BPE; which they are is in llama.cpp only (src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._ends import END_TOKENS
from fastllm.tokenizer._pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    PieceTokenizer,
    piece_model,
    shown,
    user_defined,
)
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Files, Tokenizer

# ---- splits of a text into words -------------------------------------------------------------------------------------

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_DIGITS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _AFTER_DIGITS
_QWEN2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _AFTER_DIGITS
# Words by their case, as of GPT-4o; {0} is what may follow a word.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + r"+{0}|[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + r"*{0}"
_AFTER_CASED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_DEEPSEEK3 = _SIGNS + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Name -> the patterns. Each in turn splits the parts that the one before has left.
_SPLITS: dict[str, list[str]] = {
    "gpt-2": [_GPT2],
    "llama-bpe": [_LLAMA3],
    "qwen2": [_QWEN2],
    "smollm": [r"\p{N}", _GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", _DEEPSEEK3],
    "tekken": [_CASED.replace("{0}", "") + r"|\p{N}" + _AFTER_CASED],
    "gpt-4o": [_CASED.replace("{0}", _ENDINGS + "?") + r"|\p{N}{1,3}" + _AFTER_CASED],
}
# Name -> other names of the same patterns.
_SAME: dict[str, tuple[str, ...]] = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "exaone4", "mellum", "modern-bert", "trillion", "granite-docling"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "gpt-4o": ("llama4", "kanana2"),
    "deepseek-v3": ("hunyuan-dense",),
}
_NAMED = {name: splits for first, splits in _SPLITS.items() for name in (first, *_SAME.get(first, ()))}
# Names with which a word that is a token becomes this token, whatever the merges make of it (the library's
# ignore_merges), and a text begins with BOS.
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken"}
# Models whose own tokenizers compose characters first (Unicode's NFC). llama.cpp does not.
_COMPOSED = {"qwen2", "olmo"}


# ---- the metadata ----------------------------------------------------------------------------------------------------

_CONTROLS = ("bos", "eos", "eot", "eom")  # roles of tokens that begin or end a text
_MARKED = re.compile(r"[\u2581_]?(<.+>|\[.+\])")


class _Metadata:
    """The values under "tokenizer.ggml.", checked.

    tokens, scores, types: of each id; scores is None where the file has none. Raises TokenizerError for values of a
    wrong type or number.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.tokens: list[str] = self.list("tokens", str) or []
        count = len(self.tokens)
        self.scores: list[float] | None = self.list("scores", float, count)
        self.types: list[int] = self.list("token_type", int, count) or [NORMAL] * count
        if not self.tokens:
            raise TokenizerError("its metadata has no tokens")
        if min(self.types) < 0 or max(self.types) > BYTE:
            raise TokenizerError("its metadata has a token_type that is not known")
        # Files give the tokens that begin or end a text any type. Those that look like <s> or [SEP], not like ordinary
        # text, are made special.
        named = [i for role in _CONTROLS if (i := self.token(role)) is not None]
        ends = set(END_TOKENS) - {"</s>"}
        ends_by_type = [i for i, type_ in enumerate(self.types) if type_ == USER_DEFINED and self.tokens[i] in ends]
        for i in (*named, *ends_by_type):
            if self.types[i] in (NORMAL, USER_DEFINED) and _MARKED.fullmatch(self.tokens[i]):
                self.types[i] = CONTROL

    def get(self, key: str) -> Any:
        return self._values.get(f"tokenizer.ggml.{key}")

    def list(self, key: str, of: type, count: int | None = None) -> Any:
        """A list of values of one type, None where the key is missing. count: how many there must be."""
        values = self.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or (count is not None and len(values) != count):
            length = f"{len(values):,}" if isinstance(values, list) else "no"
            raise TokenizerError(f"its metadata has {length} {key} for {count or 0:,} tokens")
        kinds = set(map(type, values))
        if not kinds <= ({int, float} if of is float else {of}):
            raise TokenizerError(f"its metadata's {key} are not all of one type")
        return values

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return value if isinstance(value, bool) else default

    def token(self, role: str, default: int | None = None) -> int | None:
        """The id that the key <role>_token_id gives, else the default; None where it is outside the vocabulary."""
        value = self.get(f"{role}_token_id")
        value = value if type(value) is int else default
        return value if value is not None and 0 <= value < len(self.tokens) else None

    def affixes(self, *, bos: bool, bos_id: int | None, eos_id: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before and after a text.

        bos: whether BOS is put there where the metadata has no add_bos_token. bos_id, eos_id: the ids where it has
        none.
        """
        first, last = self.token("bos", bos_id), self.token("eos", eos_id)
        prefix = () if first is None or not self.flag("add_bos_token", bos) else (first,)
        return prefix, () if last is None or not self.flag("add_eos_token", False) else (last,)


def read(files: Files) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata. Raises TokenizerError where that is broken."""
    try:
        values = json.loads(files["metadata"].decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"its metadata is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise TokenizerError("its metadata is no JSON object")
    metadata = _Metadata(values)
    model = metadata.get("model")
    readers = {"llama": _sentencepiece, "gpt2": _bpe, "bert": _word_pieces}
    if not isinstance(model, str) or model not in readers:
        raise TokenizerError(f"its tokenizer model {model!r} is not known; known are {', '.join(readers)}"[:300])
    tokenizer = readers[model](metadata)
    templates = [values.get(f"tokenizer.chat_template{name}") for name in ("", ".tool_use")]
    tokenizer.chat_template, tokenizer.tool_template = (t if isinstance(t, str) else None for t in templates)
    ids = {role: metadata.token(role) for role in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    names = {"unknown": "unk", "padding": "pad"}
    tokenizer.roles = {f"{names.get(role, role)}_token": metadata.tokens[i] for role, i in ids.items() if i is not None}
    ends = [ids["eos"], ids["eot"], ids["eom"]]
    tokenizer.ends = tuple(dict.fromkeys(i for i in ends if i is not None))
    return tokenizer


def _sentencepiece(metadata: _Metadata) -> Tokenizer:
    """The model "llama"."""
    scores, types = metadata.scores, list(metadata.types)
    if scores is None:
        raise TokenizerError("its metadata has no scores")
    if not all(map(math.isfinite, scores)) or max(map(abs, scores)) > 3e38:
        raise TokenizerError("its metadata has scores that are no numbers of 32 bits")
    unknown = metadata.token("unknown", 0) or 0
    types = [NORMAL if type_ in (0, UNKNOWN) else type_ for type_ in types]
    named = enumerate(zip(metadata.tokens, types, strict=True))
    added = {i: AddedToken(token, special=True) for i, (token, type_) in named if type_ == CONTROL}
    types[unknown] = UNKNOWN
    # GGUF writes user-defined pieces with plain spaces. Bytes that are not UTF-8 came here as lone surrogates.
    words = [token.replace(" ", "\u2581").encode("utf-8", "surrogateescape") for token in metadata.tokens]
    space = metadata.flag("add_space_prefix", True)

    def model() -> bytes:
        return piece_model(words, scores, types, add_dummy_prefix=space)

    tokenizer = PieceTokenizer(words, shown(words, types), model, added, strips_space=space)
    tokenizer.added = [*tokenizer.added, *user_defined(words, types, added)]
    tokenizer.prefix, tokenizer.suffix = metadata.affixes(bos=True, bos_id=1, eos_id=2)
    return tokenizer


def _bpe(metadata: _Metadata) -> Tokenizer:
    """The model "gpt2"."""
    from fastllm.tokenizer._library import LibraryTokenizer, library, refusals

    hf = library("its vocabulary")
    pre = metadata.get("pre")
    pre = "default" if pre is None else pre
    if not isinstance(pre, str) or pre not in _NAMED:
        raise TokenizerError(f"its pre-tokenizer {pre!r} is not known; known are {', '.join(sorted(_NAMED))}")
    merges = _core.merge_halves(metadata.list("merges", str) or [])
    vocabulary = {token: i for i, token in enumerate(metadata.tokens)}
    if len(vocabulary) < len(metadata.tokens):
        raise TokenizerError("its metadata has a token twice")
    with refusals("tokenizers"):
        model = hf.models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS)
        result = LibraryTokenizer(_byte_level(hf, model, pre, metadata), Settings({}))
    result.prefix, result.suffix = metadata.affixes(bos=pre in _WHOLE_WORDS, bos_id=None, eos_id=None)
    return result


def _byte_level(hf: Any, model: Any, pre: str, metadata: _Metadata) -> Any:
    """The library's tokenizer for a BPE `model` whose words are split by the patterns of `pre`."""
    tokenizer = hf.Tokenizer(model)
    if pre in _COMPOSED:
        tokenizer.normalizer = hf.normalizers.NFC()
    splits = [hf.pre_tokenizers.Split(hf.Regex(split), behavior="isolated") for split in _NAMED[pre]]
    to_bytes = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = hf.decoders.ByteLevel()
    named = list(zip(metadata.tokens, metadata.types, strict=True))
    added = [hf.AddedToken(text, special=False, normalized=False) for text, type_ in named if type_ == USER_DEFINED]
    tokenizer.add_tokens([token for token in added if token.content])
    special = [hf.AddedToken(text, special=True, normalized=False) for text, type_ in named if type_ == CONTROL]
    tokenizer.add_special_tokens([token for token in special if token.content])
    return tokenizer


def _word_pieces(metadata: _Metadata) -> Tokenizer:
    """The model "bert". Ids that the metadata does not give are those of BERT's own vocabulary."""
    from fastllm.tokenizer.wordpiece import build

    tokens = [_as_bert(token, type_) for token, type_ in zip(metadata.tokens, metadata.types, strict=True)]
    names = {"cls": metadata.token("bos", 101), "sep": metadata.token("seperator", metadata.token("eos", 102))}
    names |= {
        "unk": metadata.token("unknown", 100),
        "pad": metadata.token("padding", 0),
        "mask": metadata.token("mask", 103),
    }
    roles = {f"{role}_token": tokens[i] for role, i in names.items() if i is not None}
    files = {"tokenizer_config.json": json.dumps(roles).encode()}
    return build({token: i for i, token in enumerate(tokens)}, files)


def _as_bert(token: str, type_: int) -> str:
    """A token as BERT's vocab.txt has it, where all but the first token of a word begin with "##".

    GGUF marks the first one instead, with U+2581.
    """
    if token.startswith("\u2581"):
        return token[1:]
    bracketed = token.startswith("[") and token.endswith("]") and len(token) > 2
    return token if type_ in (CONTROL, UNKNOWN) or bracketed else f"##{token}"
