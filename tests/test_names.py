"""What is on disk is named in many ways: prefixes, base classes, heads that are tied or not, tensors nothing uses."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import fastllm
import reference
import test_families_decoders as decoders
import test_families_encoders as encoders
import test_families_gpt as gpt
from conftest import failure
from fastllm.cli import main
from fastllm.config import Config
from fastllm.families import recipe
from fastllm.families.architectures import FAMILIES
from fastllm.families.names import Tensors, unused_sentence
from fastllm.formats import Checkpoint
from reference import torch, transformers

load_file, save_file = (getattr(pytest.importorskip("safetensors.torch"), name) for name in ("load_file", "save_file"))

IDS = reference.tokens(90, 24)

# One of each family, as the library saves it.
DECODERS = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 3}),
    "qwen2": ("Qwen2", {}),
    "qwen2_moe": ("Qwen2Moe", {**decoders.EXPERTS, "moe_intermediate_size": 9, "shared_expert_intermediate_size": 57}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3_moe": ("Qwen3Moe", {**decoders.EXPERTS, "moe_intermediate_size": 9, "head_dim": 12}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": ("Gemma2", {"head_dim": 12}),
    "gemma3": ("Gemma3Text", {"head_dim": 12}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "olmoe": ("Olmoe", decoders.EXPERTS),
    "granite": ("Granite", {}),
    "stablelm": ("StableLm", {"hidden_size": 64}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {}),
    "smollm3": ("SmolLM3", {}),
    "helium": ("Helium", {"head_dim": 10}),
}
GPT = {"gpt2": gpt.CASES["gpt2"], "gpt_neo": gpt.CASES["gpt_neo"], "gpt_neox": gpt.CASES["gpt_neox"]}
CAUSAL = [*DECODERS, *GPT]


def built(case, **more):
    """A causal language model with two layers."""
    if case in DECODERS:
        family, values = DECODERS[case]
        return decoders.build(family, **{**values, "num_hidden_layers": 2, **more})
    architecture, config, values = GPT[case]
    return gpt.built(architecture, config, {**values, **more})


def rewrite(folder, change):
    """Passes a folder's tensors through a function from dict to dict."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def load(folder):
    return fastllm.load(folder, dtype="f32", threads=1)


def theirs(folder, kind="AutoModelForCausalLM"):
    return getattr(transformers, kind).from_pretrained(folder, **reference.PLAIN).eval()


def same(found, expected):
    assert expected.std() > 0.05
    assert reference.difference(found, expected) < 1e-4


def last_hidden(model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


# ---- prefixes


@pytest.mark.parametrize("case", CAUSAL)
def test_a_base_model_s_folder(case, tmp_path):
    """...Model: hidden states; logits where the head is the embedding, as in transformers."""
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
    """Layers compiled or wrapped one by one; the head outside of what holds the rest."""
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
    """A policy with a value head, as training with rewards leaves it."""
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


HEADS = {"gpt_neox": "embed_out.weight"}


def embedding_of(tensors):
    return next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")))


@pytest.mark.parametrize("case", CAUSAL)
def test_a_tied_config_whose_file_has_a_head(case, tmp_path):
    """Another head counts; one that is the embedding again takes no memory; either alone is both."""
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
def test_an_untied_model_without_a_head_is_refused(case, tmp_path):
    """The library would draw one."""
    built(case, tie_word_embeddings=False).save_pretrained(tmp_path)
    head = HEADS.get(case, "lm_head.weight")
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != head})
    error = failure(lambda: load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert head in str(error)


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
        assert isinstance(failure(lambda: load(tmp_path)), fastllm.CheckpointError)


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
    "bert.pooler.dense.weight",
    "cls.seq_relationship.bias",
    "mtp.layers.0.mlp.up_proj.weight",
    "adam_m.lm_head.weight",
]
SAID = ["score.weight", "classifier.bias", "transformer.h.0.attn.c_attn.bias", "model.layers.9.attn.wbias", "prompt"]


def test_what_is_harmless_by_its_name():
    tensors = Tensors("", dict.fromkeys([*HARMLESS, *SAID]))
    assert tensors.unused() == tuple(SAID)


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


# ---- models that see as well


TEXT = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 57,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]}}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 16}


def seeing():
    t = transformers
    clip, siglip = t.CLIPVisionConfig(**decoders.VISION), t.SiglipVisionConfig(**decoders.VISION)
    pixtral = t.PixtralVisionConfig(**decoders.VISION)
    llama, qwen2 = t.LlamaConfig(**TEXT), t.Qwen2Config(**TEXT)
    mistral = t.MistralConfig(**TEXT, head_dim=20, sliding_window=None)
    gemma = t.Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=20)
    return {
        "Llava": t.LlavaConfig(text_config=llama, vision_config=clip),
        "LlavaNext": t.LlavaNextConfig(text_config=mistral, vision_config=clip),
        "LlavaOnevision": t.LlavaOnevisionConfig(text_config=qwen2, vision_config=siglip),
        "Mistral3": t.Mistral3Config(text_config=mistral, vision_config=pixtral, tie_word_embeddings=False),
        "Idefics3": t.Idefics3Config(text_config=llama, vision_config=dict(decoders.VISION), scale_factor=1),
        "SmolVLM": t.SmolVLMConfig(text_config=llama, vision_config=dict(decoders.VISION), scale_factor=1),
        "Qwen2VL": t.Qwen2VLConfig(
            text_config=TEXT | MROPE, vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 64}
        ),
        "Qwen2_5_VL": t.Qwen2_5_VLConfig(text_config=TEXT | MROPE, vision_config=QWEN_VISION),
        "Qwen3VL": t.Qwen3VLConfig(
            text_config=TEXT | MROPE | {"head_dim": 16}, vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]}
        ),
        "Qwen3VLMoe": t.Qwen3VLMoeConfig(
            text_config=TEXT | MROPE | decoders.EXPERTS | {"head_dim": 16, "moe_intermediate_size": 21},
            vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]},
        ),
        "Gemma3": t.Gemma3Config(text_config=gemma, vision_config=siglip),
    }


@pytest.mark.parametrize(
    "name",
    [
        "Llava",
        "LlavaNext",
        "LlavaOnevision",
        "Mistral3",
        "Idefics3",
        "SmolVLM",
        "Qwen2VL",
        "Qwen2_5_VL",
        "Qwen3VL",
        "Qwen3VLMoe",
        "Gemma3",
    ],
)
def test_a_model_that_sees_runs_as_its_language_model(name, tmp_path):
    model = reference.build(f"{name}ForConditionalGeneration", seeing()[name])
    model.save_pretrained(tmp_path)
    with pytest.warns(fastllm.CheckpointWarning, match=r"the vision tower \(\d+ tensors\) is left out$") as said:
        llm = load(tmp_path)
    assert len(said) == 1
    ids = reference.tokens(131, 90)
    same(llm.logits(ids), reference.logits(model, ids))
    # The base class of it, and the names that a model in memory has.
    model.model.save_pretrained(tmp_path / "base")
    with pytest.warns(fastllm.CheckpointWarning):
        base = load(tmp_path / "base")
    same(base.hidden_states(ids), last_hidden(model.model, ids))
    rewrite(tmp_path, lambda _: model.state_dict())
    with pytest.warns(fastllm.CheckpointWarning):
        assert np.array_equal(load(tmp_path).logits(ids), llm.logits(ids))


# ---- what configs leave out


KEYS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_seq",
    "rms_norm_eps": "norm_eps",
    "layer_norm_eps": "norm_eps",
    "layer_norm_epsilon": "norm_eps",
    "num_experts": "n_experts",
    "num_experts_per_tok": "n_experts_used",
    "moe_intermediate_size": "expert_dim",
}
SPECIAL = {  # another field there, or a value that the class computes later
    "mixtral": {"intermediate_size": "expert_dim"},
    "olmoe": {"intermediate_size": "expert_dim"},
    "qwen2_moe": {"intermediate_size": "", "shared_expert_intermediate_size": "hidden_dim"},
    "qwen3_moe": {"intermediate_size": ""},
    "qwen3_vl_moe_text": {"intermediate_size": ""},
    "gpt2": {"intermediate_size": ""},
    "gpt_neo": {"intermediate_size": ""},
}
TYPES = [name for name, (module, _) in FAMILIES.items() if module in (*decoders.MODULES, "gpt2", "gpt_neo", "gpt_neox")]
ENCODERS = ["bert", "roberta", "camembert", "xlm-roberta", "esm", "clip_text_model"]


class Found(Exception):  # noqa: N818  # it carries what was looked for
    pass


def configured(model_type, header, monkeypatch):
    """The Config of a family for a header, without a tensor of its."""

    def found(**values):
        raise Found(Config(**values))

    for module in ("llama", FAMILIES[model_type][0]):
        monkeypatch.setattr(import_module(f"fastllm.families.{module}"), "Config", found, raising=False)
    try:
        recipe(Checkpoint(Path("none"), "", model_type, header, dict.fromkeys(map(str, range(64)))))
    except Found as error:
        return error.args[0]
    raise AssertionError("no Config was made")


def default_of(model_type, **values):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**values)


@pytest.mark.parametrize("model_type", [*TYPES, *ENCODERS])
def test_defaults_are_those_of_the_class(model_type, monkeypatch):
    """A config of nothing but what the tensors would tell."""
    default = default_of(model_type)
    header = {"vocab_size": 8, "max_position_embeddings": default.max_position_embeddings}
    if model_type in TYPES and not model_type.startswith("gpt"):
        del header["max_position_embeddings"]
    ours = configured(model_type, header | {"n_positions": 1024}, monkeypatch)
    for key, field in (KEYS | SPECIAL.get(model_type, {})).items():
        if field and getattr(default, key, None) is not None:
            expected = getattr(default, key)
            if model_type in ("roberta", "camembert", "xlm-roberta", "esm") and field == "max_seq":
                expected -= 2
            assert getattr(ours, field) == expected, key
    assert ours.head_dim == (getattr(default, "head_dim", None) or default.hidden_size // default.num_attention_heads)


@pytest.mark.parametrize("model_type", TYPES)
def test_as_many_keys_as_heads_where_it_is_null(model_type, monkeypatch):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "n_embd": 48, "n_head": 6, "num_heads": 6}
    try:
        expected = default_of(model_type, num_key_value_heads=None, hidden_size=48, num_attention_heads=6)
    except Exception:
        pytest.skip("the class refuses it")
    shape = {"vocab_size": 8, "max_position_embeddings": 9, "n_positions": 9}
    ours = configured(model_type, {**shape, **sizes, "num_key_value_heads": None}, monkeypatch)
    assert ours.n_kv_heads == (getattr(expected, "num_key_value_heads", None) or 6)


@pytest.mark.parametrize("case", CAUSAL)
def test_a_vocabulary_that_the_config_does_not_know_is_the_embedding_s(case, tmp_path):
    model = built(case)
    model.save_pretrained(tmp_path)
    expected = load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": None}))
    assert load(tmp_path).config == expected.config


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["LLaMAForCausalLM"]},
        {
            "architectures": ["MyLlamaForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_x.MyLlamaForCausalLM"},
        },
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [3]},
        {"architectures": []},
        {"architectures": {}},
        {"architectures": ["LlamaForQuestionAnswering"]},
        {"pad_token_id": -1, "head_dim": None, "pretraining_tp": None, "rope_scaling": None, "mlp_bias": None},
        {"hidden_act": None, "attention_bias": None, "bos_token_id": None},
    ],
)
def test_old_and_odd_configs_of_a_llama(change, tmp_path):
    built("llama").save_pretrained(tmp_path)
    expected = load(tmp_path).logits(IDS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert np.array_equal(load(tmp_path).logits(IDS), expected)
