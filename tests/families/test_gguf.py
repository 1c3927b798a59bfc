"""GGUF's models compute what transformers computes with the same weights."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError, families
from fastllm.decoding import DEFAULTS, Sampling
from fastllm.formats import open_checkpoint
from fastllm.tensors import at, floats
from helpers.calls import failure
from helpers.families.gguf import MODELS, PLAIN, WIDE, model_of, write

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from helpers.reference import build, difference, greedy, logits, tokens  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and gguf


@pytest.mark.parametrize("name", MODELS)
def test_a_family_equals_transformers(tmp_path, name):
    model = model_of(name)
    path = tmp_path / "model.gguf"
    arch, _, _, said = MODELS[name]
    write(path, arch, model, **said)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 60 if name == "phi3_long" else 150)
    expected = logits(model, ids)
    assert expected.std() > 0.05
    assert difference(llm.logits(ids), expected) < 1e-4
    assert list(llm.generate(ids[:40], max_tokens=8, temperature=0)) == greedy(model, ids[:40], 8)


def test_sampling(tmp_path, monkeypatch):
    """The sampler parameters that llama.cpp's converter takes from generation_config.json."""
    close = gguf.GGUFWriter.write_header_to_file

    def with_sampling(writer):
        writer.add_sampling_temp(0.5)
        writer.add_sampling_top_k(20)
        writer.add_sampling_min_p(0.25)
        writer.add_sampling_penalty_repeat(1.5)
        writer.add_sampling_penalty_last_n(64)
        close(writer)

    path = tmp_path / "model.gguf"
    write(path, "qwen3", model_of("qwen3"), **MODELS["qwen3"][3])
    assert fastllm.load(path, threads=1).defaults == DEFAULTS
    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_sampling)
    write(path, "qwen3", model_of("qwen3"), **MODELS["qwen3"][3])
    expected = Sampling(temperature=0.5, top_k=20, min_p=0.25, repetition_penalty=1.5, top_p=1)
    assert fastllm.load(path, threads=1).defaults == expected


POOLINGS = {None: "mean", 0: "mean", 1: "mean", 2: "cls", 3: "last"}


@pytest.mark.parametrize("number", POOLINGS)
def test_poolings(tmp_path, number):
    model, path = model_of("qwen3"), tmp_path / "model.gguf"
    said = {} if number is None else {"pooling_type": number}
    write(path, "qwen3", model, **MODELS["qwen3"][3], **said)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 30)
    states = llm.hidden_states(ids)
    expected = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[POOLINGS[number]]
    np.testing.assert_allclose(llm.embed([ids])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("number", "what"), [(4, "a reranker"), (9, "a model")])
def test_a_pooling_that_makes_no_vectors(tmp_path, number, what):
    model, path = model_of("qwen3"), tmp_path / "model.gguf"
    write(path, "qwen3", model, **MODELS["qwen3"][3], pooling_type=number)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 30)
    error = failure(lambda: llm.embed([ids]))
    assert f"is {what} with pooling_type {number}" in str(error)
    assert llm.embed([ids], pooling="last").shape == (1, 48)
    assert difference(llm.logits(ids), logits(model, ids)) < 1e-4


@pytest.mark.parametrize("arch", ["gemma-embedding", "gemma3"])
def test_embedding_gemma(tmp_path, arch):
    """Bidirectional attention, windows in five of six layers, two dense layers: files of llama.cpp and of Ollama."""
    sizes = {**PLAIN, **MODELS["gemma3"][2], "use_bidirectional_attention": True}
    model, path = build("Gemma3TextModel", transformers.Gemma3TextConfig(**sizes)), tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal(shape, np.float32) for shape in ((70, 48), (48, 70))]
    names = ["dense_2.weight", "dense_3.weight"] if arch != "gemma3" else ["dense.0.weight", "dense.1.weight"]
    write(path, arch, model, dict(zip(names, layers, strict=True)), **MODELS["gemma3"][3], pooling_type=1)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 100)
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert difference(llm.hidden_states(ids), states) < 1e-4
    expected = layers[1] @ (layers[0] @ states.mean(axis=0))
    assert difference(llm.embed([ids])[0], expected) < 1e-4


def test_a_decoder_without_causality_is_refused(tmp_path):
    write(tmp_path / "model.gguf", "qwen3", model_of("qwen3"), **MODELS["qwen3"][3], attention__causal=False)
    assert "is_causal False" in str(failure(lambda: fastllm.load(tmp_path / "model.gguf")))


def test_longrope_beyond_its_original_context(tmp_path):
    model = model_of("phi3_long")
    write(tmp_path / "model.gguf", "phi3", model, **MODELS["phi3_long"][3])
    llm = fastllm.load(tmp_path / "model.gguf", dtype="f32", threads=1, context=256)
    ids = tokens(97, 150)
    assert difference(llm.logits(ids), logits(model, ids)) < 1e-4


def test_bert(tmp_path):
    c = transformers.BertConfig(**WIDE, max_position_embeddings=64)
    model = build("BertModel", c)
    write(tmp_path / "model.gguf", "bert", model, attention__layer_norm_epsilon=1e-12, attention__causal=False)
    one, other = (families.recipe(open_checkpoint(tmp_path / name)) for name in ("model.gguf", "hf"))
    assert one.config._replace(norm_eps=0.0) == other.config._replace(norm_eps=0.0)
    assert one.vectors.keys() == other.vectors.keys()
    assert all(bytes(one.vectors[name]) == bytes(other.vectors[name]) for name in one.vectors)
    assert one.matrices.keys() == other.matrices.keys()
    for name, weight in one.matrices.items():
        assert (floats(weight.tensor) == floats(other.matrices[name].tensor)).all()


def test_experts_that_are_tensors_of_their_own(tmp_path):
    """A tensor for each expert, as in Mixtral's first GGUF files."""
    model = model_of("mixtral")
    write(tmp_path / "model.gguf", "llama", model, **MODELS["mixtral"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    tensors = {}
    for name, tensor in found.tensors.items():
        if "_exps" in name:
            tensors |= {name.replace("_exps", f".{i}"): at(tensor, i) for i in range(5)}
        else:
            tensors[name] = tensor
    apart, together = (families.recipe(c).matrices for c in (found._replace(tensors=tensors), found))
    for name, weight in apart.items():
        assert (floats(weight.tensor) == floats(together[name].tensor)).all()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("llama.attention.head_count", [4, 4, 2], "differs between layers"),
        ("llama.rope.dimension_count", 6, "rope.dimension_count"),
        ("llama.rope.scaling.type", "su", "rotary scaling"),
        ("llama.block_count", None, "block_count"),
        ("llama.block_count", 4, "layers.3."),
        ("llama.embedding_length", "many", "embedding_length"),
    ],
)
def test_settings_that_cannot_be(tmp_path, key, value, word):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=re.escape(word)):
        families.recipe(found._replace(header={**found.header, key: value}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """An opened GGUF file of each model, by name."""
    found = {}
    for name in ("llama", "mixtral", "gemma3", "phi3_long", "stablelm_12b", "gpt2", "gptneox", "granite"):
        path = tmp_path_factory.mktemp(name) / "model.gguf"
        write(path, MODELS[name][0], model_of(name), **MODELS[name][3])
        found[name] = open_checkpoint(path)
    return found


VALUES = [
    None,
    True,
    0,
    1,
    2,
    3,
    6,
    -1,
    1 << 16,
    1 << 20,
    1 << 31,
    1 << 63,
    0.0,
    1e308,
    -1.0,
    float("nan"),
    "x",
    [],
    [1, 2],
]


@settings(max_examples=200)
@given(st.data())
def test_settings_that_are_anything(checkpoints, data):
    """Any settings give a recipe or one of our errors, soon, and without more memory than the file's size."""
    found = checkpoints[data.draw(st.sampled_from(sorted(checkpoints)))]
    keys = st.sampled_from(sorted(found.header.keys() - {"general.architecture"}))
    header = found.header | data.draw(st.dictionaries(keys, st.sampled_from(VALUES), min_size=1, max_size=3))
    lost = data.draw(st.sets(st.sampled_from(sorted(found.tensors)), max_size=2))
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in lost}
    error = failure(lambda: families.recipe(found._replace(header=header, tensors=tensors)))
    assert error is None or "\n" not in str(error)


def test_how_the_first_files_scale_positions(tmp_path):
    """The first files have a key of their own for the rotary scaling; a factor without a kind is linear."""
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")

    def freqs(**scaling):
        header = {**found.header, **{f"llama.rope.{key}": value for key, value in scaling.items()}}
        return np.frombuffer(families.recipe(found._replace(header=header)).vectors["rope.freqs"], np.float32)

    expected = freqs(**{"scaling.type": "linear", "scaling.factor": 4.0})
    assert np.allclose(expected, freqs() / 4)
    assert (freqs(scale_linear=4.0) == expected).all()
    assert (freqs(**{"scaling.factor": 4.0}) == expected).all()
    for nothing in ({"scaling.type": "linear"}, {"scaling.type": "none", "scaling.factor": 4.0}, {"scale_linear": 0.0}):
        assert (freqs(**nothing) == freqs()).all()


def test_the_same_setting_for_each_layer(tmp_path):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    listed = found._replace(header={**found.header, "llama.attention.head_count_kv": [2, 2, 2]})
    assert families.recipe(listed).config == families.recipe(found).config


@pytest.mark.parametrize(
    ("more", "bos", "stop"),
    [
        ({"bos_token_id": 3, "eos_token_id": 5}, 3, (5,)),
        ({"bos_token_id": 3, "eos_token_id": 5, "eot_token_id": 7}, 3, (5, 7)),
        ({"bos_token_id": 3, "eos_token_id": 5, "eot_token_id": 5, "add_bos_token": False}, None, (5,)),
        ({}, None, ()),
    ],
)
def test_where_texts_begin_and_end(tmp_path, more, bos, stop):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    header = {**found.header, **{f"tokenizer.ggml.{key}": value for key, value in more.items()}}
    recipe = families.recipe(found._replace(header=header))
    assert (recipe.bos, recipe.stop) == (bos, stop)


def test_two_formats_of_one_model_are_equal_to_the_bit(tmp_path):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    one, other = (fastllm.load(tmp_path / name, dtype="f32", threads=1) for name in ("model.gguf", "hf"))
    ids = tokens(97, 100)
    assert (one.logits(ids) == other.logits(ids)).all()
