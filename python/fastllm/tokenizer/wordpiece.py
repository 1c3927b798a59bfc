"""BERT's vocab.txt: a token a line, words cut into the longest pieces, "##" before a piece inside a word."""

from __future__ import annotations

from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer import Files
from fastllm.tokenizer.gpt2 import add_special
from fastllm.tokenizer.letters import lines_of
from fastllm.tokenizer.settings import Settings
from fastllm.tokenizer.tokenizer_json import LibraryTokenizer, library, refusals

_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def read(files: Files) -> LibraryTokenizer:
    settings = Settings(files)
    lines = lines_of(files["vocab.txt"])
    lower = settings.flag("do_lower_case")
    chinese = settings.flag("tokenize_chinese_chars")
    return build(
        {token: i for i, token in enumerate(lines)},
        settings,
        lower=True if lower is None else lower,
        chinese=True if chinese is None else chinese,
    )


def build(vocabulary: dict[str, int], settings: Settings, *, lower: bool, chinese: bool) -> LibraryTokenizer:
    """BERT's tokenizer from a vocabulary. settings: its special tokens, where they are not BERT's own."""
    hf = library("vocab.txt")
    names = {role: settings.token(f"{role}_token") or token for role, token in _ROLES.items()}
    for role in ("unk", "cls", "sep"):
        if names[role] not in vocabulary:
            raise TokenizerError(f"it has no token {names[role]}")
    with refusals("tokenizers"):
        return LibraryTokenizer(_word_pieces(hf, vocabulary, names, settings, lower=lower, chinese=chinese), settings)


def _word_pieces(
    hf: Any, vocabulary: dict[str, int], names: dict[str, str], settings: Settings, *, lower: bool, chinese: bool
) -> Any:
    tokenizer = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token=names["unk"]))
    tokenizer.normalizer = hf.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=settings.flag("strip_accents"),
        lowercase=lower,
    )
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece(prefix="##")
    add_special(tokenizer, list(names.values()))
    around = [(names[role], vocabulary[names[role]]) for role in ("cls", "sep")]
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single=[names["cls"], "$A", names["sep"]],
        pair=[names["cls"], "$A", names["sep"], "$B:1", f"{names['sep']}:1"],
        special_tokens=around,
    )
    return tokenizer
