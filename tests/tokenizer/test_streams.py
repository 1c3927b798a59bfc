"""Every kind of tokenizer: decoding piece by piece, and broken files."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import TokenizerError
from fastllm.tokenizer import check_fit, decode, find, from_blob, pack, read
from helpers import vocabularies, writers
from helpers.calls import failure, soon
from helpers.data import DATA

pytest.importorskip("tiktoken")
pytest.importorskip("transformers")

KINDS = ["llama2.c", "sentencepiece", "tokenizer.json", "tiktoken", "gpt2", "wordpiece", "letters", "characters"]
KINDS += ["unigram", "tekken", "gguf llama", "gguf gpt2", "gguf bert"]
AMPLIFY = (DATA / "amplify_tiny" / "amplify_vocab.txt").read_bytes()


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """Name -> (kind, bytes) of a small vocabulary of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    pieces = vocabularies.sentence_pieces(folder)
    vocabularies.llama_json(folder)
    level = vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=400)
    vocabularies.save_gpt2(level, folder)
    tokens = vocabularies.by_id(vocabularies.word_pieces(lower=True))
    bert = [t if i < 5 else t[2:] if t.startswith("##") else "▁" + t for i, t in enumerate(tokens)]
    roles = {"bos_token_id": 2, "eos_token_id": 3, "unknown_token_id": 1, "mask_token_id": 4, "padding_token_id": 0}
    gpt2 = {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    vocabularies.unigram(folder / "spiece.model", **vocabularies.XLM_ROBERTA)
    unigram = {"tokenizer.model": (folder / "spiece.model").read_bytes(), "tokenizer_class": b"XLMRobertaTokenizer"}
    return {
        "unigram": ("unigram", pack(unigram)),
        "tekken": ("tekken", vocabularies.tekken(400)),
        "llama2.c": ("llama2.c", writers.tokenizer_bin(writers.tokenizer_words())),
        "sentencepiece": ("sentencepiece", (folder / "tokenizer.model").read_bytes()),
        "tokenizer.json": ("tokenizer.json", (folder / "tokenizer.json").read_bytes()),
        "tiktoken": ("tiktoken", vocabularies.ranks(400)),
        "gpt2": ("gpt2", pack(gpt2)),
        "wordpiece": ("wordpiece", "\n".join(tokens).encode()),
        "letters": ("letters", AMPLIFY),
        "characters": ("characters", json.dumps(sorted(set("the ocean été 世界"))).encode()),
        "gguf llama": ("gguf", vocabularies.gguf_pieces(pieces, prefix=True)),
        "gguf gpt2": ("gguf", vocabularies.gguf_bytes(level, "smollm")),
        "gguf bert": ("gguf", vocabularies.gguf("bert", bert, [3] * 5 + [1] * (len(bert) - 5), **roles)),
    }


@pytest.fixture(scope="module")
def tokenizers(blobs):
    return {name: from_blob(*blob) for name, blob in blobs.items()}


# ---- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_are_the_whole(tokenizers, kind, data):
    """Pieces join to the decoded text for any ids, also those with which the model pads its vocabulary."""
    ours = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, ours.size + 3), max_size=20))
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == decode(ours, ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_half_characters(tokenizers, kind, data):
    """The text shown so far never ends inside a character, and the pieces after it are the rest of the text.

    Only the bytes of a tokenizer.json are held back, because the last of a run decides whether they are characters.
    """
    ours = tokenizers[kind]
    words = ["the", " ocean", "été", "世界", " "] if kind == "characters" else [*vocabularies.WORDS, " ", "\n"]
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=8)))
    ids = ours.encode(text)
    whole = decode(ours, ids)
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    rest = stream.flush()
    assert "\ufffd" not in "".join(pieces) + rest
    assert rest == "" or (kind == "tokenizer.json" and "".join(pieces) + rest == whole)
    cut = data.draw(st.integers(0, len(ids)))
    first = decode(ours, ids[:cut])
    if not first.endswith("\ufffd"):
        rest = ours.stream(ids[cut - 1] if cut else None)
        assert first + "".join([rest.push(token) for token in ids[cut:]]) + rest.flush() == whole


@pytest.mark.parametrize("kind", ["gpt2", "gguf gpt2", "tiktoken"])
@given(data=st.data())
def test_bytes_decode_as_the_library_does(tokenizers, kind, data):
    """Any ids decode as in the library, which replaces broken UTF-8 in its own way."""
    ours = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(5, 399), max_size=20))
    library = ours._encoding if kind == "tiktoken" else ours._tokenizer
    assert decode(ours, ids) == library.decode(ids)


@given(data=st.data())
def test_byte_fallback_decodes_as_the_library_does(tokenizers, data):
    ours = tokenizers["tokenizer.json"]
    ids = data.draw(st.lists(st.integers(3, ours.size - 1), max_size=20))
    assert decode(ours, ids) == ours._tokenizer.decode(ids)


def test_special_tokens_are_not_shown(tokenizers):
    for kind, ours in tokenizers.items():
        hidden = [ours.token_id(text) for text in ours.special]
        assert None not in hidden
        assert decode(ours, [i for i in hidden if kind != "llama2.c" or i == 1]) == ""


def test_special_tokens_only_where_asked(tokenizers):
    for kind, ours in tokenizers.items():
        # Tokens whose texts give other ids: unknown ones, and a unigram model's special pieces, as in transformers.
        also = set(ours.special) if kind == "unigram" else {"<unk>", "[UNK]"}
        for text in set(ours.special) - also:
            assert ours.token_id(text) not in ours.encode(f"the {text}")
            assert ours.token_id(text) in ours.encode(f"the {text}", special=True)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_a_text(tokenizers, kind):
    """With start=False no space is added in front, so that the ids of parts decode to the whole text."""
    ours = tokenizers[kind]
    first, second = ("the ", "ocean") if kind not in ("letters", "wordpiece", "gguf bert") else ("MK", "TL")
    ids = [*ours.encode(first), *ours.encode(second, start=False)]
    assert decode(ours, ids).replace(" ", "").lower() == (first + second).replace(" ", "").lower()
    if kind not in ("wordpiece", "gguf bert"):
        assert decode(ours, ids) == first + second


# ---- what a model needs of them --------------------------------------------------------------------------------------


def test_sizes(tokenizers, tmp_path):
    """A model may have more rows, and lack tokens that no plain text has. llama2.c's sizes must be equal."""
    ours = tokenizers["tiktoken"]
    for size in (ours.size, ours.size + 64, ours.plain):
        check_fit(ours, size, "it")
    with pytest.raises(TokenizerError, match="it has 656 words, the model 399"):
        check_fit(ours, 399, "it")
    with pytest.raises(TokenizerError, match="it has 300 words, the model 301"):
        check_fit(tokenizers["llama2.c"], 301, "it")


def test_order_in_a_folder(tmp_path, blobs):
    """The order is tokenizer.json, tokenizer.model, vocab.json, vocab.txt; an error names every place."""
    with pytest.raises(TokenizerError) as error:
        find(tmp_path, 900)
    names = ["tokenizer.json", "tekken.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model"]
    names += ["vocab.json", "vocab.txt", "amplify_vocab.txt", "chars.json", "chars.txt", "tokenizer.bin", "tok900.bin"]
    assert str(error.value) == f"no tokenizer fits {tmp_path}: {tmp_path} has no {', '.join(names)}"
    vocabularies.save_gpt2(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=400), tmp_path)
    (tmp_path / "vocab.txt").write_bytes(blobs["wordpiece"][1])
    assert find(tmp_path, 2000).kind == "gpt2"
    (tmp_path / "tokenizer.model").write_bytes(blobs["tiktoken"][1])
    assert find(tmp_path, 2000).kind == "tiktoken"
    (tmp_path / "tokenizer.model").write_bytes(blobs["sentencepiece"][1])
    assert find(tmp_path, 2000).kind == "sentencepiece"
    (tmp_path / "tokenizer.json").write_bytes(blobs["tokenizer.json"][1])
    assert find(tmp_path, 2000).kind == "tokenizer.json"
    # Without a config.json only equal sizes show that a file and a tokenizer belong together.
    with pytest.raises(TokenizerError, match=r"tokenizer\.json has [\d,]+ words, the model 2,000"):
        find(tmp_path / "model.bin", 2000)
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path / "model.safetensors", 2000).kind == "tokenizer.json"
    # Grok-1 has its tokenizer beside the folder of weights.
    (tmp_path / "ckpt-0").mkdir()
    assert find(tmp_path / "ckpt-0", 2000).kind == "tokenizer.json"


def test_a_missing_library_is_named(blobs, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("tokenizers", "tiktoken"):
            raise ModuleNotFoundError(name, name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for kind in ("tokenizer.json", "tiktoken", "tekken", "unigram", "gpt2", "wordpiece", "gguf gpt2", "gguf bert"):
        with pytest.raises(TokenizerError, match=r"pip install 'fastllm\[hf\]'"):
            from_blob(*blobs[kind])


# ---- broken files ----------------------------------------------------------------------------------------------------


def use(kind, blob):
    ours = from_blob(kind, blob)
    ids = [*ours.encode("the ocean"), *ours.encode("<s>世界", special=True)]
    decode(ours, [*ids, 0, max(ours.size - 1, 0)])


def refused_or_usable(kind, blob):
    with soon():
        error = failure(lambda: use(kind, blob))
        assert error is None or (isinstance(error, TokenizerError) and "\n" not in str(error))


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
LONGER = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1200}


@pytest.mark.parametrize(
    "step",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 30}},
        {"decoder": {"type": "Sequence", "decoders": [LONGER] * 3}},
    ],
    ids=("normalizer", "decoder"),
)
def test_steps_that_would_fill_all_memory(blobs, step):
    kind, blob = blobs["tokenizer.json"]
    with soon(), pytest.raises(TokenizerError, match=r"times longer|characters long"):
        use(kind, json.dumps(json.loads(blob) | step).encode())


def test_many_added_tokens(blobs):
    """Thousands of added tokens take no more than linear time."""
    kind, blob = blobs["tokenizer.json"]
    size = from_blob(kind, blob).size
    added = {str(size + i): {"content": f"<extra_{i}>", "special": True} for i in range(4000)}
    with soon():
        tokenizer = from_blob(
            kind,
            pack(
                {"tokenizer.json": blob, "tokenizer_config.json": json.dumps({"added_tokens_decoder": added}).encode()}
            ),
        )
    assert tokenizer.size == size + 4000
    assert tokenizer.token_id("<extra_3999>") == size + 3999


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(blobs, kind):
    name, blob = blobs[kind]
    for size in sorted(random.Random(2).sample(range(len(blob)), min(len(blob), 40))):
        refused_or_usable(name, blob[:size])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_mutated(blobs, kind, data):
    name, blob = blobs[kind]
    broken = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    refused_or_usable(name, bytes(broken))


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 1 << 40), st.text(max_size=3), st.just([]), st.just({}))
ARRAYS = st.lists(st.one_of(st.integers(-3, 9), st.text(max_size=2), st.floats(), st.none()), max_size=5)


@pytest.mark.parametrize("kind", ["gguf llama", "gguf gpt2", "gguf bert"])
@given(data=st.data())
def test_metadata_of_any_type(blobs, kind, data):
    metadata = json.loads(blobs[kind][1])
    for _ in range(data.draw(st.integers(1, 2))):
        metadata[data.draw(st.sampled_from(sorted(metadata)))] = data.draw(VALUES | ARRAYS)
    refused_or_usable("gguf", json.dumps(metadata).encode())


@given(
    config=st.dictionaries(
        st.sampled_from(["added_tokens_decoder", "add_bos_token", "bos_token", "chat_template"]), VALUES
    )
)
def test_config_of_any_type(blobs, config):
    for kind in ("sentencepiece", "wordpiece", "tokenizer.json"):
        name = {"sentencepiece": "tokenizer.model", "wordpiece": "vocab.txt"}.get(kind, kind)
        refused_or_usable(kind, pack({name: blobs[kind][1], "tokenizer_config.json": json.dumps(config).encode()}))


@pytest.mark.parametrize("kind", KINDS)
@given(blob=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_random_bytes(kind, blob):
    refused_or_usable(kind.split()[0], blob)
    refused_or_usable(kind.split()[0], b'{"files": ' + blob)


def test_lies(blobs, tmp_path):
    """Files with ids beyond the tokens, with unknown names, and without what they need."""
    far = json.loads(blobs["tokenizer.json"][1])
    far["model"]["vocab"]["far"] = 1 << 31
    beyond = b'{"added_tokens_decoder": {"99999999": {"content": "x"}}}'
    cases = [
        ("tokenizer.json", json.dumps(far).encode(), "ids up to 2,147,483,648"),
        (
            "gguf",
            vocabularies.gguf("gpt2", ["a"], [1], pre="new"),
            "pre-tokenizer 'new' is not known; known are .*qwen2",
        ),
        ("gguf", vocabularies.gguf("rwkv", ["a"], [1]), "model 'rwkv' is not known; known are llama, gpt2, bert"),
        ("gguf", vocabularies.gguf("llama", ["a", "b"], [1], scores=[0.0]), "1 token_type for 2 tokens|1 scores"),
        ("gguf", vocabularies.gguf("gpt2", ["a", "a"], [1, 1], pre="qwen2"), "a token twice"),
        ("gguf", vocabularies.gguf("gpt2", ["a"], [1], pre="qwen2", merges=["ab"]), "merge 'ab' without two halves"),
        ("gguf", b"[]", "no JSON object"),
        ("gpt2", pack({"vocab.json": b"{}", "x": b""}), "no merges.txt"),
        ("gpt2", pack({"vocab.json": b'{"a": -1}', "merges.txt": b""}), "no JSON object of ids"),
        ("tiktoken", b"YQ== 0\n", "miss single bytes"),
        ("tiktoken", b"YQ== x\n", "line 1 is no token"),
        ("wordpiece", b"a\nb", r"no token \[UNK\]"),
        ("letters", b"a\nb", "no token <unk>"),
        ("characters", b'["a", "a"]', "a character twice"),
        ("characters", b'{"a": 1}', "do not have the ids 0 to 0"),
        ("characters", b'["ab"]', "single characters"),
        ("sentencepiece", pack({"tokenizer_config.json": b"{}"}), "no tokenizer.model"),
        *(
            (
                kind,
                pack({"tokenizer.model": blobs[kind][1], "tokenizer_config.json": beyond}),
                "adds the token 99,999,999",
            )
            for kind in ("sentencepiece", "tiktoken")
        ),
    ]
    for kind, blob, said in cases:
        with pytest.raises(TokenizerError, match=said):
            from_blob(kind, blob)
    with pytest.raises(TokenizerError, match="has no '!'"):
        from_blob("characters", b'["a"]').encode("a!")
    (tmp_path / "tokenizer.json").write_bytes(blobs["tokenizer.json"][1])
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json is no usable tokenizer: tokenizer_config\.json is no JSON"
    ):
        read(tmp_path / "tokenizer.json", 900)
