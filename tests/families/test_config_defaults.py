"""Configs that leave things out, or say them in old ways, mean what transformers' classes make of them."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from fastllm.config import Config
from fastllm.families import recipe
from fastllm.families.architectures import FAMILIES
from fastllm.formats import Checkpoint
from helpers.families import decoders, folders

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
SPECIAL = {  # transformers has another field, or computes the value later
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
    """The Config that a family makes of a config.json, without any tensors."""

    def found(**values):
        raise Found(Config(**values))

    for module in ("_decoder", FAMILIES[model_type][0]):
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
    """A config that has only the sizes, which must fit the tensors: all else is the class's default."""
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


# Settings for which the class itself refuses null.
NEVER_NULL = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "helium",
    "mistral",
    "mixtral",
    "qwen3_moe",
    "qwen3_vl_moe_text",
    "stablelm",
]


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in NEVER_NULL])
def test_as_many_keys_as_heads_where_it_is_null(model_type, monkeypatch):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "n_embd": 48, "n_head": 6, "num_heads": 6}
    expected = default_of(model_type, num_key_value_heads=None, hidden_size=48, num_attention_heads=6)
    shape = {"vocab_size": 8, "max_position_embeddings": 9, "n_positions": 9}
    ours = configured(model_type, {**shape, **sizes, "num_key_value_heads": None}, monkeypatch)
    assert ours.n_kv_heads == (getattr(expected, "num_key_value_heads", None) or 6)


@pytest.mark.parametrize("case", folders.CAUSAL)
def test_a_vocabulary_that_the_config_does_not_know_is_the_embedding_s(case, tmp_path):
    model = folders.built(case)
    model.save_pretrained(tmp_path)
    expected = folders.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": None}))
    assert folders.load(tmp_path).config == expected.config


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
    folders.built("llama").save_pretrained(tmp_path)
    expected = folders.load(tmp_path).logits(folders.IDS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert np.array_equal(folders.load(tmp_path).logits(folders.IDS), expected)
