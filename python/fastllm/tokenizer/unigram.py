"""SentencePiece models whose ids are not the file's own: XLM-R, CamemBERT, T5, ALBERT, DeBERTa-v2, XLNet, BigBird.

Each class of transformers puts tokens before or after the pieces, normalizes a text its own way and puts tokens around
it. The library tokenizers encodes, as it does for transformers: ids are the same for every text.
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
from fastllm.tokenizer._specials import Added, add_specials, around, by_role, roles_of, special
from fastllm.tokenizer.base import Files

Pieces = list[tuple[str, float]]
_MOST_EXTRA = 1 << 12  # T5's extra ids


class _Class(NamedTuple):
    """What a class of transformers makes of a SentencePiece model.

    specials: its own special tokens by role. before, after: the roles that it puts around a text. vocabulary: the
    pieces in the order of their ids, from the file's, the roles and tokenizer_config.json. unknown: the id of the
    unknown token in that vocabulary; None: the file's own. normalizers: the steps before a text is cut; they get the
    library, the file's own map of characters and tokenizer_config.json. words: whether all white space only separates.
    unspaced: which words get a space in front with "add_prefix_space": false, in the library's terms. punctuation:
    whether "split_by_punct" may make a word of each mark. doubled: whether the first of two texts ends twice.
    """

    specials: Mapping[str, Added]
    before: tuple[str, ...]
    after: tuple[str, ...]
    vocabulary: Callable[[Pieces, Mapping[str, str], Mapping[str, Any]], Pieces]
    unknown: int | str | None
    normalizers: Callable[[Any, bytes, Mapping[str, Any]], list[Any]]
    words: bool = True
    unspaced: str = "never"
    punctuation: bool = False
    doubled: bool = False


_ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>"}
_BERT = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "cls": "[CLS]"}

# ---- vocabularies ----------------------------------------------------------------------------------------------------


def _as_it_is(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    return pieces


def _xlm_roberta(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    """fairseq's order of the first four, one more than SentencePiece's three."""
    order = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    first = [(roles.get(f"{role}_token", text), 0.0) for role, text in order.items()]
    return [*first, *pieces[3:], (roles.get("mask_token", "<mask>"), 0.0)]


def _camembert(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    pad, unknown = roles.get("pad_token", "<pad>"), roles.get("unk_token", "<unk>")
    first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unknown, 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *pieces[1:], (roles.get("mask_token", "<mask>"), 0.0)]


def _t5(pieces: Pieces, roles: Mapping[str, str], config: Mapping[str, Any]) -> Pieces:
    have = {piece for piece, _ in pieces}
    return [*pieces, *((token, 0.0) for token in reversed(_extra_ids(config)) if token not in have)]


def _extra_ids(config: Mapping[str, Any]) -> list[str]:
    count = config.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= _MOST_EXTRA:
        raise TokenizerError(f"tokenizer_config.json has extra_ids {count!r}"[:200])
    return [f"<extra_id_{i}>" for i in range(count)]


# ---- normalizers -----------------------------------------------------------------------------------------------------


def _own_map(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    return [hf.normalizers.Precompiled(charsmap)] if charsmap else []


def _albert(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    plain = [] if config.get("keep_accents") else [hf.normalizers.NFKD(), hf.normalizers.StripAccents()]
    lower = [hf.normalizers.Lowercase()] if config.get("do_lower_case", True) else []
    return [*_quotes(hf), *plain, *lower, *_own_map(hf, charsmap, config)]


def _xlnet(hf: Any, charsmap: bytes, config: Mapping[str, Any]) -> list[Any]:
    lower = [hf.normalizers.Lowercase()] if config.get("do_lower_case") else []
    plain = [hf.normalizers.NFKD(), hf.normalizers.StripAccents()]
    return [*_quotes(hf), *plain, *lower, *_own_map(hf, charsmap, config)]


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
        ("bos_token",),
        ("eos_token",),
        _xlm_roberta,
        3,
        _own_map,
        doubled=True,
    ),
    "CamembertTokenizer": _Class(
        by_role(mask=special("<mask>", lstrip=True), **_ROBERTA),
        ("bos_token",),
        ("eos_token",),
        _camembert,
        "unk_token",
        _own_map,
        doubled=True,
    ),
    "T5Tokenizer": _Class(
        by_role(eos="</s>", unk="<unk>", pad="<pad>"),
        (),
        ("eos_token",),
        _t5,
        2,
        _own_map,
        unspaced="always",
    ),
    "AlbertTokenizer": _Class(
        by_role(mask="[MASK]", unk="<unk>", pad="<pad>", **_BERT),
        ("cls_token",),
        ("sep_token",),
        _as_it_is,
        1,
        _albert,
    ),
    "DebertaV2Tokenizer": _Class(
        by_role(mask="[MASK]", unk="[UNK]", pad="[PAD]", **_BERT),
        ("cls_token",),
        ("sep_token",),
        _as_it_is,
        "unk_token",
        _deberta,
        words=False,
        unspaced="first",
        punctuation=True,
    ),
    "XLNetTokenizer": _Class(
        by_role(
            mask=special("<mask>", lstrip=True),
            bos="<s>",
            eos="</s>",
            unk="<unk>",
            sep="<sep>",
            pad="<pad>",
            cls="<cls>",
        ),
        (),
        ("sep_token", "cls_token"),
        _as_it_is,
        None,
        _xlnet,
        unspaced="always",
    ),
    "BigBirdTokenizer": _Class(
        by_role(
            mask=special("[MASK]", lstrip=True),
            bos="<s>",
            eos="</s>",
            unk="<unk>",
            sep="[SEP]",
            pad="<pad>",
            cls="[CLS]",
        ),
        ("cls_token",),
        ("sep_token",),
        _as_it_is,
        "unk_token",
        _big_bird,
        words=False,
    ),
}
# Classes with a SentencePiece model and rules of their own that are not built: other ids, languages, replacements.
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
    """The class that a SentencePiece model is for, of those here; empty for one whose ids are the file's own.

    found: the class or model type that the files beside it name. name: the file's.
    Raises TokenizerError for a class that is not built, and for a file whose name says that it has a class while
    nothing says which.
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
    hf, settings, config = library("its class"), Settings(files), json_object(files, "tokenizer_config.json")
    kind = _CLASSES.get(name := class_of(files))
    if kind is None:
        raise TokenizerError(f"the class {name!r} is not known for a SentencePiece model"[:200])
    roles = {role: token["content"] for role, token in roles_of(files, kind.specials).items()}
    pieces, unknown, extras, charsmap = _opened(files["tokenizer.model"])
    vocabulary = kind.vocabulary(pieces, roles, config)
    if isinstance(kind.unknown, str):
        text = roles.get(kind.unknown)
        unknown = next((i for i, (piece, _) in enumerate(vocabulary) if piece == text), unknown)
    elif kind.unknown is not None:
        unknown = kind.unknown
    if name == "T5Tokenizer":
        extras += [special(token) for token in _extra_ids(config)]
    # As in transformers, a list of special tokens stands in place of those that the file marks.
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(listed, list):
        extras = [special(token) for token in listed if isinstance(token, str)]
    with refusals("tokenizers"):
        tokenizer = hf.Tokenizer(hf.models.Unigram(vocabulary, unknown, byte_fallback=False))
        if steps := kind.normalizers(hf, charsmap, config):
            tokenizer.normalizer = hf.normalizers.Sequence(steps)
        scheme = "always" if config.get("add_prefix_space", True) else kind.unspaced
        tokenizer.pre_tokenizer = _splits(hf, kind, config, scheme)
        tokenizer.decoder = hf.decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
        add_specials(tokenizer, files, settings, kind.specials, extras)
        before, after = ([roles.get(role, "") for role in part] for part in (kind.before, kind.after))
        tokenizer.post_processor = around(tokenizer, before, after, doubled=kind.doubled)
        return LibraryTokenizer(tokenizer, settings)


def _splits(hf: Any, kind: _Class, config: Mapping[str, Any], scheme: str) -> Any:
    pre = hf.pre_tokenizers
    steps = [pre.WhitespaceSplit()] if kind.words else []
    if kind.punctuation and config.get("split_by_punct"):
        steps.append(pre.Punctuation(behavior="isolated"))
    return pre.Sequence([*steps, pre.Metaspace(replacement="\u2581", prepend_scheme=scheme)])


def _opened(blob: bytes) -> tuple[Pieces, int, list[Added], bytes]:
    """A model's pieces with their scores, the unknown one's id, those that are taken whole, its map of characters."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    with refusals("sentencepiece"):
        processor.LoadFromSerializedProto(blob)
        ids = list(range(processor.GetPieceSize()))
        pieces = list(zip(processor.IdToPiece(ids), processor.GetScore(ids), strict=True))
        unknown = processor.unk_id()
    _, types, others = _core.proto_pieces(blob)
    extras = [
        special(piece) | {"special": kind == CONTROL}
        for (piece, _), kind in zip(pieces, types, strict=True)
        if kind in (CONTROL, USER_DEFINED) and piece
    ]
    charsmap = b""
    for number, value in others:
        if number == 3 and isinstance(value, bytes):
            charsmap = next((v for n, v in _core.proto_fields(value) if n == 2 and isinstance(v, bytes)), b"")
    return pieces, unknown, extras, charsmap
