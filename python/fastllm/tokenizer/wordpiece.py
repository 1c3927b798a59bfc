"""BERT's vocab.txt, a token a line: WordPiece, which cuts each word into the longest tokens from left to right.

A token inside a word begins with "##". Devlin et al., 2018 (https://arxiv.org/abs/1810.04805), after Schuster and
Nakajima, 2012.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastllm.errors import TokenizerError
from fastllm.tokenizer._classes import class_of
from fastllm.tokenizer._library import LibraryTokenizer, bert_normalizer, library, refusals
from fastllm.tokenizer._parsing import token_lines
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer._specials import Added, add_specials, by_role, special, template, texts_by_role
from fastllm.tokenizer.base import Files

# White space at the end of a line does not belong to the token.
_WHITE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

# transformers' classes that are WordPiece, and their special tokens.
_CLASSES = {
    "BertTokenizer": by_role(mask="[MASK]", unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]"),
    "FunnelTokenizer": by_role(
        mask="<mask>", bos="<s>", eos="</s>", unk="<unk>", sep="<sep>", pad="<pad>", cls="<cls>"
    ),
    "MPNetTokenizer": by_role(
        mask=special("<mask>", lstrip=True), bos="<s>", eos="</s>", unk="[UNK]", sep="</s>", pad="<pad>", cls="<s>"
    ),
}


def read(files: Files) -> LibraryTokenizer:
    """The tokenizer of a vocab.txt. Raises TokenizerError where it, or a file beside it, is broken."""
    name = class_of(files)
    if name.endswith("Tokenizer") and name not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise TokenizerError(
            f"how {name[:100]!r} splits a text is not known here without a tokenizer.json; known are {known}"
        )
    return build(
        {line.rstrip(_WHITE): i for i, line in enumerate(token_lines(files["vocab.txt"]))},
        files,
        _CLASSES.get(name, _CLASSES["BertTokenizer"]),
    )


def build(
    vocabulary: dict[str, int],
    files: Files,
    specials: Mapping[str, Added] = _CLASSES["BertTokenizer"],
) -> LibraryTokenizer:
    """A WordPiece tokenizer from a vocabulary, token -> id.

    specials: the special tokens by role where `files` do not say them. Raises TokenizerError.
    """
    hf, settings = library("vocab.txt"), Settings(files)
    roles = texts_by_role(files, specials)
    names = [roles.get(role, "") for role in ("unk_token", "cls_token", "sep_token")]
    for role, text in zip(("unknown", "first", "last"), names, strict=True):
        if text not in vocabulary:
            raise TokenizerError(f"it has no token {text}" if text else f"its {role} token is not said")
    with refusals("tokenizers"):
        tokenizer = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token=names[0]))
        tokenizer.normalizer = bert_normalizer(hf, settings)
        tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = hf.decoders.WordPiece(prefix="##")
        add_specials(tokenizer, files, settings, specials)
        tokenizer.post_processor = template(tokenizer, names[1:2], names[2:], double_sep=names[2] == "</s>")
        return LibraryTokenizer(tokenizer, settings)
