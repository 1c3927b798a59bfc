"""Folders of sentence-transformers that are broken, or whose modules are not built: each is refused in one sentence."""

import json
import random
import shutil

import pytest

import fastllm
from fastllm.heads import Embedding
from fastllm.weights.convert import convert
from helpers.calls import failure
from helpers.families.sentence_transformers import PROMPTS, edit, listed, save

st = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer import modules  # noqa: E402

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
    """The module is named in one sentence. All else of the model works, and so do vectors with an explicit pooling."""
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
    """A copy of a JSON value with one random part replaced."""
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
    """With any part of the files replaced, the model gives vectors or an error of one sentence."""
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
