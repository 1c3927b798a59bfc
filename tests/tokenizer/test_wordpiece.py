"""WordPiece vocabularies without a tokenizer.json give transformers' ids."""

import json

import pytest

from fastllm import TokenizerError
from fastllm.tokenizer import find, from_blob
from helpers import vocabularies
from helpers.vocabularies import BART, MASKS, clean, same, save_bytes

transformers = pytest.importorskip("transformers")

LINES = vocabularies.lines(700, seed=5)


@pytest.mark.parametrize(
    ("name", "kind", "specials", "config"),
    [
        ("BertTokenizer", "bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], {"never_split": ["ocean"]}),
        ("BertTokenizer", "distilbert", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"], {"tokenize_chinese_chars": False}),
        (
            "BertTokenizer",
            "electra",
            ["[UNK]", "<s>", "</s>", "<m>"],
            {
                "cls_token": "<s>",
                "mask_token": "<m>",
                "sep_token": {"content": "</s>", "lstrip": True, "__type": "AddedToken", "normalized": False},
            },
        ),
        ("MPNetTokenizer", "mpnet", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], {"strip_accents": True}),
        ("FunnelTokenizer", "funnel", ["<unk>", "<sep>", "<pad>", "<cls>", "<mask>"], {"do_lower_case": False}),
    ],
    ids=["bert", "distilbert", "roles", "mpnet", "funnel"],
)
def test_word_pieces(tmp_path, name, kind, specials, config):
    tokens = [t for t in vocabularies.by_id(vocabularies.word_pieces(lower=True))[5:] if t not in specials]
    # White space after a token in vocab.txt is not part of it.
    (tmp_path / "vocab.txt").write_text("\n".join([*specials, *tokens[:9], f"{tokens[9]} \u3000", *tokens[10:]]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    library = getattr(transformers, name).from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    ours = find(tmp_path, len(library))
    same(ours, library, [*LINES, *MASKS, "a<m>b </s> c"])
    assert from_blob(ours.kind, ours.blob).encode("<mask>", special=True) == ours.encode("<mask>", special=True)


def test_special_tokens_map(tmp_path):
    """special_tokens_map.json gives the roles if tokenizer_config.json lists no tokens by id, and wins over it."""
    save_bytes(tmp_path, [*BART, "<m>"], {"mask_token": "<mask>", "cls_token": "<s>"})
    named = {"mask_token": {"content": "<m>", "lstrip": True, "rstrip": False}, "cls_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    texts = [*LINES[:100], *MASKS, "the <m> ocean"]
    same(find(tmp_path, 700), transformers.RobertaTokenizer.from_pretrained(tmp_path), texts)
    listed = {str(i): {"content": token, "special": True} for i, token in enumerate(BART)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed, "cls_token": "<pad>"}))
    same(find(tmp_path, 700), transformers.RobertaTokenizer.from_pretrained(tmp_path), texts)


def test_a_vocabulary_of_another_class_is_no_text(tmp_path):
    """A vocabulary of lines without an unknown token, such as PhoBERT's, is not taken for one of characters."""
    (tmp_path / "vocab.txt").write_text("the 10\nocean@@ 7\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    with pytest.raises(TokenizerError, match="how 'PhobertTokenizer' splits a text is not known"):
        find(tmp_path, 1000)


def test_word_pieces_of_another_class(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(vocabularies.by_id(vocabularies.word_pieces(lower=True))))
    for config in ({"tokenizer_class": "BertJapaneseTokenizer"}, {"tokenizer_class": "RoFormerTokenizerFast"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(TokenizerError, match=r"splits a text is not known here without a tokenizer\.json"):
            find(tmp_path, 1000)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"do_lower_case": False},
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "strip_accents": False},
        {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False, "strip_accents": True},
        {"tokenizer_class": "DistilBertTokenizer", "tokenize_chinese_chars": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True},
    ],
)
def test_the_case_of_a_tokenizer_json(tmp_path, config, lower):
    """For BERT's class tokenizer_config.json decides about case and accents, not the tokenizer.json."""
    library = vocabularies.word_pieces(lower=lower)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, options = find(tmp_path, 4000), {"add_special_tokens": False}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = from_blob(ours.kind, ours.blob)
    for text in LINES[:200]:
        expected = theirs.encode(clean(text), **options)
        assert ours.encode(text, special=True) == again.encode(text, special=True) == expected
