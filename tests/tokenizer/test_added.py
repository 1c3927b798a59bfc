"""Added tokens, from any of the files that may list them, are read and matched as by transformers."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import OptionError, TokenizerError
from fastllm.chat import ChatTemplate
from fastllm.tokenizer import decode, find, from_blob
from helpers import vocabularies
from helpers.reference import build

transformers = pytest.importorskip("transformers")
pytest.importorskip("google.protobuf")  # transformers needs it to read SentencePiece's models
transformers.logging.set_verbosity_error()

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
NAMES = ["<x>", "<x>>", "[y]", "word", "y z", " q", "\u2581w", "<|im_start|>", "the"]
PARTS = [*NAMES, " ", "  ", "\n", "\u2581", "_", "ocean", " a", "é", "世", "x", "^", "\x1c", "\u3000", "\u200d", "</s>"]
PARTS += ["<unk>", "<pad>", "extra"]
texts = st.lists(st.sampled_from(PARTS), max_size=9).map("".join)
slow = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vocabulary(kind, folder):
    """Writes a vocabulary of a kind. Returns its tokens, transformers' class for it, and a model type."""
    if kind == "sentencepiece":
        library = vocabularies.sentence_pieces(folder, symbols=False)
        return [library.id_to_piece(i) for i in range(library.vocab_size())], "LlamaTokenizer", "llama"
    if kind == "llama json":
        return vocabularies.by_id(vocabularies.llama_json(folder)), "LlamaTokenizerFast", "llama"
    if kind == "wordpiece":
        tokens = vocabularies.by_id(vocabularies.word_pieces(lower=True))
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        return tokens, "BertTokenizer", "bert"
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    if kind == "gpt2":
        vocabularies.save_gpt2(library, folder)
        return vocabularies.by_id(library), "GPT2Tokenizer", "gpt2"
    state = json.loads(library.to_str())
    state["added_tokens"] = state["added_tokens"][:2]  # the others stay in the vocabulary as plain text
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return vocabularies.by_id(library), "PreTrainedTokenizerFast", "llama"


def write(folder, kind, where, rng, **config):
    """Writes a vocabulary with random added tokens into the files of `where`; returns transformers' tokenizer."""
    tokens, name, model_type = vocabulary(kind, folder)
    model_type = config.pop("model_type", model_type)
    added, end = {}, len(tokens)
    for text in rng.sample(NAMES, 6):
        i = tokens.index(text) if text in tokens else end
        end += text not in tokens
        added[i] = {"content": text, "special": rng.random() < 0.5, **{flag: rng.random() < 0.4 for flag in FLAGS}}
    config = {"tokenizer_class": name, "model_max_length": 1000} | config
    if kind != "wordpiece":
        config |= {"bos_token": "<s>", "eos_token": "</s>"}
    beside = {"pad_token": {"content": "<pad>", "rstrip": True, "lstrip": False, "normalized": False}}
    if where == "added_tokens_decoder":
        config["added_tokens_decoder"] = {str(i): token for i, token in added.items()}
    elif where == "added_tokens.json":
        (folder / where).write_text(json.dumps({token["content"]: i for i, token in added.items()}))
    elif where == "special_tokens_map.json":
        (folder / where).write_text(json.dumps({**beside, "additional_special_tokens": ["<x>", "extra"]}))
    elif where == "roles":
        config["extra_special_tokens"] = {"image_token": "<x>", "end_of_image_token": "extra"}
    else:
        config[where] = ["<x>", "extra"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def tiny(size):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    return transformers.LlamaConfig(vocab_size=size, **sizes)


def agree(ours, library, text):
    for special in (True, False):
        expected = library.encode(text, add_special_tokens=False, split_special_tokens=not special)
        assert ours.encode(text, special=special) == expected


WHERE = ["added_tokens_decoder", "added_tokens.json", "special_tokens_map.json"]
WHERE += ["extra_special_tokens", "additional_special_tokens", "roles"]


KINDS = ["sentencepiece", "llama json", "tokenizer.json", "gpt2", "wordpiece"]
# Left out: for SentencePiece, transformers replaces that list by the model's own control pieces.
PLACES = [(k, w) for k in KINDS for w in WHERE if (k, w) != ("sentencepiece", "special_tokens_map.json")]


@pytest.mark.parametrize(("kind", "where"), PLACES)
@slow
@given(data=st.data())
def test_where_tokens_are_added(made, kind, where, data):
    ours, library = made(kind, where)
    agree(ours, library, data.draw(texts))


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("kind", ["sentencepiece", "llama json"])
@pytest.mark.parametrize("prefix", [True, False, None])
@slow
@given(data=st.data())
def test_spaces_of_llama(made, kind, legacy, prefix, data):
    """Llama's spaces: before a text, after added tokens, and around added tokens that take spaces with them."""
    config = {"legacy": legacy, "add_prefix_space": prefix}
    config = {key: value for key, value in config.items() if value is not None}
    ours, library = made(kind, "added_tokens_decoder", **config)
    text = data.draw(texts)
    agree(ours, library, text)
    ids = library.encode(text)
    assert decode(ours, ids) == library.decode(ids, skip_special_tokens=True)


# Model types whose class is the one that files name, types without a class, and one with another class.
TYPES = ["llama", "gemma", "qwen3", "phi", "cohere", "idefics3", "deepseek_v3", "mine", "", "mistral", "phi3", "olmo2"]


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", ["LlamaTokenizer", "CodeLlamaTokenizerFast"])
@pytest.mark.parametrize("kind", ["sentencepiece", "llama json"])
def test_where_llamas_spaces_are(made, kind, name, model_type):
    """Where Llama's spaces go for each model type for which transformers uses the named class."""
    ours, library = made(kind, "added_tokens_decoder", tokenizer_class=name, model_type=model_type)
    for text in ("the cat", "  the", "<x> the<x>the", "\u2581the", "</s>the</s> the"):
        agree(ours, library, text)


@pytest.mark.parametrize("kind", ["sentencepiece", "llama json"])
def test_roles_that_no_file_names(tmp_path, kind):
    """Roles that no file names, and a template that begins with BOS. A role that is null has no token."""
    size = len(vocabulary(kind, tmp_path)[0])
    name = "LlamaTokenizer" if kind == "llama json" else None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tokenizer_class": name}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "the"}]
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    ours = find(tmp_path, size)
    assert ChatTemplate(from_blob(ours.kind, ours.blob)).encode(messages) == ids
    for role in ("bos_token", "eos_token", "unk_token"):
        assert ours.roles[role] == getattr(theirs, role)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": ""}))
    assert {"bos_token", "eos_token"}.isdisjoint(find(tmp_path, size).roles)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The two tokenizers of a folder, made once. Ours has passed through the bytes of a converted file."""
    known = {}

    def make(kind, where, **config):
        key = (kind, where, *config.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("added")
            library = write(folder, kind, where, random.Random(str(key)), **config)
            ours = find(folder, len(library) + 3)
            known[key] = from_blob(ours.kind, ours.blob), library
        return known[key]

    return make


# ---- what they are ---------------------------------------------------------------------------------------------------


def test_a_fine_tuned_llama(tmp_path):
    """Tokens after the vocabulary, one of which ends turns, in the files of before added_tokens_decoder."""
    library = vocabularies.sentence_pieces(tmp_path, symbols=False)
    size = library.vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|end|>": size, "<|user|>": size + 1, "<note>": size + 2}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    named = {"eos_token": {"content": "<|end|>"}, "additional_special_tokens": ["<|user|>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    ours = find(tmp_path, size + 3)
    assert (ours.size, ours.plain, ours.roles["eos_token"]) == (size + 3, size, "<|end|>")
    assert {size, library.eos_id()} <= set(ours.ends)
    assert ours.encode("<|user|>the<|end|>", special=True) == [size + 1, *library.encode("the"), size]
    assert size not in ours.encode("<|end|>")
    assert ours.encode("<note>") == [size + 2]  # added but not special
    assert decode(ours, [size, size + 1, size + 2]) == "<note>"


def test_ids_with_a_gap(tmp_path):
    """Added tokens keep the ids of the file, even if ids before them are missing."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.save(str(tmp_path / "tokenizer.json"))
    added = {"905": {"content": "<x>", "special": True}, "7": {"content": "<y>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    ours = find(tmp_path, 1000)
    assert ours.encode("<x><y>", special=True) == [905, 906]  # id 7 belongs to another token
    assert decode(ours, ours.encode("the")) == "the"


BROKEN = [
    {"added_tokens_decoder": {"x": "<x>"}},
    {"added_tokens_decoder": {"1": 2}},
    {"added_tokens_decoder": [1]},
    {"added_tokens_decoder": {"1000000": "<x>"}},
    {"extra_special_tokens": 3},
    {"extra_special_tokens": [None]},
    {"additional_special_tokens": "<x>"},
    {"model_specific_special_tokens": {"a_token": 1}},
    {"eos_token": ["</s>"]},
    {"eos_token": {"text": "</s>"}},
]


@pytest.mark.parametrize("config", BROKEN, ids=str)
@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
def test_broken(tmp_path, kind, config):
    vocabulary(kind, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"broken|no list|no JSON object|adds the token"):
        find(tmp_path, 2000)


@pytest.mark.parametrize("blob", ["null", "[]", "3", '"tokenizer"'])
def test_no_object(tmp_path, blob):
    (tmp_path / "tokenizer.json").write_text(blob)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is no usable tokenizer: it is no JSON object;"):
        find(tmp_path, 100)


@pytest.mark.parametrize("added", [[], {"<x>": "1"}, {"<x>": -1}, {"": 3}, {"<x>": 1 << 40}, {"<x>": 900_000}], ids=str)
def test_broken_added_tokens(tmp_path, added):
    vocabulary("sentencepiece", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(TokenizerError, match=r"added_tokens\.json|adds the token"):
        find(tmp_path, 2000)


# ---- ends of text ----------------------------------------------------------------------------------------------------


def test_a_text_ends_at_any_end(tmp_path):
    """Ends of texts: of config.json, generation_config.json and the tokenizer, and a special token known as an end."""
    tokens = vocabulary("tokenizer.json", tmp_path)[0]
    named = {"eos_token": "</s>", "extra_special_tokens": ["<|im_end|>"], "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    model = build("LlamaForCausalLM", tiny(len(tokens)))
    model.generation_config.eos_token_id = [9, 11]
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    ends = {9, 11, *map(tokens.index, ("</s>", "<|im_end|>", "<|endoftext|>"))}
    assert set(llm.stop) == set(llm.chat_stop) == ends
    for token in [*ends, tokens.index("<|im_start|>")]:
        text = llm.generate("the", logit_bias={token: 1e4}, temperature=0, max_tokens=4, stream=True)
        assert "".join(text) == "" or token not in ends
        assert text.finish_reason == ("stop" if token in ends else "length")


# ---- past the model's vocabulary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json", "gpt2", "wordpiece"])
def test_a_token_that_the_model_has_not(tmp_path, kind, special):
    """A token without a row in the model: texts with it are refused by its name, all others work."""
    size = len(vocabulary(kind, tmp_path)[0])
    added = {str(size): {"content": "<padding>", "special": special}}
    # A Llama's vocab.json does not say how a text is split.
    named = {"tokenizer_class": "GPT2Tokenizer"} if kind == "gpt2" else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, **named}))
    ours = find(tmp_path, size)
    assert max(ours.encode("the ocean")) < size
    assert ours.encode("<padding>", special=True) == [size]
    with pytest.raises(TokenizerError, match="words, the model"):
        find(tmp_path, size - 1)
    build("LlamaForCausalLM", tiny(size)).save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    assert llm.generate("the ocean", max_tokens=3) is not None
    assert llm.logits(llm.tokenize("the <padding", bos=False)).shape[1] == size
    ids = ours.encode("the <padding>", special=True)
    asks = [lambda: llm.generate(ids), lambda: llm.generate("the <padding>"), lambda: llm.tokenize("<padding>")]
    for ask in asks[: 1 if special else 3]:  # a special token in these texts is text
        with pytest.raises(OptionError, match=f"{size}, '<padding>', is no token id: the vocabulary has {size:,}"):
            ask()
