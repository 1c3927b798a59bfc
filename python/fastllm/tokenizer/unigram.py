"""SentencePiece models that transformers changes: XLM-R, CamemBERT, T5, ALBERT, DeBERTa-v2, XLNet, BigBird.

Each of these classes adds tokens before or after the file's pieces, which shifts the ids, normalizes a text in its own
way and puts tokens around it. The tokenizers library encodes, as it does for transformers, so that the ids are the
same. It uses a unigram language model, which finds the most probable split into pieces (Kudo, 2018,
https://arxiv.org/abs/1804.10959).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._classes import class_of
from fastllm.tokenizer._library import LibraryTokenizer, library, refusals
from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer._pieces import CONTROL, USER_DEFINED
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer._specials import Added, add_specials, by_role, special, template, texts_by_role
from fastllm.tokenizer.base import Files

Pieces = list[tuple[str, float]]  # (piece, score) in the order of the ids; scores are log probabilities
_MOST_EXTRA = 1 << 12  # T5's extra ids


class _Class(NamedTuple):
    """What a class of transformers makes of a SentencePiece model.

    specials: its special tokens by role. before, after: the roles that it puts around a text. vocabulary: makes the
    class's pieces from the file's pieces, the texts of the roles and tokenizer_config.json. unknown: the id of the
    unknown token among them, or its role; None: the file's own id. normalizers: makes the library's normalizers from
    the library, the file's precompiled_charsmap and tokenizer_config.json. whitespace_split: whether a text is split at
    all white space, which is then lost. no_prefix_space: the library's prepend_scheme where tokenizer_config.json has
    "add_prefix_space": false. split_by_punct: whether the class heeds that flag, which makes each punctuation mark a
    word. double_sep: whether two separators stand between two texts, as in RoBERTa.
    """

    specials: Mapping[str, Added]
    before: tuple[str, ...]
    after: tuple[str, ...]
    vocabulary: Callable[[Pieces, Mapping[str, str], Mapping[str, Any]], Pieces]
    unknown: int | str | None
    normalizers: Callable[[Any, bytes, Mapping[str, Any]], list[Any]]
    whitespace_split: bool = True
    no_prefix_space: str = "never"
    split_by_punct: bool = False
    double_sep: bool = False


_ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>"}
_BERT = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "cls": "[CLS]"}
_XLNET = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "<sep>", "pad": "<pad>", "cls": "<cls>"}
_BIG_BIRD = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "[SEP]", "pad": "<pad>", "cls": "[CLS]"}

# ---- vocabularies ----------------------------------------------------------------------------------------------------


def _unchanged(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    return pieces


def _xlm_roberta(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    """fairseq's first four tokens in place of the file's first three (<unk>, <s>, </s>), and <mask> at the end."""
    order = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    first = [(roles.get(f"{role}_token", text), 0.0) for role, text in order.items()]
    return [*first, *pieces[3:], (roles.get("mask_token", "<mask>"), 0.0)]


def _camembert(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    """fairseq's first four tokens, two under names that no text has, in place of the file's <unk>, and <mask> at the
    end."""
    pad, unknown = roles.get("pad_token", "<pad>"), roles.get("unk_token", "<unk>")
    first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unknown, 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *pieces[1:], (roles.get("mask_token", "<mask>"), 0.0)]


def _t5(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    """The sentinel tokens <extra_id_0>, <extra_id_1>, ... have the last ids, in reverse."""
    have = {piece for piece, _ in pieces}
    return [*pieces, *((token, 0.0) for token in reversed(_extra_ids(config)) if token not in have)]


def _extra_ids(config: Mapping[str, Any]) -> list[str]:
    count = config.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= _MOST_EXTRA:
        raise TokenizerError(f"tokenizer_config.json has extra_ids {count!r}"[:200])
    return [f"<extra_id_{i}>" for i in range(count)]


# ---- normalizers -----------------------------------------------------------------------------------------------------


def _charsmap(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    return [hf.normalizers.Precompiled(charsmap)] if charsmap else []


def _albert(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    plain = [] if config.get("keep_accents") else [hf.normalizers.NFKD(), hf.normalizers.StripAccents()]
    lower = [hf.normalizers.Lowercase()] if config.get("do_lower_case", True) else []
    return [*_quotes(hf), *plain, *lower, *_charsmap(hf, charsmap, config)]


def _xlnet(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    lower = [hf.normalizers.Lowercase()] if config.get("do_lower_case") else []
    plain = [hf.normalizers.NFKD(), hf.normalizers.StripAccents()]
    return [*_quotes(hf), *plain, *lower, *_charsmap(hf, charsmap, config)]


def _quotes(hf: Any) -> list[Any]:
    return [hf.normalizers.Replace(quotes, '"') for quotes in ("``", "''")]


def _deberta(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    lower = [hf.normalizers.Lowercase()] if config.get("do_lower_case") else []
    spaces = hf.normalizers.Replace(hf.Regex(r"\s{2,}|[\n\r\t]"), " ")
    return [*lower, spaces, hf.normalizers.NFC(), hf.normalizers.Strip(left=False, right=True)]


def _big_bird(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    return [hf.normalizers.Replace(hf.Regex(" {2,}"), "\u2581")]


# ---- classes ---------------------------------------------------------------------------------------------------------

_CLASSES = {
    "XLMRobertaTokenizer": _Class(
        by_role(mask="<mask>", **_ROBERTA),
        before=("bos_token",),
        after=("eos_token",),
        vocabulary=_xlm_roberta,
        unknown=3,
        normalizers=_charsmap,
        double_sep=True,
    ),
    "CamembertTokenizer": _Class(
        by_role(mask=special("<mask>", lstrip=True), **_ROBERTA),
        before=("bos_token",),
        after=("eos_token",),
        vocabulary=_camembert,
        unknown="unk_token",
        normalizers=_charsmap,
        double_sep=True,
    ),
    "T5Tokenizer": _Class(
        by_role(eos="</s>", unk="<unk>", pad="<pad>"),
        before=(),
        after=("eos_token",),
        vocabulary=_t5,
        unknown=2,
        normalizers=_charsmap,
        no_prefix_space="always",
    ),
    "AlbertTokenizer": _Class(
        by_role(mask="[MASK]", unk="<unk>", pad="<pad>", **_BERT),
        before=("cls_token",),
        after=("sep_token",),
        vocabulary=_unchanged,
        unknown=1,
        normalizers=_albert,
    ),
    "DebertaV2Tokenizer": _Class(
        by_role(mask="[MASK]", unk="[UNK]", pad="[PAD]", **_BERT),
        before=("cls_token",),
        after=("sep_token",),
        vocabulary=_unchanged,
        unknown="unk_token",
        normalizers=_deberta,
        whitespace_split=False,
        no_prefix_space="first",
        split_by_punct=True,
    ),
    "XLNetTokenizer": _Class(
        by_role(mask=special("<mask>", lstrip=True), **_XLNET),
        before=(),
        after=("sep_token", "cls_token"),
        vocabulary=_unchanged,
        unknown=None,
        normalizers=_xlnet,
        no_prefix_space="always",
    ),
    "BigBirdTokenizer": _Class(
        by_role(mask=special("[MASK]", lstrip=True), **_BIG_BIRD),
        before=("cls_token",),
        after=("sep_token",),
        vocabulary=_unchanged,
        unknown="unk_token",
        normalizers=_big_bird,
        whitespace_split=False,
    ),
}
# Classes with a SentencePiece model whose rules (other ids, language codes, replacements) are not built here.
_NOT_BUILT = {
    "BarthezTokenizer",
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "CpmTokenizer",
    "ErnieMTokenizer",
    "GPTSw3Tokenizer",
    "LayoutXLMTokenizer",
    "M2M100Tokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MarianTokenizer",
    "NllbTokenizer",
    "PLBartTokenizer",
    "PegasusTokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "SpeechT5Tokenizer",
    "UdopTokenizer",
    "XGLMTokenizer",
    "XLMProphetNetTokenizer",
}


def class_for(found: str, name: str, blob: bytes, vocab_size: int) -> str:
    """The class of this module that a SentencePiece model is for; empty where its ids are the file's own.

    found: the class or model type that the files beside it name. name, blob: the model's file. vocab_size: the model's.
    Raises TokenizerError for a class that is not built, and for a file whose name belongs to such classes where nothing
    says to which.
    """
    if found in _CLASSES:
        return found
    if found in _NOT_BUILT:
        raise TokenizerError(f"tokenizers of the class {found!r} are not known here without a tokenizer.json")
    plain = found == "LlamaTokenizer" or (found and not found.endswith("Tokenizer"))
    if plain or name not in ("sentencepiece.bpe.model", "spiece.model", "spm.model"):
        return ""
    if found:
        raise TokenizerError(f"tokenizers of the class {found!r} are not known here without a tokenizer.json"[:200])
    words = _core.proto_pieces(blob)[0]
    if name == "sentencepiece.bpe.model" and words[:3] == [b"<unk>", b"<s>", b"</s>"] and len(words) + 2 == vocab_size:
        return "XLMRobertaTokenizer"  # the only one that has two tokens more than its file
    raise TokenizerError("no tokenizer_config.json or config.json beside it says what class of tokenizer it is for")


def read(files: Files) -> LibraryTokenizer:
    """The tokenizer of a tokenizer.model and its class. Raises TokenizerError where a file is broken."""
    hf, settings, config = library("its class"), Settings(files), json_object(files, "tokenizer_config.json")
    rules = _CLASSES.get(name := class_of(files))
    if rules is None:
        raise TokenizerError(f"the class {name!r} is not known for a SentencePiece model"[:200])
    roles = texts_by_role(files, rules.specials)
    pieces, unknown, extras, charsmap = _opened(files["tokenizer.model"])
    vocabulary = rules.vocabulary(pieces, roles, config)
    if isinstance(rules.unknown, str):
        text = roles.get(rules.unknown)
        unknown = next((i for i, (piece, _) in enumerate(vocabulary) if piece == text), unknown)
    elif rules.unknown is not None:
        unknown = rules.unknown
    if name == "T5Tokenizer":
        extras += [special(token) for token in _extra_ids(config)]
    # As in transformers, a list of special tokens replaces those that the model marks.
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(listed, list):
        extras = [special(token) for token in listed if isinstance(token, str)]
    with refusals("tokenizers"):
        tokenizer = hf.Tokenizer(hf.models.Unigram(vocabulary, unknown, byte_fallback=False))
        if steps := rules.normalizers(hf, charsmap, config):
            tokenizer.normalizer = hf.normalizers.Sequence(steps)
        scheme = "always" if config.get("add_prefix_space", True) else rules.no_prefix_space
        tokenizer.pre_tokenizer = _pre_tokenizer(hf, rules, config, scheme)
        tokenizer.decoder = hf.decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
        add_specials(tokenizer, files, settings, rules.specials, extras)
        before, after = ([roles.get(role, "") for role in part] for part in (rules.before, rules.after))
        tokenizer.post_processor = template(tokenizer, before, after, double_sep=rules.double_sep)
        return LibraryTokenizer(tokenizer, settings)


def _pre_tokenizer(hf: Any, rules: _Class, config: Mapping[str, Any], scheme: str) -> Any:
    pre = hf.pre_tokenizers
    steps = [pre.WhitespaceSplit()] if rules.whitespace_split else []
    if rules.split_by_punct and config.get("split_by_punct"):
        steps.append(pre.Punctuation(behavior="isolated"))
    return pre.Sequence([*steps, pre.Metaspace(replacement="\u2581", prepend_scheme=scheme)])


def _opened(blob: bytes) -> tuple[Pieces, int, list[Added], bytes]:
    """A model's pieces, the id of the unknown one, the pieces that are matched as a whole, and its precompiled_charsmap
    (normalization as a table, see https://github.com/google/sentencepiece/blob/master/doc/normalization.md)."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    with refusals("sentencepiece"):
        processor.LoadFromSerializedProto(blob)
        ids = list(range(processor.GetPieceSize()))
        pieces = list(zip(processor.IdToPiece(ids), processor.GetScore(ids), strict=True))
        unknown = processor.unk_id()
    _, types, others = _core.proto_pieces(blob)
    extras = [
        special(piece) | {"special": type_ == CONTROL}
        for (piece, _), type_ in zip(pieces, types, strict=True)
        if type_ in (CONTROL, USER_DEFINED) and piece
    ]
    charsmap = b""
    for number, value in others:
        if number == 3 and isinstance(value, bytes):
            charsmap = next((v for n, v in _core.proto_fields(value) if n == 2 and isinstance(v, bytes)), b"")
    return pieces, unknown, extras, charsmap
