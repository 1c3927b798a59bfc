"""The many ways to name tensors in files: prefixes, base classes, tied heads, and tensors that nothing uses."""

import json

import numpy as np
import pytest

import fastllm
from fastllm.cli import main
from fastllm.families.names import Tensors, unused_sentence
from fastllm.tensors import Tensor, equal
from helpers import reference
from helpers.calls import failure
from helpers.families import encoders
from helpers.families.folders import CAUSAL, IDS, built, last_hidden, load, rewrite, same, theirs
from helpers.reference import torch

load_file, save_file = (getattr(pytest.importorskip("safetensors.torch"), name) for name in ("load_file", "save_file"))


# ---- prefixes


@pytest.mark.parametrize("case", CAUSAL)
def test_a_base_model_s_folder(case, tmp_path):
    """A folder of the class ...Model gives hidden states, and logits if the head is tied, as in transformers."""
    model = built(case)
    inner = model.base_model
    inner.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(inner).__name__]
    llm = load(tmp_path)
    same(llm.hidden_states(IDS), last_hidden(inner))
    assert llm.config.head == model.config.tie_word_embeddings
    if llm.config.head:
        same(llm.logits(IDS), reference.logits(theirs(tmp_path), IDS))
    else:
        assert "head" in str(failure(lambda: llm.logits(IDS)))


@pytest.mark.parametrize("case", CAUSAL)
def test_the_base_model_s_names_under_the_causal_class(case, tmp_path):
    model = built(case, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {name.partition(".")[2]: t for name, t in tensors.items()})
    same(load(tmp_path).logits(IDS), reference.logits(model, IDS))


PREFIXES = [
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "model.",
    "module._orig_mod.",
    "anything.at.all.",
    "language_model.",
    "_fsdp_wrapped_module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "bert", "roberta", "esm"])
def test_wrappers_around_the_model(case, prefix, tmp_path):
    encoder = {"bert": "bert, masked tokens", "roberta": "roberta, masked tokens", "esm": "esm-2, masked tokens"}
    model = encoders.built(encoder[case])[0] if case in encoder else built(case)
    model.save_pretrained(tmp_path)
    expected = load(tmp_path)
    rewrite(tmp_path, lambda tensors: {prefix + name: t for name, t in tensors.items()})
    assert np.array_equal(load(tmp_path).logits(IDS), expected.logits(IDS))


def test_wrappers_inside_and_around_a_part(tmp_path):
    """Layers that were wrapped one by one, and a head outside of the module that holds the rest."""
    built("llama").save_pretrained(tmp_path)
    expected = load(tmp_path).logits(IDS)

    def change(tensors):
        names = {name: name.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module.") for name in tensors}
        return {
            f"language_model.{names[name]}".replace("language_model.lm_head", "lm_head"): tensors[name]
            for name in names
        }

    rewrite(tmp_path, change)
    assert np.array_equal(load(tmp_path).logits(IDS), expected)


def test_a_wrapper_beside_other_parts(tmp_path):
    """A policy with a value head, as reinforcement learning leaves it."""
    model = built("llama")
    model.save_pretrained(tmp_path)
    rewrite(
        tmp_path, lambda tensors: {f"policy.{name}": t for name, t in tensors.items()} | {"v.weight": torch.ones(3)}
    )
    with pytest.warns(fastllm.CheckpointWarning, match=r"nothing uses its tensor v\.weight"):
        llm = load(tmp_path)
    same(llm.logits(IDS), reference.logits(model, IDS))


def test_two_tensors_that_fit_are_an_error(tmp_path):
    built("llama").save_pretrained(tmp_path)

    def change(tensors):
        twice = {f"module.{name}": t for name, t in tensors.items() if ".q_proj." in name}
        return {f"language_model.{name}": t for name, t in tensors.items()} | twice

    rewrite(tmp_path, change)
    error = failure(lambda: load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert "twice" in str(error)
    assert "module.model.layers.0.self_attn.q_proj.weight" in str(error)


def test_an_exact_name_comes_before_others(tmp_path):
    model = built("llama")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {f"module.{n}": t + 1 for n, t in tensors.items() if "q_proj" in n})
    with pytest.warns(fastllm.CheckpointWarning, match=r"module\.model\.layers"):
        llm = load(tmp_path)
    same(llm.logits(IDS), reference.logits(model, IDS))


def test_names_without_a_dot():
    tensors = Tensors("", {"weight": None, "x": None})
    assert "weight" in tensors
    assert "model.weight" in tensors
    assert "model.y" not in tensors
    assert "y" not in Tensors("", {})


# ---- heads


def test_tensors_are_equal_in_any_type_and_compared_as_far_as_they_are():
    read = []

    def tensor(values, dtype):
        def rows(begin, end):
            read.append(begin)
            return np.ascontiguousarray(values[begin:end])

        return Tensor(dtype, values.shape, rows)

    values = np.arange(300_000, dtype=np.float32).reshape(3, -1) % 1000
    other = values.copy()
    other[2, -1] += 1
    assert equal(tensor(values, "f32"), tensor(values.copy(), "f32"))
    assert equal(tensor(values, "f32"), tensor(values.astype(np.float16), "f16"))
    assert not equal(tensor(values, "f32"), tensor(other, "f32"))
    assert not equal(tensor(values, "f32"), tensor(values.reshape(-1), "f32"))
    read.clear()
    assert not equal(tensor(values + 1, "f32"), tensor(values, "f32"))
    assert set(read) == {0}


HEADS = {"gpt_neox": "embed_out.weight"}


def embedding_of(tensors):
    return next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")))


@pytest.mark.parametrize("case", CAUSAL)
def test_a_tied_config_whose_file_has_a_head(case, tmp_path):
    """A tied config: a head that differs is used, an equal one takes no memory, a head alone is also the embedding."""
    built(case, tie_word_embeddings=True).save_pretrained(tmp_path)
    head, original = HEADS.get(case, "lm_head.weight"), load_file(tmp_path / "model.safetensors")
    embed = embedding_of(original)
    torch.manual_seed(1)
    other = torch.randn_like(original[embed])
    plain = load(tmp_path)
    changes = {
        "other": original | {head: other},
        "same": original | {head: original[embed]},
        "head alone": {name: t for name, t in original.items() if name != embed} | {head: original[embed]},
    }
    for name, tensors in changes.items():
        rewrite(tmp_path, lambda _, tensors=tensors: tensors)
        llm = load(tmp_path)
        same(llm.logits(IDS), reference.logits(theirs(tmp_path), IDS))
        assert (llm.file_bytes > plain.file_bytes) == (name == "other")


@pytest.mark.parametrize("case", CAUSAL)
def test_an_untied_model_without_a_head_has_vectors_only(case, tmp_path):
    """transformers would make a random head. Many models for vectors are like this: a causal class without a head."""
    model = built(case, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    head = HEADS.get(case, "lm_head.weight")
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != head})
    llm = load(tmp_path)
    error = failure(lambda: llm.logits(IDS))
    assert isinstance(error, fastllm.OptionError)
    assert "has no head" in str(error)
    with torch.no_grad():
        same(llm.hidden_states(IDS), model.base_model(torch.tensor([IDS])).last_hidden_state[0].numpy())


@pytest.mark.parametrize("case", CAUSAL)
def test_whether_a_head_is_tied_where_the_config_does_not_say(case, tmp_path):
    model = built(case, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if type(model.config)().tie_word_embeddings:
        same(load(tmp_path).logits(IDS), reference.logits(model, IDS))
    else:
        assert "has no head" in str(failure(lambda: load(tmp_path).logits(IDS)))


@pytest.mark.parametrize(
    ("case", "head"),
    [
        ("bert, masked tokens", "cls.predictions.decoder"),
        ("roberta, masked tokens", "lm_head.decoder"),
        ("esm-2, masked tokens", "lm_head.decoder"),
    ],
)
def test_an_encoder_s_head(case, head, tmp_path):
    model, _ = encoders.built(case)
    model.save_pretrained(tmp_path)
    original = load_file(tmp_path / "model.safetensors")
    embed = original[next(name for name in original if name.endswith("word_embeddings.weight"))]
    torch.manual_seed(1)
    more = {f"{head}.weight": torch.randn_like(embed)}
    if not case.startswith("esm"):
        more[f"{head}.bias"] = torch.randn(len(embed))
    for extra in (more, {f"{head}.weight": embed}):
        rewrite(tmp_path, lambda _, extra=extra: original | extra)
        expected = encoders.run(theirs(tmp_path, "AutoModelForMaskedLM"), [encoders.text(30)])[2][0]
        same(load(tmp_path).logits(encoders.text(30)), expected)
    dense = next(name for name in original if name.endswith(("transform.dense.weight", "lm_head.dense.weight")))
    rewrite(tmp_path, lambda _: {name: t for name, t in original.items() if name != dense})
    assert dense in str(failure(lambda: load(tmp_path)))


# ---- biases, and what nothing uses


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "model.layers.1.mlp.up_proj.bias"),
        ("llama", "model.norm.bias"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.k_proj.bias"),
        ("phi3", "model.layers.0.mlp.down_proj.bias"),
        ("stablelm", "model.layers.0.self_attn.q_proj.bias"),
        ("cohere", "model.layers.0.input_layernorm.bias"),
        ("helium", "model.layers.1.self_attn.o_proj.bias"),
        ("gpt_neo", "transformer.h.0.attn.attention.q_proj.bias"),
        ("mistral", "lm_head.bias"),
        ("llama", "model.layers.2.mlp.up_proj.weight"),
    ],
)
def test_what_the_architecture_has_not_is_not_used_but_said(case, extra, tmp_path):
    model = built(case)
    model.save_pretrained(tmp_path)
    values = load_file(tmp_path / "model.safetensors").get(extra.replace("bias", "weight"), torch.zeros(4))
    rewrite(tmp_path, lambda tensors: tensors | {extra: torch.full((len(values),), 3.0)})
    with pytest.warns(fastllm.CheckpointWarning, match=f"nothing uses its tensor {extra}") as said:
        llm = load(tmp_path)
    assert len(said) == 1
    same(llm.logits(IDS), reference.logits(theirs(tmp_path), IDS))


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "bert"])
def test_a_bias_that_is_missing_is_named(case, tmp_path):
    model = (
        encoders.built("bert")[0]
        if case == "bert"
        else built(case, **({"attention_bias": True} if case == "llama" else {}))
    )
    model.save_pretrained(tmp_path)
    original = load_file(tmp_path / "model.safetensors")
    for name in [name for name in original if name.endswith(".bias") and "pooler" not in name]:
        rewrite(tmp_path, lambda _, name=name: {n: t for n, t in original.items() if n != name})
        assert name.split(".", 1)[1] in str(failure(lambda: load(tmp_path))), name


HARMLESS = [
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "transformer.h.0.attn.bias",
    "transformer.h.0.attn.masked_bias",
    "transformer.h.0.attn.attention.bias",
    "bert.embeddings.position_ids",
    "esm.embeddings.position_embeddings.weight",  # of a model with rotary positions
    "rope.freqs",  # in Meta's files
    "bert.pooler.dense.weight",
    "cls.seq_relationship.bias",
    "mtp.layers.0.mlp.up_proj.weight",
    "adam_m.lm_head.weight",
]
SAID = ["score.weight", "classifier.bias", "transformer.h.0.attn.c_attn.bias", "model.layers.9.attn.wbias", "prompt"]


def test_what_is_harmless_by_its_name():
    one = Tensor("f32", (1,), lambda begin, end: b"\0\0\x80\x3f")
    tensors = Tensors("", dict.fromkeys([*HARMLESS, *SAID], one))
    assert tensors.unused() == tuple(SAID)


def test_a_bias_of_zeros_adds_nothing(tmp_path):
    """AutoGPTQ adds a bias of zeros to every matrix that it quantizes."""
    built("llama").save_pretrained(tmp_path)
    expected = load(tmp_path).logits(IDS)
    rewrite(tmp_path, lambda tensors: tensors | {"model.layers.0.mlp.up_proj.bias": torch.zeros(57).half()})
    assert np.array_equal(load(tmp_path).logits(IDS), expected)  # and without a warning


def test_the_sentence_is_a_line_whatever_the_names_are():
    text = unused_sentence("folder", ["a\nb\x1b[31m", "c" * 5000])
    assert text.isprintable()
    assert len(text) < 300


def test_the_sentence_is_short():
    many = [f"model.layers.{i}.extra" for i in range(10_000)]
    towers = [f"model.vision_tower.layers.{i}.weight" for i in range(5000)] + ["audio_tower.conv.weight"]
    text = unused_sentence("folder", [*many, *towers])
    assert len(text) < 250
    for words in (
        "folder: the vision tower (5,000 tensors)",
        "the audio tower (1 tensor)",
        "layers.2.extra and 9,997 more",
    ):
        assert words in text


def test_the_command_line_says_it_once_in_a_line(tmp_path, capfd):
    built("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"extra.weight": torch.zeros(3)})
    out = tmp_path.parent / f"{tmp_path.name}.safetensors"
    assert main(["convert", str(tmp_path), str(out), "--verify"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "extra" in line] == [f"fastllm: {tmp_path}: nothing uses its tensor extra.weight"]
    assert not [line for line in lines if "Warning" in line]
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("bytes  unused")] == ["extra.weight"]
    assert main(["inspect", str(out)]) == 0
    assert "unused" not in capfd.readouterr().out


def test_inspect_shows_what_cannot_be_run_as_well(tmp_path, capfd):
    built("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Lllama9ForCausalLM"]}))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "model.embed_tokens.weight" in out
    assert "cannot be run: " in out.splitlines()[-1]
    assert "the nearest are llama" in out.splitlines()[-1]


# ---- what classes promise and files do not hold, and matrices that are several


@pytest.mark.parametrize("case", ["bert, masked tokens", "roberta, masked tokens", "esm-2, masked tokens"])
@pytest.mark.parametrize("task", ["MaskedLM", "SequenceClassification", "TokenClassification"])
def test_an_encoder_whose_class_has_a_head_that_its_file_has_not(case, task, tmp_path):
    model, _ = encoders.built(case)
    model.base_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [config["architectures"][0].removesuffix("Model") + f"For{task}"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids, llm = encoders.text(20), load(tmp_path)
    with torch.no_grad():
        same(llm.hidden_states(ids), model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy())
    assert "no head" in str(failure(lambda: llm.logits(ids)))
    assert "no head for classify" in str(failure(lambda: llm.classify([ids])))


@pytest.mark.parametrize(("key", "name"), [("num_attention_heads", "qkv"), ("intermediate_size", "gate_up")])
def test_a_matrix_that_is_several_has_no_rows_left(key, name, tmp_path):
    built("phi3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    config[key] //= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "rows" in str(failure(lambda: load(tmp_path)))
