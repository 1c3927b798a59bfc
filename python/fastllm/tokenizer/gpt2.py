"""A vocab.json and a merges.txt: byte-level BPE, after a split of the text that depends on the class of transformers.

BPE: Sennrich et al., 2016 (https://arxiv.org/abs/1508.07909). Over bytes, which are written as printable characters:
GPT-2, Radford et al., 2019 (https://github.com/openai/gpt-2, src/encoder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastllm.errors import TokenizerError
from fastllm.tokenizer._classes import class_of
from fastllm.tokenizer._library import LibraryTokenizer, library, refusals
from fastllm.tokenizer._parsing import load_json
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer._specials import Added, add_specials, by_role, special, template, texts_by_role
from fastllm.tokenizer.base import Files

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENDINGS, _SPACES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_PATTERN = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN3_5_PATTERN = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES


class _Class(NamedTuple):
    """What a class of transformers does with a text.

    specials: its special tokens by role. before, after: the roles, or tokens, that it puts around a text. pattern: the
    regular expression of its words; None: GPT-2's. nfc: whether characters are composed first (Unicode's NFC). digits:
    whether each digit is a word of its own. add_prefix_space: whether a space is put before a text where
    tokenizer_config.json does not say. clip: whether it is CLIP's: case and runs of spaces are lost, and "</w>" marks
    the end of a word. double_sep: whether two separators stand between two texts, as in RoBERTa.
    """

    specials: Mapping[str, Added]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    pattern: str | None = None
    nfc: bool = False
    digits: bool = False
    add_prefix_space: bool = False
    clip: bool = False
    double_sep: bool = False


_GPT2 = by_role(bos=_END, eos=_END, unk=_END)
_QWEN2 = by_role(eos=_END, unk=_END, pad=_END)
_BART = by_role(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_DEBERTA = by_role(bos="[CLS]", eos="[SEP]", sep="[SEP]", cls="[CLS]", unk="[UNK]", pad="[PAD]", mask="[MASK]")
_COHERE = by_role(
    bos="<BOS_TOKEN>",
    eos="<|END_OF_TURN_TOKEN|>",
    sep="<SEP>",
    cls="<CLS>",
    unk="<UNK>",
    pad="<PAD>",
    mask="<MASK_TOKEN>",
)
_CLIP = by_role(bos=_START, eos=_END, unk=_END, pad=_END)

_CLASSES = {
    "GPT2Tokenizer": _Class(_GPT2),
    "GPTNeoXTokenizer": _Class(_GPT2 | by_role(pad="<|padding|>"), nfc=True),
    "Qwen2Tokenizer": _Class(_QWEN2, pattern=_QWEN2_PATTERN, nfc=True),
    "Qwen3_5Tokenizer": _Class(_QWEN2, pattern=_QWEN3_5_PATTERN, nfc=True),
    "CohereTokenizer": _Class(_COHERE, nfc=True, digits=True),
    "RobertaTokenizer": _Class(_BART, ("cls_token",), ("sep_token",), double_sep=True),
    "BlenderbotTokenizer": _Class(_BART | {"mask_token": special("<mask>", lstrip=True)}, add_prefix_space=True),
    "DebertaTokenizer": _Class(_DEBERTA, ("cls_token",), ("sep_token",)),
    "WhisperTokenizer": _Class(_GPT2, ("<|startoftranscript|>", "<|notimestamps|>"), ("eos_token",)),
    "CLIPTokenizer": _Class(_CLIP, ("bos_token",), ("eos_token",), pattern=_CLIP_PATTERN, nfc=True, clip=True),
}


def read(files: Files) -> LibraryTokenizer:
    """The tokenizer of a vocab.json and merges.txt. Raises TokenizerError where they, or files beside them, are
    broken."""
    vocabulary = _vocabulary(load_json(files["vocab.json"], "vocab.json"))
    if "merges.txt" not in files:
        raise TokenizerError("it has no merges.txt")
    try:
        lines = files["merges.txt"].decode().split("\n")
    except UnicodeDecodeError:
        raise TokenizerError("merges.txt is no UTF-8") from None
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    name = class_of(files) or _by_content(vocabulary, merges)
    if name not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise TokenizerError(
            f"how {name[:100]!r} splits a text is not known here without a tokenizer.json; known are {known}"
        )
    with refusals("tokenizers"):
        return _build(vocabulary, merges, files, _CLASSES[name])


def _by_content(vocabulary: Mapping[str, int], merges: list[tuple[str, ...]]) -> str:
    """The class where the files do not say it: in CLIP's merges the end of a word is marked, in GPT-2's it is not."""
    if not any(merge[-1].endswith(_WORD_END) for merge in merges[:1000]):
        return "GPT2Tokenizer"
    for token in (_START, _END):
        if token not in vocabulary:
            raise TokenizerError(f"its merges end words as CLIP's do, but it has no token {token}")
    return "CLIPTokenizer"


def _build(vocabulary: dict[str, int], merges: list[tuple[str, ...]], files: Files, rules: _Class) -> LibraryTokenizer:
    hf, settings = library("vocab.json"), Settings(files)
    roles = texts_by_role(files, rules.specials)
    ends = {"end_of_word_suffix": _WORD_END, "unk_token": roles.get("unk_token", _END)} if rules.clip else {}
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, merges, **ends))
    if rules.nfc:
        steps = [hf.normalizers.NFC()]
        if rules.clip:
            steps += [hf.normalizers.Replace(hf.Regex(r"\s+"), " "), hf.normalizers.Lowercase()]
        tokenizer.normalizer = hf.normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = _pre_tokenizer(hf, rules, settings.flag("add_prefix_space"))
    tokenizer.decoder = hf.decoders.ByteLevel()
    add_specials(tokenizer, files, settings, rules.specials)
    before, after = ([roles.get(token, token) for token in tokens] for tokens in (rules.before, rules.after))
    if before or after:
        tokenizer.post_processor = template(tokenizer, before, after, double_sep=rules.double_sep)
    return LibraryTokenizer(tokenizer, settings)


def _pre_tokenizer(hf: Any, rules: _Class, add_prefix_space: bool | None) -> Any:
    """What cuts a text into words, whose bytes are then merged. add_prefix_space: as tokenizer_config.json says, None
    where it does not."""
    pre = hf.pre_tokenizers
    steps = [pre.Digits(individual_digits=True)] if rules.digits else []
    if rules.pattern is not None:
        # CLIP drops what lies between the matches.
        behavior = "removed" if rules.clip else "isolated"
        steps.append(pre.Split(hf.Regex(rules.pattern), behavior=behavior, invert=rules.clip))
    gpt2_pattern = rules.pattern is None or rules.clip
    space = (rules.add_prefix_space if add_prefix_space is None else add_prefix_space) and not rules.clip
    return pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=space, use_regex=gpt2_pattern)])


def _vocabulary(value: Any) -> dict[str, int]:
    """token -> id, checked. Raises TokenizerError for anything else."""
    if not isinstance(value, Mapping) or not all(type(i) is int and 0 <= i < 1 << 31 for i in value.values()):
        raise TokenizerError("its vocabulary is no JSON object of ids")
    return dict(value)
