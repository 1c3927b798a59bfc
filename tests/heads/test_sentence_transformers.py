"""Vectors of texts, against sentence-transformers on tiny models with the files that it saves itself."""

import io
import json
import random
import re
import shutil

import numpy as np
import pytest

import fastllm
from fastllm import cli
from fastllm.heads import Embedding
from fastllm.weights.convert import convert
from helpers import vocabularies
from helpers.calls import failure
from helpers.reference import build, torch, transformers

st = pytest.importorskip("sentence_transformers")

import tokenizers  # noqa: E402
from sentence_transformers.sentence_transformer import modules  # noqa: E402
from tokenizers import models, pre_tokenizers, processors  # noqa: E402

TEXTS = ["the ocean", "Once upon a time THERE was", "a", "été naïve world dog. 12 3456 x = y + 1;", "then then then"]
LONG = " ".join(["ocean time world"] * 30)
PROMPTS = {"query": "query: the ", "document": ""}


def around(tokenizer, before, after):
    """The tokenizer as transformers' class, with tokens before and after each text."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (*before, *after)]
    tokenizer.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=ids)
    pad, end = tokenizer.id_to_token(0), after[-1]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end)


def unigram():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(vocabularies.WORDS)] * 5, trainer)
    return tokenizer


SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128, "initializer_range": 0.2}


def bert():
    words = around(vocabularies.word_pieces(lower=False), ["[CLS]"], ["[SEP]"])
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=80, **SIZES)
    return build("BertModel", config), words


def xlmr():
    words = around(unigram(), ["<s>"], ["</s>"])
    config = transformers.XLMRobertaConfig(
        vocab_size=len(words), max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    return build("XLMRobertaModel", config), words


def qwen3():
    words = around(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=500), [], ["<|endoftext|>"])
    return build("Qwen3ForCausalLM", transformers.Qwen3Config(vocab_size=len(words), **DECODER)), words


def gemma3():
    words = around(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=500), ["<s>"], ["</s>"])
    config = transformers.Gemma3TextConfig(
        vocab_size=len(words),
        use_bidirectional_attention=True,
        sliding_window=7,
        sliding_window_pattern=2,
        query_pre_attn_scalar=12,
        **DECODER,
    )
    return build("Gemma3ForCausalLM", config), words


MODELS = {"bert": bert, "xlmr": xlmr, "qwen3": qwen3, "gemma3": gemma3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a model as transformers saves it, made once each."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model, words = MODELS[name]()
            model.save_pretrained(made[name])
            words.save_pretrained(made[name])
        return made[name]

    return folder


def save(trunk, folder, *after, prompts=None, default=None, length=None, **more):
    """Saves a model of sentence-transformers on a trunk, and returns it as it is read again."""
    torch.manual_seed(1)
    after = [module() if callable(module) and not isinstance(module, torch.nn.Module) else module for module in after]
    model = st.SentenceTransformer(
        modules=[modules.Transformer(str(trunk)), *after], prompts=prompts, default_prompt_name=default, **more
    )
    if length is not None:
        model.max_seq_length = length
    model.save(str(folder), create_model_card=False)
    for name in ("config.json", "model.safetensors"):  # of the whole class, not of the base model in it
        shutil.copy(trunk / name, folder / name)
    return st.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def check(model, folder, texts=TEXTS, options=None, **ours):
    expected = model.encode(texts, **(options or {}))
    llm = fastllm.load(folder, dtype="f32", threads=1)
    found = llm.embed(texts, **ours)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (len(texts), llm.embed([]).shape[1])
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, expected.std()))
    convert(folder, folder.parent / "converted.safetensors")
    again = fastllm.load(folder.parent / "converted.safetensors", threads=1)
    assert again.embedding == llm.embedding
    assert (again.embed(texts, **ours) == found).all()
    convert(folder.parent / "converted.safetensors", folder.parent / "twice.safetensors")
    assert (fastllm.load(folder.parent / "twice.safetensors", threads=1).embed(texts, **ours) == found).all()
    return llm


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", modules.Pooling.POOLING_MODES)
def test_pooling(saved, tmp_path, name, mode):
    check(save(saved(name), tmp_path / "st", modules.Pooling(48, mode)), tmp_path / "st")


@pytest.mark.parametrize("name", MODELS)
def test_embedding_gemmas_modules_and_prompts(saved, tmp_path, name):
    folder = tmp_path / "st"
    after = (modules.Pooling(48, ("mean", "cls")), modules.Dense(96, 70, bias=False), modules.Dense(70, 24))
    model = save(saved(name), folder, *after, modules.Normalize(), prompts=PROMPTS, default="query")
    llm = check(model, folder)
    assert (llm.embed(TEXTS) == llm.embed(TEXTS, prompt_name="query")).all()
    check(model, folder, options={"prompt": ""}, prompt="")
    check(model, folder, options={"prompt": "a prompt"}, prompt="a prompt")
    check(model, folder, options={"prompt_name": "document"}, prompt_name="document")
    assert np.abs(np.linalg.norm(llm.embed(TEXTS), axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(llm.embed(TEXTS, normalize=False), axis=1) - 1).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", modules.Pooling.POOLING_MODES)
def test_prompts_that_are_not_pooled(saved, tmp_path, name, mode):
    """As for INSTRUCTOR: the tokens of the prompt go through the model, and are left out after it."""
    folder = tmp_path / "st"
    model = save(saved(name), folder, modules.Pooling(48, mode, include_prompt=False), prompts=PROMPTS)
    check(model, folder, options={"prompt_name": "query"}, prompt_name="query")
    check(model, folder)


ACTS = [torch.nn.Tanh, torch.nn.ReLU, torch.nn.GELU, torch.nn.Sigmoid, torch.nn.SiLU, torch.nn.Identity]


@pytest.mark.parametrize("act", ACTS)
def test_activations(saved, tmp_path, act):
    dense = modules.Dense(48, 30, activation_function=act())
    check(save(saved("bert"), tmp_path / "st", modules.Pooling(48), dense), tmp_path / "st")


def normed(seed=0):
    """A LayerNorm module that has been trained."""
    norm = modules.LayerNorm(48)
    with torch.no_grad():
        norm.norm.weight.normal_(generator=torch.Generator().manual_seed(seed))
        norm.norm.bias.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return norm


TOKENS = "token_embeddings"
CHAINS = {
    "norm": lambda: [modules.Pooling(48), normed(), modules.Dense(48, 20), modules.Normalize()],
    "normalized before a layer": lambda: [modules.Pooling(48), modules.Normalize(), modules.Dense(48, 20)],
    "of each token": lambda: [
        modules.Dense(48, 33, module_input_name=TOKENS),
        modules.Normalize(module_input_name=TOKENS),
        modules.Pooling(33, ("max", "lasttoken")),
    ],
    "residual": lambda: [modules.Pooling(48), modules.Dense(48, 48, use_residual=True), modules.Dropout(0.5)],
    "a Normalize that finds nothing": lambda: [modules.Normalize(), modules.Pooling(48)],
    "tokens normalized too late": lambda: [modules.Pooling(48), modules.Normalize(module_input_name=TOKENS)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_modules_in_other_orders(saved, tmp_path, chain):
    check(save(saved("bert"), tmp_path / "st", *CHAINS[chain]()), tmp_path / "st")


def test_dimensions(saved, tmp_path):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), truncate_dim=20)
    llm = check(model, folder)
    assert llm.embed(TEXTS).shape == (5, 20)
    check(model, folder, options={"normalize_embeddings": True}, normalize=True)


def test_nulls(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48))
    for name, key in (("sentence_bert_config", "do_lower_case"), ("config_sentence_transformers", "model_type")):
        values = json.loads((folder / f"{name}.json").read_text()) | {key: None}
        (folder / f"{name}.json").write_text(json.dumps(values))
    check(st.SentenceTransformer(str(folder), device="cpu"), folder)


def test_lower_case(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), prompts={"shout": "HELLO "})
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    texts = ["THE Ocean", "İstanbul ΣΑΣ ẞ", "ß WORLD", "THE [MASK] Ocean[SEP]WORLD"]
    llm = check(st.SentenceTransformer(str(folder), device="cpu"), folder, texts)
    assert (llm.embed(["the ocean"]) == llm.embed(["THE Ocean"])).all()
    assert (llm.embed(["the ocean"], prompt_name="shout") == llm.embed(["hello the ocean"])).all()


def edit(path, **changes):
    """A JSON file with other values; None removes one."""
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))


# ---- long texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_long_texts_are_cut_only_when_asked(saved, tmp_path, name, side):
    folder = tmp_path / "st"
    model = save(saved(name), folder, modules.Pooling(48, ("mean", "lasttoken")), length=20, prompts=PROMPTS)
    if side == "left":
        edit(folder / "tokenizer_config.json", truncation_side="left")
        model = st.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 20
    for options in ({}, {"prompt_name": "query"}):
        llm = check(model, folder, [LONG, *TEXTS], options, truncate=True, **options)
    for texts, at in (([LONG], 0), (["a", "the", "a", LONG, "a"], 3)):
        with pytest.raises(fastllm.ContextError, match=rf"text {at} has \d+ tokens, the model takes 20") as error:
            llm.embed(texts)
        assert error.value.text == at
    ids = llm.tokenize(LONG)
    cut = ids[-20:] if side == "left" else ids[:20]
    assert (llm.embed([ids], truncate=True) == llm.embed([cut])).all()


def test_the_places_of_a_length(saved, tmp_path):
    """sentence_bert_config.json's before the tokenizer's, and a call's own options before both."""
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), length=30)
    path = folder / "sentence_bert_config.json"
    for changes, length in (
        ({}, 30),
        ({"max_seq_length": 25}, 25),
        ({"tokenizer_args": {"model_max_length": 22}}, 22),
        ({"processing_kwargs": {"text": {"max_length": 17}}}, 17),
    ):
        edit(path, **changes)
        model = st.SentenceTransformer(str(folder), device="cpu")
        assert model.preprocess([LONG])["input_ids"].shape == (1, length)
        check(model, folder, [LONG, "a"], truncate=True)
        assert fastllm.load(folder).embedding.max_tokens == length
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    edit(path, max_seq_length=None, tokenizer_args=None, processing_kwargs=None)
    assert fastllm.load(folder).embedding.max_tokens == 0


# ---- older forms -----------------------------------------------------------------------------------------------------


def old_pooling(folder, *, flags, **more):
    """1_Pooling/config.json and modules.json as releases before 5 wrote them."""
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    config = {f"pooling_mode_{name}": name in flags for name in names}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **config, **more}))
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    "flags", [["cls_token"], ["mean_tokens", "lasttoken", "cls_token", "weightedmean_tokens"], [], ["max_tokens"]]
)
def test_older_files(saved, tmp_path, flags):
    """Flags in place of a pooling's name, other names of the modules, pickled layers, a folder for the model itself."""
    folder = tmp_path / "st"
    dense = modules.Dense(48 * max(1, len(flags)), 30)
    save(saved("bert"), folder, modules.Pooling(48, ["mean"] * max(1, len(flags))), dense, modules.Normalize())
    old_pooling(folder, flags=flags)
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
    torch.save(dense.state_dict(), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    check(st.SentenceTransformer(str(folder), device="cpu"), folder)
    (folder / "0_Transformer").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(folder / "0_Transformer" / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    llm = check(st.SentenceTransformer(str(folder), device="cpu"), folder)
    assert llm.embedding.max_tokens == 40


def test_without_modules_the_mean(saved):
    llm = fastllm.load(saved("bert"), threads=1, dtype="f32")
    assert llm.embedding == Embedding()
    assert (llm.embed(TEXTS) == llm.embed(TEXTS, pooling="mean", normalize=False)).all()


# ---- what is refused -------------------------------------------------------------------------------------------------


def listed(*types, paths=None):
    """A modules.json."""
    paths = paths or ["", *(f"{i}_Module" for i in range(1, len(types)))]
    entries = [
        {"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(zip(types, paths, strict=True))
    ]
    return json.dumps(entries)


NEW, OLD = "sentence_transformers.base.modules.transformer.Transformer", "sentence_transformers.models."
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
POOLED = {"1_Module/config.json": '{"embedding_dimension": 48}'}
LAYER = {**POOLED, "modules.json": listed(NEW, POOLING, OLD + "Dense")}
SIZE = '{"in_features": 48, "out_features": 20, "activation_function": '
REFUSED = {
    **{
        f"module {name}": ({"modules.json": listed(NEW, POOLING, OLD + name), **POOLED}, f"module {name}, which")
        for name in ("LSTM", "CNN", "WordWeights", "WeightedLayerPooling", "Router", "Asym", "BoW", "Whatever")
    },
    **{
        f"first {name}": ({"modules.json": listed(OLD + name)}, f"module {name}, which")
        for name in ("StaticEmbedding", "WordEmbeddings", "CLIPModel", "Router", "BERT")
    },
    "a module of the repository's own": ({"modules.json": listed(NEW, "own.Thing")}, "module own.Thing, which"),
    "another library's Dense": (
        {"modules.json": listed(NEW, "pylate.models.Dense.Dense")},
        "pylate.models.Dense.Dense",
    ),
    "many modules": ({"modules.json": listed(NEW, POOLING, *[OLD + "Normalize"] * 16)}, "17 modules after the first"),
    "no pooling": ({"modules.json": listed(NEW)}, "has 0 Pooling modules"),
    "two poolings": (
        {"modules.json": listed(NEW, POOLING, POOLING), **POOLED, "2_Module/config.json": "{}"},
        "has 2 Pooling modules",
    ),
    "a pooling without a config": ({"modules.json": listed(NEW, POOLING)}, "1_Module/config.json"),
    "an unknown pooling": ({**LAYER, "1_Module/config.json": '{"pooling_mode": ["mean", "median"]}'}, "median"),
    "poolings that are a number": ({**LAYER, "1_Module/config.json": '{"pooling_mode": 3}'}, "pooling 3"),
    "poolings that are none": ({**LAYER, "1_Module/config.json": '{"pooling_mode": []}'}, "pooling []"),
    "a layer without weights": (
        {**LAYER, "2_Module/config.json": SIZE + '"torch.nn.modules.activation.Tanh"}'},
        "no weights",
    ),
    "another activation": ({**LAYER, "2_Module/config.json": SIZE + '"torch.nn.modules.activation.Mish"}'}, "Mish"),
    "an activation of somebody's": ({**LAYER, "2_Module/config.json": SIZE + '"os.system"}'}, "os.system"),
    "no activation": ({**LAYER, "2_Module/config.json": SIZE + "null}"}, "None"),
    "a path out of the folder": (
        {"modules.json": listed(NEW, POOLING, paths=["", "../other"])},
        "not within the folder",
    ),
    "an absolute path": ({"modules.json": listed(NEW, POOLING, paths=["", "/etc"])}, "not within the folder"),
    "a drive": ({"modules.json": listed(NEW, POOLING, paths=["", "C:\\\\x"])}, "not within the folder"),
    "no list": ({"modules.json": "{}"}, "not a JSON list"),
    "no modules": ({"modules.json": "[]"}, "no modules"),
    "no JSON": ({"modules.json": "[{"}, "not JSON"),
    "a type of two lines": ({"modules.json": json.dumps([{"path": "", "type": "a\nb"}])}, "no type or no path"),
    "a module without a type": ({"modules.json": '[{"path": ""}]'}, "no type or no path"),
    "a late-interaction model": (
        {"config_sentence_transformers.json": '{"model_type": "MultiVectorEncoder"}'},
        "Multi",
    ),
    "a sparse model": ({"config_sentence_transformers.json": '{"model_type": "SparseEncoder"}'}, "SparseEncoder"),
    "a default prompt that is not there": (
        {"config_sentence_transformers.json": '{"prompts": {"a": "b"}, "default_prompt_name": "c"}'},
        "default prompt 'c' is none of 'a'",
    ),
    "a prompt that is a number": ({"config_sentence_transformers.json": '{"prompts": {"a": 1}}'}, "not a text"),
    "half a channel": ({"config_sentence_transformers.json": '{"truncate_dim": 1.5}'}, "truncate_dim 1.5"),
    "another output": ({"sentence_bert_config.json": '{"transformer_task": "fill-mask"}'}, "other outputs"),
    "chat messages": (
        {
            "sentence_bert_config.json": json.dumps(
                {
                    "modality_config": {
                        name: {"method": "forward", "method_output_name": "last_hidden_state"}
                        for name in ("text", "message")
                    },
                    "module_output_name": "token_embeddings",
                }
            )
        },
        "chat template",
    ),
    "another config": ({"sentence_bert_config.json": '{"config_args": {"is_causal": false}}'}, "'is_causal'"),
    "another tokenizer": (
        {"sentence_bert_config.json": '{"tokenizer_args": {"strip_accents": true}}'},
        "'strip_accents'",
    ),
    "no length": ({"sentence_bert_config.json": '{"max_seq_length": -3}'}, "-3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_vectors_are_asked_for(saved, tmp_path, case):
    """In one sentence, by name. The rest of the model works, and so do vectors with a pooling that is named."""
    files, said = REFUSED[case]
    folder = tmp_path / "st"
    shutil.copytree(saved("bert"), folder)
    for name, text in {"modules.json": listed(NEW, POOLING), **POOLED, **files}.items():
        if name != "1_Module/config.json" or case != "a pooling without a config":
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    llm = fastllm.load(folder, threads=1, dtype="f32")
    error = failure(lambda: llm.embed(["a"]))
    assert isinstance(error, fastllm.CheckpointError)
    assert said in str(error)
    assert "\n" not in str(error)
    plain = fastllm.load(saved("bert"), threads=1, dtype="f32")
    assert (llm.hidden_states([2, 5, 3]) == plain.hidden_states([2, 5, 3])).all()
    assert (llm.embed(["a"], pooling="last") == plain.embed(["a"], pooling="last")).all()
    convert(folder, tmp_path / "converted")
    again = fastllm.load(tmp_path / "converted", threads=1)
    assert str(failure(lambda: again.embed(["a"]))) == str(error)


def test_layers_that_do_not_fit(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), modules.Dense(48, 20))
    llm = fastllm.load(folder, threads=1)
    edit(folder / "2_Dense" / "config.json", out_features=21)
    assert "21 x 48 values" in str(failure(lambda: fastllm.load(folder).embed(["a"])))
    edit(folder / "2_Dense" / "config.json", out_features=20, bias=False)
    assert "not just linear.weight of" in str(failure(lambda: fastllm.load(folder).embed(["a"])))
    edit(folder / "2_Dense" / "config.json", bias=True)
    edit(folder / "1_Pooling" / "config.json", pooling_mode=["cls", "mean"])
    assert "a layer of its embedding takes 48 channels, not 96" in str(
        failure(lambda: fastllm.load(folder).embed(["a"]))
    )
    assert llm.embed(["a"], pooling="max").shape == (1, 20)


def test_a_first_module_that_is_none_of_ours_in_its_own_folder(tmp_path):
    (tmp_path / "modules.json").write_text(listed(OLD + "StaticEmbedding", paths=["0_StaticEmbedding"]))
    assert "of the module StaticEmbedding" in str(failure(lambda: fastllm.load(tmp_path)))


def test_a_cross_encoders_files_say_nothing_of_vectors(saved, tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(saved("bert"), folder)
    (folder / "modules.json").write_text(listed(NEW))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder", "prompts": {"a": "b"}}')
    plain = fastllm.load(saved("bert"), threads=1)
    assert (fastllm.load(folder, threads=1).embed(["a"]) == plain.embed(["a"])).all()


JUNK = [None, True, -1, 0, 1.5, 10**30, "", "mean", "../x", [], {}, [[]], {"a": {}}, "\0", ["cls", "cls"], [None]]


def mutated(value, rng):
    """A JSON value with something else somewhere."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = mutated(copy[key], rng)
        return copy
    return rng.choice(JUNK)


def test_files_with_something_else_in_them(saved, tmp_path):
    """Whatever stands there: a vector of a pooling that exists, or one sentence."""
    folder = tmp_path / "st"
    after = (modules.Pooling(48, include_prompt=False), modules.Dense(48, 48, use_residual=True), modules.Normalize())
    save(saved("bert"), folder, *after, prompts=PROMPTS, length=30, truncate_dim=20)
    edit(folder / "sentence_bert_config.json", max_seq_length=30, processing_kwargs={"text": {"max_length": 20}})
    edit(folder / "sentence_bert_config.json", do_lower_case=True, tokenizer_args={"model_max_length": 22})
    paths = [path for path in folder.rglob("*.json") if path.name not in ("config.json", "tokenizer.json")]
    paths += [*(folder / "1_Pooling").glob("*.json"), *(folder / "2_Dense").glob("*.json")]
    texts, rng, good = {path: path.read_text() for path in paths}, random.Random(0), 0
    for _ in range(250):
        path = rng.choice(paths)
        path.write_text(json.dumps(mutated(json.loads(texts[path]), rng)))
        vectors = []
        error = failure(lambda vectors=vectors: vectors.append(fastllm.load(folder, threads=1).embed(["the ocean"])))
        assert error is None or "\n" not in str(error)
        good += bool(vectors) and vectors[0].shape[0] == 1
        path.write_text(texts[path])
    assert 50 < good < 240


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("fields", []),
        ("fields", {"colour": 1}),
        ("right kind", {"max_tokens": "3"}),
        ("right kind", {"max_tokens": True}),
        ("right kind", {"pooling": [1]}),
        ("right kind", {"prompts": []}),
        ("right kind", {"include_prompt": 0}),
        ("not a text", {"prompts": {"a": 1}}),
        ("pooling", {"pooling": []}),
        ("pooling", {"pooling": ["median"]}),
        ("one pool", {"steps": ["dense"]}),
        ("one pool", {"steps": ["pool", "rm"]}),
        ("max_tokens", {"max_tokens": -1}),
        ("dimensions", {"dimensions": 1 << 40}),
        ("default prompt", {"default_prompt": "x"}),
    ],
)
def test_embeddings_that_cannot_be(said, data):
    assert said in str(failure(lambda: Embedding.from_json(data)))


# ---- options and the command line ------------------------------------------------------------------------------------


def test_options(saved, tmp_path):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), prompts=PROMPTS)
    llm = check(model, folder)
    assert llm.embedding.similarity == "cosine"
    states = llm.hidden_states(llm.tokenize("a"), 1)
    np.testing.assert_allclose(llm.embed(["a"], layer=1, pooling="last", normalize=False)[0], states[-1])
    ids = llm.tokenize("the ocean")
    assert (llm.embed([ids]) == llm.embed(["the ocean"])).all()
    for call, said in (
        (lambda: llm.embed(["a"], prompt="x", prompt_name="query"), "not by both"),
        (lambda: llm.embed(["a"], prompt_name="passage"), "no prompt 'passage': the model's are 'document', 'query'"),
        (lambda: llm.embed(["a", ids], prompt="x"), "text 1 is token ids"),
        (lambda: llm.embed(["a"], pooling="weightedmean"), "pooling must be one of mean, cls"),
    ):
        error = failure(call)
        assert isinstance(error, fastllm.OptionError)
        assert said in str(error)
    assert "are none" in str(failure(lambda: fastllm.load(saved("bert")).embed(["a"], prompt_name="query")))


def test_nothing_is_left_of_a_text_but_its_prompt(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("qwen3"), folder, modules.Pooling(48, include_prompt=False), prompts=PROMPTS)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(words))
    llm = fastllm.load(folder, threads=1)
    assert llm.embed(["the the"], prompt_name="query").shape == (1, 48)
    assert "text 1 has no tokens but its prompt's" in str(
        failure(lambda: llm.embed(["the the", ""], prompt_name="query"))
    )


def test_special_tokens_of_a_prompt(saved, tmp_path):
    """As in sentence-transformers; those that a text happens to spell are text here."""
    folder = tmp_path / "st"
    model = save(saved("qwen3"), folder, modules.Pooling(48), prompts={"query": "<|im_start|>query<|im_end|>to: "})
    check(model, folder, options={"prompt_name": "query"}, prompt_name="query")


def run(capfd, *arguments):
    code = cli.main(["embed", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command_line(saved, tmp_path, capfd):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), length=20, prompts=PROMPTS)
    short = ["the ocean", "a", "then then"]
    for options, theirs in (
        ((), {}),
        (("--prompt-name", "query"), {"prompt_name": "query"}),
        (("--prompt", "hello "), {"prompt": "hello "}),
        (("--pooling", "mean", "--normalize"), {}),
    ):
        code, found, _ = run(capfd, folder, *short, *options)
        assert code == 0
        np.testing.assert_allclose(found, model.encode(short, **theirs), rtol=0, atol=1e-4)
    code, found, _ = run(capfd, folder, "a", "--no-normalize")
    assert (code, abs(np.linalg.norm(found) - 1) > 1e-3) == (0, True)
    code, found, _ = run(capfd, folder, LONG, "--truncate")
    np.testing.assert_allclose(found, model.encode([LONG]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("at", [2, 300])
def test_a_long_line_is_named_after_those_before_it(saved, tmp_path, capfd, monkeypatch, at):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), length=20)
    lines = ["a", "the", ""] * 110
    lines[at] = LONG
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    code, found, err = run(capfd, folder)
    assert code == 2
    assert re.fullmatch(rf"fastllm: line {at + 1} has \d+ tokens, the model takes 20: --truncate cuts\n", err)
    np.testing.assert_allclose(found, fastllm.load(folder, threads=1).embed(lines[:at]), atol=1e-6)
    code, found, err = run(capfd, folder, "a", LONG)
    assert (code, len(found), err.startswith("fastllm: text 2 has ")) == (2, 1, True)
