"""Vocabularies without a tokenizer.json: ids equal to those of the transformers class that their files are for."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vocabularies
from conftest import failure
from fastllm import TokenizerError
from fastllm.tokenizer import _classes as classes
from fastllm.tokenizer import decode, find, from_blob, read
from vocabularies import clean

transformers = pytest.importorskip("transformers")
sentencepiece = vocabularies.sentencepiece

LINES = vocabularies.lines(700, seed=5)
MASKS = [
    "a <mask> b",
    "a<mask>b",
    " <mask>",
    "<mask>\n",
    "x [MASK] y",
    "[MASK]",
    "\t[MASK]z",
    "é <mask><mask> b",
    "<unk> .",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*vocabularies.WORDS, *vocabularies.SPACES, *MASKS, "</s>", "<s>", "[SEP]", "<pad>"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=12,
).map("".join)


def same(ours, library, texts):
    """The same ids with special tokens taken, what is put around a text included; and with special tokens as text."""
    taken = [(t, [*ours.prefix, *ours.encode(t, special=True), *ours.suffix], library.encode(clean(t))) for t in texts]
    assert [(text, got, want) for text, got, want in taken if got != want][:3] == []
    options = {"add_special_tokens": False, "split_special_tokens": True}
    plain = [(t, ours.encode(t), library.encode(clean(t), **options)) for t in texts]
    assert [(text, got, want) for text, got, want in plain if got != want][:3] == []


# ---- vocab.json and merges.txt ---------------------------------------------------------------------------------------

BART = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
# Class, model type, special tokens that the vocabulary has, tokenizer_config.json.
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


def save_bytes(folder, specials, config):
    tokenizer = vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=600)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*specials, *(t for t in state["vocab"] if t not in specials)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, state["merges"])) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def reference(name, folder):
    if name != "Qwen3_5Tokenizer":
        return getattr(transformers, name).from_pretrained(folder)
    # This class does not look for the two files itself.
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return Qwen3_5Tokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()), merges=[tuple(merge.split()) for merge in merges]
    )


@pytest.mark.parametrize(("name", "kind", "specials", "config"), BYTES, ids=[f"{a}-{b}" for a, b, *_ in BYTES])
def test_bytes(tmp_path, name, kind, specials, config):
    """A class by its name, with "Fast" or without, or by the model's type."""
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
    """As transformers has them; where it has none, the class that the published files of the type are for."""
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
# Class, the file's name, model type, how the model is trained, tokenizer_config.json.
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
    """A folder, its transformers class and ours."""
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
    """XLM-R's has two tokens less than its model; a model of any other name is what it says itself."""
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


# ---- WordPiece -------------------------------------------------------------------------------------------------------


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
    # White space behind a token is none of it.
    (tmp_path / "vocab.txt").write_text("\n".join([*specials, *tokens[:9], f"{tokens[9]} \u3000", *tokens[10:]]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    library = getattr(transformers, name).from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    ours = find(tmp_path, len(library))
    same(ours, library, [*LINES, *MASKS, "a<m>b </s> c"])
    assert from_blob(ours.kind, ours.blob).encode("<mask>", special=True) == ours.encode("<mask>", special=True)


def test_special_tokens_map(tmp_path):
    """It says roles where tokenizer_config.json lists no tokens by id, and then the config does not."""
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
    """Of lines without an unknown token, as PhoBERT's: not the characters of a text."""
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


# ---- tekken ----------------------------------------------------------------------------------------------------------


def test_tekken(tmp_path):
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    for name, config in (("tekken.json", {}), ("tekken_2.json", {"version": "v3", "default_vocab_size": 700})):
        path = tmp_path / name
        path.write_bytes(vocabularies.tekken(**config))
        library = mistral.Tekkenizer.from_file(path)
        ours = read(path, library.n_words)
        assert (ours.kind, ours.size, ours.ends) == ("tekken", library.n_words, (library.eos_id,))
        texts = [clean(line) for line in LINES]
        wrong = [
            t for t in texts if [*ours.prefix, *ours.encode(t), *ours.suffix] != library.encode(t, bos=True, eos=False)
        ]
        assert wrong == []
        assert [decode(ours, ours.encode(text)) for text in texts] == texts
        assert decode(ours, range(library.n_words)) == library.decode(list(range(library.n_words)))
        assert all(ours.token_id(library.id_to_piece(i)) == i for i in range(10))
        assert ours.encode("[INST]a<SPECIAL_9>", special=True) == [3, *ours.encode("a"), 9]
    assert find(tmp_path, len(ours.stream().pieces) + 1000).kind == "tekken"


def test_tekken_without_special_tokens(tmp_path):
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    path = tmp_path / "tekken.json"
    content = json.loads(vocabularies.tekken(default_num_special_tokens=25, default_vocab_size=500))
    del content["special_tokens"]
    path.write_text(json.dumps(content))
    library = mistral.Tekkenizer.from_file(path)
    ours = read(path, 500)
    assert ours.encode("a [TOOL_CALLS]") == library.encode("a [TOOL_CALLS]", bos=False, eos=False)
    assert [ours.token_id(library.id_to_piece(i)) for i in range(25)] == list(range(25))
    content["config"]["version"] = "v11"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="has no special_tokens, which its version 'v11' needs"):
        read(path, 500)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("config"),
        lambda c: c["config"].pop("pattern"),
        lambda c: c["config"].update(pattern="("),
        lambda c: c["config"].update(default_vocab_size=1 << 40),
        lambda c: c["config"].update(default_num_special_tokens=1 << 40),
        lambda c: c["config"].update(default_num_special_tokens=2),
        lambda c: c["config"].update(default_num_special_tokens=True),
        lambda c: c.update(vocab={}),
        lambda c: c["vocab"].pop(3),
        lambda c: c["vocab"][300].update(token_bytes="?"),
        lambda c: c["vocab"][300].update(token_bytes=c["vocab"][299]["token_bytes"]),
        lambda c: c["vocab"].__setitem__(5, 7),
        lambda c: c["special_tokens"].pop(0),
        lambda c: c["special_tokens"][3].update(rank=1),
        lambda c: c["special_tokens"][3].update(token_str="<s>"),
        lambda c: c["special_tokens"][1].update(token_str="<begin>"),
        lambda c: c.update(special_tokens=[7]),
    ],
)
def test_broken_tekken(tmp_path, change):
    content = json.loads(vocabularies.tekken(400))
    change(content)
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tekken\.json is no usable tokenizer: "):
        read(tmp_path / "tekken.json", 1000)


# ---- letters ---------------------------------------------------------------------------------------------------------

PROTEINS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
KMERS = ["".join(letters) for letters in itertools.product("ACGT", repeat=3)]
NUCLEOTIDES = ["<unk>", "<pad>", "<mask>", "<cls>", *KMERS, *"ATCGN", "<eos>", "<bos>"]
LETTERS = st.lists(
    st.one_of(
        st.sampled_from(
            [*PROTEINS, "ACG", "CGTA", "<MASK>", "<mask", "mask>", " ", "  ", "\n", "j", "é", "1", "[MASK]"]
        ),
        st.text(max_size=2),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=["proteins", "nucleotides"])
def letters(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    proteins = request.param == "proteins"
    (folder / "vocab.txt").write_text("\n".join(PROTEINS if proteins else NUCLEOTIDES))
    config = {} if proteins else {"eos_token": None, "bos_token": None, "tokenizer_class": "EsmTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "esm"}))
    return transformers.EsmTokenizer.from_pretrained(folder), find(folder, 200)


@settings(max_examples=300)
@given(text=LETTERS)
def test_letters(letters, text):
    library, ours = letters
    assert [*ours.prefix, *ours.encode(text, special=True), *ours.suffix] == library.encode(clean(text))


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
    """BERT's class goes by tokenizer_config.json, whatever the file itself does to case and accents."""
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
