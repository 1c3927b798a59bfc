"""Vocabularies without a tokenizer.json: the ids are those of the transformers class for their files."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import TokenizerError
from fastllm.tokenizer import _classes as classes
from fastllm.tokenizer import decode, find, from_blob, read
from helpers import vocabularies
from helpers.calls import failure
from helpers.vocabularies import BART, MASKS, same, save_bytes

transformers = pytest.importorskip("transformers")
sentencepiece = vocabularies.sentencepiece

LINES = vocabularies.lines(700, seed=5)
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*vocabularies.WORDS, *vocabularies.SPACES, *MASKS, "</s>", "<s>", "[SEP]", "<pad>"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=12,
).map("".join)
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
# Class, model type, special tokens of the vocabulary, tokenizer_config.json.
BYTES = [
    ("GPT2Tokenizer", "gpt2", ["<|endoftext|>"], {}),
    ("GPT2Tokenizer", "gptj", ["<s>"], {"add_prefix_space": True, "bos_token": "<s>", "add_bos_token": True}),
    ("GPTNeoXTokenizer", "gpt_neox", ["<|endoftext|>", "<|padding|>"], {}),
    ("Qwen2Tokenizer", "qwen3", ["<|endoftext|>"], {"bos_token": None, "unk_token": None}),
    ("Qwen3_5Tokenizer", "qwen3_5_text", ["<|endoftext|>"], {}),
    ("CohereTokenizer", "cohere", ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>"], {}),
    ("RobertaTokenizer", "roberta", BART, {}),
    ("RobertaTokenizer", "bart", BART, {"mask_token": {**MASK, "__type": "AddedToken"}, "add_prefix_space": True}),
    ("BartTokenizer", "bart", BART[:4], {"cls_token": "</s>"}),
    ("BlenderbotTokenizer", "blenderbot", BART, {}),
    ("DebertaTokenizer", "deberta", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], {}),
    ("WhisperTokenizer", "whisper", ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"], {}),
]


def reference(name, folder):
    if name != "Qwen3_5Tokenizer":
        return getattr(transformers, name).from_pretrained(folder)
    # This class must be told the names of the two files.
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return Qwen3_5Tokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()), merges=[tuple(merge.split()) for merge in merges]
    )


@pytest.mark.parametrize(("name", "kind", "specials", "config"), BYTES, ids=[f"{a}-{b}" for a, b, *_ in BYTES])
def test_bytes(tmp_path, name, kind, specials, config):
    """The class is named with or without "Fast", or follows from the model's type."""
    save_bytes(tmp_path, specials, config)
    library = reference(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    ours = find(tmp_path, len(library))
    same(ours, library, [*LINES, *MASKS])
    again = from_blob(ours.kind, ours.blob)
    assert [again.encode(text, special=True) for text in LINES[:50]] == [
        ours.encode(t, special=True) for t in LINES[:50]
    ]
    (tmp_path / "config.json").unlink()
    for suffix in ("", "Fast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name + suffix}))
        same(find(tmp_path, len(library)), library, LINES[:100])


def test_a_class_whose_split_is_not_known(tmp_path):
    for config, beside in (
        ({"tokenizer_class": "HerbertTokenizer"}, {}),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"model_type": "gpt2"}),
        ({}, {"model_type": "megabyte"}),
    ):
        save_bytes(tmp_path, ["<|endoftext|>"], config)
        (tmp_path / "config.json").write_text(json.dumps(beside))
        with pytest.raises(TokenizerError, match=r"splits a text is not known here without a tokenizer\.json"):
            find(tmp_path, 700)


def test_classes_of_model_types():
    """The class for a model type is transformers', or else the one for which the type's published files are."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    for kind in classes._REGISTERED:
        expected = (TOKENIZER_MAPPING_NAMES.get(kind) or "TokenizersBackend").removesuffix("Fast")
        found = classes.class_of({"config.json": json.dumps({"model_type": kind}).encode()})
        assert expected == "TokenizersBackend" or found == classes._SAME.get(expected, expected), kind


def test_the_type_decides_where_published_files_are_wrong(tmp_path):
    save_bytes(tmp_path, ["<|endoftext|>"], {"tokenizer_class": "GPT2Tokenizer"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    library = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(library).__name__ == "Qwen2Tokenizer"
    same(find(tmp_path, 700), library, LINES[:200])


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
DEBERTA = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"}
DEBERTA |= {"eos_piece": "[SEP]", "unk_piece": "[UNK]"}
XLNET = {"control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]}
BIG_BIRD = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
BIG_MASK = {
    "content": "[MASK]",
    "lstrip": True,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": True,
}
LISTED = {"added_tokens_decoder": {"2": {"content": "[SEP]", "special": True}, "SIZE": BIG_MASK}}
# Class, name of the file, model type, options of the training, tokenizer_config.json.
PIECES = [
    ("XLMRobertaTokenizer", "sentencepiece.bpe.model", "xlm-roberta", vocabularies.XLM_ROBERTA, {}),
    ("XLMRobertaTokenizer", "tokenizer.model", "xlm-roberta-xl", {}, {"mask_token": {**MASK, "__type": "AddedToken"}}),
    ("CamembertTokenizer", "sentencepiece.bpe.model", "camembert", {"user_defined_symbols": ["<x>"]}, {}),
    ("T5Tokenizer", "spiece.model", "t5", T5, {}),
    ("T5Tokenizer", "spiece.model", "t5", T5, {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}),
    ("T5Tokenizer", "spiece.model", "mt5", T5 | {"user_defined_symbols": ["<extra_id_0>"]}, {"extra_ids": 0}),
    ("T5Tokenizer", "spiece.model", "t5", T5 | {"normalization_rule_name": "identity"}, {"extra_ids": 3}),
    ("AlbertTokenizer", "spiece.model", "albert", ALBERT, {}),
    ("AlbertTokenizer", "spiece.model", "albert", ALBERT, {"do_lower_case": False, "keep_accents": True}),
    ("DebertaV2Tokenizer", "spm.model", "deberta-v2", DEBERTA, {}),
    ("DebertaV2Tokenizer", "spm.model", "deberta-v2", DEBERTA, LISTED),
    ("DebertaV2Tokenizer", "spm.model", "deberta-v2", DEBERTA, {"do_lower_case": True, "split_by_punct": True}),
    ("XLNetTokenizer", "spiece.model", "xlnet", XLNET, {}),
    ("XLNetTokenizer", "spiece.model", "xlnet", XLNET, {"do_lower_case": True}),
    ("BigBirdTokenizer", "spiece.model", "big_bird", BIG_BIRD, {}),
    ("XLMRobertaTokenizer", "sentencepiece.bpe.model", "xmod", {}, {"add_prefix_space": False}),
    ("DebertaV2Tokenizer", "spm.model", "deberta-v2", DEBERTA, {"add_prefix_space": False}),
    ("T5Tokenizer", "spiece.model", "t5", T5, {"add_prefix_space": False}),
]


@pytest.fixture(params=PIECES, ids=[f"{a}-{i}" for i, (a, *_) in enumerate(PIECES)], scope="module")
def pieces(request, tmp_path_factory):
    """A folder, and transformers' and our tokenizer for it."""
    pytest.importorskip("google.protobuf")
    name, file, kind, options, config = request.param
    folder = tmp_path_factory.mktemp("pieces")
    vocabularies.unigram(folder / file, **options)
    size = sentencepiece.SentencePieceProcessor(str(folder / file)).vocab_size()
    (folder / "tokenizer_config.json").write_text(json.dumps(config).replace("SIZE", str(size)))
    library = getattr(transformers, name).from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder, library, find(folder, len(library))


def test_pieces(pieces):
    folder, library, ours = pieces
    assert (ours.kind, ours.size) == ("unigram", len(library))
    same(ours, library, [*LINES, *MASKS, "<extra_id_0> a <extra_id_99>", "a<x>b"])
    again = from_blob(ours.kind, ours.blob)
    assert [again.encode(text, special=True) for text in LINES[:50]] == [
        ours.encode(t, special=True) for t in LINES[:50]
    ]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (file,) = folder.glob("*.model")
    named = {"tokenizer_class": type(library).__name__}
    for place, values in (("config.json", named), ("tokenizer_config.json", config | named)):
        (folder / place).write_text(json.dumps(values))
        same(read(file, len(library)), library, LINES[:50])


@settings(max_examples=60)
@given(text=TEXTS)
def test_pieces_of_any_text(pieces, text):
    _, library, ours = pieces
    same(ours, library, [text])
    ids = [i for i in ours.encode(text) if i != library.unk_token_id]
    assert decode(ours, ids) == library.decode(ids, skip_special_tokens=True)


def test_a_file_without_a_word_about_its_class(tmp_path):
    """A SentencePiece file without a class: XLM-R's has two tokens fewer than its model, any other is as it is."""
    path = tmp_path / "sentencepiece.bpe.model"
    vocabularies.unigram(path, **vocabularies.XLM_ROBERTA)
    library = sentencepiece.SentencePieceProcessor(str(path))
    size = library.vocab_size()
    ours = read(path, size + 2)
    for text in ("the ocean", "<mask> once"):
        mask = [size + 1] * text.startswith("<mask>")
        ids = [i + 1 if i else 3 for i in library.encode(text.removeprefix("<mask>"))]
        assert [*ours.prefix, *ours.encode(text, special=True), *ours.suffix] == [0, *mask, *ids, 2]
    for name in (path.name, "spiece.model", "spm.model"):
        path = path.rename(tmp_path / name)
        with pytest.raises(
            TokenizerError, match=r"no tokenizer_config\.json or config\.json beside it says what class"
        ):
            read(path, size)
    for name in ("source.spm", "any.model", "tokenizer.model.v3", "name"):
        path = path.rename(tmp_path / name)
        ours = read(path, size)
        assert ours.kind == "sentencepiece"
        assert ours.encode("the ocean") == library.encode("the ocean")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    path = path.rename(tmp_path / "any.model")
    assert find(tmp_path, size).encode("the ocean") == library.encode("the ocean")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart"}))
    with pytest.raises(TokenizerError, match=r"'MBartTokenizer' are not known here"):
        find(tmp_path, size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra_ids", -1),
        ("extra_ids", 1 << 40),
        ("extra_ids", "x"),
        ("eos_token", 3),
        ("eos_token", None),
        ("eos_token", {"content": 7}),
        ("unk_token", []),
        ("additional_special_tokens", {"a": 1}),
    ],
)
def test_settings_that_cannot_be(tmp_path, name, value):
    vocabularies.unigram(tmp_path / "spiece.model", **T5)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", name: value}))
    error = failure(lambda: find(tmp_path, 1000).encode("the ocean"))
    assert error is None or (isinstance(error, TokenizerError) and "spiece.model" in str(error))
    assert error is not None or name == "additional_special_tokens"
