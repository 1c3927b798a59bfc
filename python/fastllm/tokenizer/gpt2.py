"""A vocab.json and merges.txt: BPE over bytes, after a split of the text that depends on the class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastllm.errors import TokenizerError
from fastllm.tokenizer._classes import class_of
from fastllm.tokenizer._library import LibraryTokenizer, library, refusals
from fastllm.tokenizer._parsing import load_json
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer._specials import Added, add_specials, around, by_role, roles_of, special
from fastllm.tokenizer.base import Files

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENDINGS, _SPACES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN3_5_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES


class _Class(NamedTuple):
    """How a class of transformers splits a text.

    specials: its own special tokens by role. before, after: the roles, or tokens, that it puts around a text. words:
    its own split, instead of GPT-2's. composed: whether characters are composed first (NFC). digits: whether each digit
    is a word. spaced: whether a space is put before a text by default. clip: whether case and spaces are lost, and
    merges know where a word ends. doubled: whether the first of two texts ends twice.
    """

    specials: Mapping[str, Added]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    words: str | None = None
    composed: bool = False
    digits: bool = False
    spaced: bool = False
    clip: bool = False
    doubled: bool = False


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
    "GPTNeoXTokenizer": _Class(_GPT2 | by_role(pad="<|padding|>"), composed=True),
    "Qwen2Tokenizer": _Class(_QWEN2, words=_QWEN2_WORDS, composed=True),
    "Qwen3_5Tokenizer": _Class(_QWEN2, words=_QWEN3_5_WORDS, composed=True),
    "CohereTokenizer": _Class(_COHERE, composed=True, digits=True),
    "RobertaTokenizer": _Class(_BART, ("cls_token",), ("sep_token",), doubled=True),
    "BlenderbotTokenizer": _Class(_BART | {"mask_token": special("<mask>", lstrip=True)}, spaced=True),
    "DebertaTokenizer": _Class(_DEBERTA, ("cls_token",), ("sep_token",)),
    "WhisperTokenizer": _Class(_GPT2, ("<|startoftranscript|>", "<|notimestamps|>"), ("eos_token",)),
    "CLIPTokenizer": _Class(_CLIP, ("bos_token",), ("eos_token",), words=_CLIP_WORDS, composed=True, clip=True),
}


def read(files: Files) -> LibraryTokenizer:
    vocabulary = vocabulary_of(load_json(files["vocab.json"], "vocab.json"))
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
    """Of a vocabulary without a word about its class: CLIP's merges end words, GPT-2's do not."""
    if not any(merge[-1].endswith(_WORD_END) for merge in merges[:1000]):
        return "GPT2Tokenizer"
    for token in (_START, _END):
        if token not in vocabulary:
            raise TokenizerError(f"its merges end words as CLIP's do, but it has no token {token}")
    return "CLIPTokenizer"


def _build(vocabulary: dict[str, int], merges: list[tuple[str, ...]], files: Files, kind: _Class) -> LibraryTokenizer:
    hf, settings = library("vocab.json"), Settings(files)
    roles = {role: token["content"] for role, token in roles_of(files, kind.specials).items()}
    ends = {"end_of_word_suffix": _WORD_END, "unk_token": roles.get("unk_token", _END)} if kind.clip else {}
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, merges, **ends))
    if kind.composed:
        steps = [hf.normalizers.NFC()]
        if kind.clip:
            steps += [hf.normalizers.Replace(hf.Regex(r"\s+"), " "), hf.normalizers.Lowercase()]
        tokenizer.normalizer = hf.normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = _splits(hf, kind, settings.flag("add_prefix_space"))
    tokenizer.decoder = hf.decoders.ByteLevel()
    add_specials(tokenizer, files, settings, kind.specials)
    before, after = ([roles.get(token, token) for token in tokens] for tokens in (kind.before, kind.after))
    if before or after:
        tokenizer.post_processor = around(tokenizer, before, after, doubled=kind.doubled)
    return LibraryTokenizer(tokenizer, settings)


def _splits(hf: Any, kind: _Class, spaced: bool | None) -> Any:
    """What cuts a text into the words whose bytes are merged. spaced: whether a space is put before it; None: as the
    class has it."""
    pre = hf.pre_tokenizers
    steps = [pre.Digits(individual_digits=True)] if kind.digits else []
    if kind.words is not None:
        steps.append(pre.Split(hf.Regex(kind.words), behavior="removed" if kind.clip else "isolated", invert=kind.clip))
    own = kind.words is None or kind.clip
    spaced = (kind.spaced if spaced is None else spaced) and not kind.clip
    return pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=spaced, use_regex=own)])


def vocabulary_of(value: Any) -> dict[str, int]:
    """token -> id. Raises TokenizerError unless it is that."""
    if not isinstance(value, Mapping) or not all(type(i) is int and 0 <= i < 1 << 31 for i in value.values()):
        raise TokenizerError("its vocabulary is no JSON object of ids")
    return dict(value)
