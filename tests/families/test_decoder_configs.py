"""Decoders' config.json: old forms mean what they meant, and wrong configs and tensors are refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import _core
from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.tensors import Tensor, columns, part
from fastllm.weights.packing import assemble, plan
from helpers.calls import failure
from helpers.families.decoders import CASES, EXPERTS, LLAMA3, LONG, SLIDING, build, edit, rope, same_recipe
from helpers.reference import transformers


def test_gemma3_configs_leave_out_what_is_usual(checkpoints):
    """A config with only what differs from the class's defaults, as the published ones are."""
    sparse = {"hidden_size": 40, "intermediate_size": 57, "num_hidden_layers": 7, "sliding_window": 1024}
    sparse["vocab_size"] = 262208
    sparse["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    whole = transformers.Gemma3TextConfig(**sparse).to_dict()
    checkpoint = checkpoints["Gemma3Text"]
    names = {name.replace("layers.0", f"layers.{i}"): t for name, t in checkpoint.tensors.items() for i in range(7)}
    ours, full = (recipe(checkpoint._replace(header=header, tensors=Wide(names))) for header in (sparse, whole))
    same_recipe(ours, full)
    assert (ours.config.head_dim, ours.config.vocab_size) == (whole["head_dim"], whole["vocab_size"])
    assert [w > 0 for w in ours.config.windows] == [kind == "sliding_attention" for kind in whole["layer_types"]]


class Wide(dict):
    """Tensors whose norms of queries and keys have 256 channels, Gemma 3's default head_dim."""

    def __getitem__(self, name):
        tensor = super().__getitem__(name)
        if not name.endswith(("q_norm.weight", "k_norm.weight")):
            return tensor
        return Tensor("f32", (256,), lambda begin, end: np.ones(256, np.float32))


# ---- what configs say


OLD_FORMS = {
    "theta": ("Llama", rope({}, rope_theta=5000.0), {"rope_theta": 5000.0}),
    "linear": (
        "Llama",
        rope({"rope_type": "linear", "factor": 3.0}),
        {"rope_scaling": {"type": "linear", "factor": 3}},
    ),
    "llama3": ("Llama", rope(LLAMA3, rope_theta=5e5), {"rope_theta": 500000, "rope_scaling": LLAMA3}),
    "partial": ("StableLm", rope({}, partial_rotary_factor=0.6), {"partial_rotary_factor": 0.6}),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 12,
            "layer_types": SLIDING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        {"rope_theta": 1000000, "rope_local_base_freq": 5000, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_rotary_parameters_as_they_were_written_before_transformers_5(form, tmp_path):
    family, new, old = OLD_FORMS[form]
    build(family, **new).save_pretrained(tmp_path)
    made = recipe(open_checkpoint(tmp_path))
    edit(tmp_path, rope_parameters=None, **old)
    same_recipe(recipe(open_checkpoint(tmp_path)), made)


PATTERNS = {
    "gemma2": ("Gemma2", {"head_dim": 12}, {}),
    "gemma3": ("Gemma3Text", {"head_dim": 12, "num_hidden_layers": 7}, {}),
    "gemma3 pattern": ("Gemma3Text", {"head_dim": 12, "sliding_window_pattern": 2}, {"sliding_window_pattern": 2}),
    "gemma3 pattern beside another version's": (
        "Gemma3Text",
        {"head_dim": 12, "sliding_window_pattern": 2},
        {"sliding_window_pattern": 2, "_sliding_window_pattern": 3},
    ),
    "cohere2": ("Cohere2", {"num_hidden_layers": 5}, {}),
    "cohere2 pattern": ("Cohere2", {"sliding_window_pattern": 3}, {"sliding_window_pattern": 3}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 2}, {}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "moe_intermediate_size": 9, "use_sliding_window": True}, {}),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_layers_with_a_window_are_those_of_the_library(pattern, tmp_path):
    """Older configs have no layer_types: each family has a rule for which layers have a window."""
    family, values, old = PATTERNS[pattern]
    build(family, **{"shared_expert_intermediate_size": 57, **values}).save_pretrained(tmp_path)
    made = recipe(open_checkpoint(tmp_path))
    assert 0 < sum(w > 0 for w in made.config.windows) <= made.config.n_layers
    edit(tmp_path, layer_types=None, **{"_sliding_window_pattern": None, **old})
    same_recipe(recipe(open_checkpoint(tmp_path)), made)


def test_tokens_that_end_and_begin_a_text(tmp_path):
    build("Llama").save_pretrained(tmp_path)
    edit(tmp_path, bos_token_id=3, eos_token_id=5)
    made = recipe(open_checkpoint(tmp_path))
    assert (made.bos, made.stop, made.chat_stop) == (3, (5,), (5,))
    edit(tmp_path, "generation_config.json", eos_token_id=[7, 9])
    assert recipe(open_checkpoint(tmp_path)).stop == (7, 9)
    build("Qwen2").save_pretrained(tmp_path)
    edit(tmp_path, bos_token_id=3)
    assert recipe(open_checkpoint(tmp_path)).bos is None  # Qwen's texts do not begin with BOS


# ---- wrong


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of each family, with one layer, by the name of the family."""
    found = {}
    for family, values in CASES.values():
        if family not in found:
            per_layer = ("num_hidden_layers", "layer_types", "no_rope_layers")
            folder = tmp_path_factory.mktemp(family)
            kept = {key: value for key, value in values.items() if key not in per_layer}
            build(family, **kept, num_hidden_layers=1).save_pretrained(folder)
            found[family] = open_checkpoint(folder)
    return found


def with_header(checkpoint, **values):
    header = {key: value for key, value in {**checkpoint.header, **values}.items() if value is not None}
    return checkpoint._replace(header=header)


def test_an_unknown_family_names_those_that_are_like_it(checkpoints):
    wrong = checkpoints["Llama"]._replace(architecture="Qwen33ForCausalLM", header={"model_type": "qwen33"})
    error = failure(lambda: recipe(wrong))
    assert "'Qwen33ForCausalLM'" in str(error)
    assert "qwen3" in str(error)
    assert "gemma" not in str(error)


@pytest.mark.parametrize("family", sorted({family for family, _ in CASES.values()}))
def test_a_missing_tensor_is_named(family, checkpoints):
    checkpoint = checkpoints[family]
    for name in checkpoint.tensors:
        rest = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
        if name == "lm_head.weight":  # a model without a head can still embed
            assert not recipe(checkpoint._replace(tensors=rest)).config.head
            continue
        error = failure(lambda rest=rest: plan(recipe(checkpoint._replace(tensors=rest)), "f32"))
        assert isinstance(error, fastllm.CheckpointError), name
        assert str(checkpoint.path) in str(error)
        assert name in str(error)


@pytest.mark.parametrize("family", sorted({family for family, _ in CASES.values()}))
def test_a_tensor_that_is_too_narrow_or_too_short_is_refused(family, checkpoints):
    checkpoint = checkpoints[family]
    for name, tensor in checkpoint.tensors.items():
        wrong = [columns(tensor, 0, tensor.width - 1)]
        if len(tensor.shape) == 2:
            wrong.append(part(tensor, 0, tensor.rows - 1))
        for less in wrong:
            tensors = {**checkpoint.tensors, name: less}
            error = failure(lambda tensors=tensors: bound(checkpoint._replace(tensors=tensors)))
            assert isinstance(error, fastllm.CheckpointError), (name, less.shape)


def bound(checkpoint):
    """The core's model of a checkpoint, for which the core checks all tensors."""
    stored = assemble(recipe(checkpoint), dtype="f32", threads=1)
    return _core.Model(stored.config, dict(stored.tensors))


WRONG = {
    "a missing key": ("Llama", {"hidden_size": None}, "needs (40, 4096)"),
    "a missing key without a default": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        "no number low_freq_factor",
    ),
    "an activation": ("Llama", {"hidden_act": "mish"}, "'mish'"),
    "a scaling": ("Llama", {"rope_parameters": {"rope_type": "spiral"}}, "'spiral'"),
    "a scaling without its factor": ("Llama", {"rope_parameters": {"rope_type": "linear"}}, "no number factor"),
    "a scaling by nothing": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "without end"),
    "a theta below zero": ("Llama", {"rope_parameters": {"rope_theta": -1.0}}, "rope_theta -1"),
    "a partial rotation": ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "rotations by layer": ("Llama", {"rope_parameters": {"full_attention": {}}}, "each type of layer"),
    "heads that do not divide": ("Llama", {"num_attention_heads": 3, "head_dim": None}, "3 attention heads"),
    "kv heads that do not divide": ("Llama", {"num_key_value_heads": 3}, "cannot share 3 key heads"),
    "a wider model": ("Llama", {"intermediate_size": 58}, "(58, 40)"),
    "more layers": ("Llama", {"num_hidden_layers": 2}, "model.layers.1."),
    "biases that are not there": ("Llama", {"attention_bias": True}, "q_proj.bias"),
    "an attention to both sides": ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "a kind of layer": ("Qwen2", {"use_sliding_window": True, "layer_types": ["linear_attention"]}, "linear_attention"),
    "clipped queries": ("Olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
    "more experts": ("Qwen3Moe", {"num_local_experts": 6}, "experts.5"),
    "more experts used than there are": ("Mixtral", {"num_experts_per_tok": 7}, "7 of 5 experts"),
    "factors of another width": (
        "Phi3",
        {"rope_parameters": {**LONG, "long_factor": [1.0]}},
        "no long_factor of 5 numbers",
    ),
    "half of a head that is odd": ("StableLm", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotate in pairs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_or_not_built_is_said_in_a_sentence(case, checkpoints):
    family, values, words = WRONG[case]
    if family == "StableLm":
        values = {**values, "hidden_size": 40}
    error = failure(lambda: plan(recipe(with_header(checkpoints[family], **values)), "f32"))
    assert isinstance(error, fastllm.CheckpointError)
    assert words in str(error)


def test_experts_and_layers_without_them_must_be_as_wide(checkpoints):
    wrong = with_header(checkpoints["Qwen2Moe"], mlp_only_layers=[0])
    assert "only when they are equal" in str(failure(lambda: recipe(wrong)))


ODD = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 7, 10**9, 10**30, 10**400, 0.5, -2.5, 1e300, math.nan, math.inf, "", "gelu", True]),
    st.sampled_from([None, [], [1], [None], ["sliding_attention"], {}, {"factor": 2}, {"rope_type": "yarn"}]),
)


@given(st.data())
def test_any_config_gives_a_recipe_or_one_of_our_errors(checkpoints, data):
    checkpoint = checkpoints[data.draw(st.sampled_from(sorted(checkpoints)))]
    extra = ["head_dim", "rope_scaling", "rope_theta", "layer_types", "sliding_window_pattern", "generation_config"]
    keys = sorted({*checkpoint.header, *extra})
    values = data.draw(st.dictionaries(st.sampled_from(keys), ODD, min_size=1, max_size=3))
    failure(lambda: plan(recipe(checkpoint._replace(header={**checkpoint.header, **values})), "f32"))


ROPE_KEYS = ("factor", "rope_theta", "attention_factor", "beta_fast", "beta_slow", "mscale", "low_freq_factor")


@given(
    st.sampled_from(["default", "dynamic", "linear", "llama3", "yarn", "longrope", "su"]),
    st.dictionaries(st.sampled_from([*ROPE_KEYS, *LLAMA3, *LONG]), ODD, max_size=4),
)
def test_any_rotary_parameters_give_a_recipe_or_one_of_our_errors(checkpoints, kind, values):
    parameters = {**LLAMA3, **LONG, **values, "rope_type": kind}
    for family in ("Llama", "Phi3", "Gemma3Text"):
        nested = {"full_attention": parameters} if family == "Gemma3Text" else parameters
        failure(lambda nested=nested, family=family: recipe(with_header(checkpoints[family], rope_parameters=nested)))
