"""GPT-2, GPT-Neo and GPT-NeoX compute what transformers computes, and minGPT what helpers.families.mingpt computes."""

import json

import pytest

import fastllm
from helpers import reference
from helpers.calls import failure
from helpers.families.gpt import CASES, GPT2, NEO, NEOX, built
from helpers.families.mingpt import FLAT, NESTED, mingpt
from helpers.reference import torch, transformers


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_text_are_those_of_transformers(case, tmp_path):
    reference.agree(built(*CASES[case]), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "config", "values", "prefix"),
    [
        ("GPT2Model", "GPT2Config", GPT2, "transformer."),
        ("GPTNeoModel", "GPTNeoConfig", NEO, "transformer."),
        ("GPTNeoXModel", "GPTNeoXConfig", NEOX, "gpt_neox."),
    ],
)
def test_hidden_states_of_the_headless_model(architecture, config, values, prefix, tmp_path):
    model = built(architecture, config, values)
    model.save_pretrained(tmp_path)
    assert not any(name.startswith(prefix) for name in model.state_dict())
    llm = fastllm.load(tmp_path, threads=1)
    ids = reference.tokens(97, 70)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert reference.difference(llm.hidden_states(ids), expected) < 1e-4


@pytest.mark.parametrize("beside", [{}, {"rope_theta": 77.0, "partial_rotary_factor": 0.5}], ids=str)
def test_names_and_config_of_the_first_pythia_checkpoints(tmp_path, beside):
    """Rotary settings by older names at the top of the config, and masks and frequencies among the tensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = built("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.25, "rotary_emb_base": 10000, **beside}))
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    for i in range(3):
        theirs = f"gpt_neox.layers.{i}.attention"
        tensors[f"{theirs}.bias"] = torch.ones(1, 1, 200, 200, dtype=torch.bool).tril()
        tensors[f"{theirs}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{theirs}.rotary_emb.inv_freq"] = torch.zeros(2)
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    ids = reference.tokens(97, 90)
    found = fastllm.load(tmp_path, threads=1).logits(ids)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reference.difference(found, reference.logits(theirs, ids)) < 1e-4


@pytest.mark.parametrize(
    ("case", "change", "cause"),
    [
        ("gpt2", {"n_head": 5}, "5 attention heads"),
        ("gpt2", {"n_head": 0}, "0 attention heads"),
        ("gpt2", {"n_layer": 4}, "no tensor transformer.h.3.ln_1.weight"),
        ("gpt2", {"n_layer": 10**12}, "n_layers"),
        ("gpt2", {"activation_function": "mish"}, "mish"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"eos_token_id": "no"}, "eos_token_id"),
        ("gpt2", {"n_embd": 33}, "shape|rows|columns"),
        ("gpt_neo", {"attention_types": [[["global"], 10**12]], "num_layers": 10**12}, "attention_types"),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, "attention_types"),
        ("gpt_neo", {"attention_types": [["nowhere", 3]]}, "attention_types"),
        ("gpt_neo", {"attention_types": 7}, "attention_types"),
        ("gpt_neox", {"num_attention_heads": 4}, "12|channels|rows|cannot"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "strange"}}, "strange"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 9}}, "channels"),
    ],
)
def test_a_config_that_is_wrong_is_one_clear_error(case, change, cause, tmp_path):
    built(*CASES[case]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    error = failure(lambda: fastllm.load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert any(word in str(error) for word in cause.split("|"))
    assert str(tmp_path) in str(error)


@pytest.mark.parametrize(("kind", "config"), [("first", FLAT), ("second", FLAT), ("second", NESTED), ("tch", FLAT)])
def test_mingpt(kind, config, tmp_path):
    model, file = mingpt(kind, tmp_path, config=config)
    llm = fastllm.load(file, threads=1)
    ids = reference.tokens(31, 150)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).numpy()
        for _ in range(10):
            ids.append(int(model(torch.tensor(ids))[-1].argmax()))
    assert reference.difference(llm.logits(ids[:150]), expected) < 1e-4
    assert llm.generate(ids[:150], max_tokens=10, temperature=0) == ids[150:]


@pytest.mark.parametrize("config", [None, {}, {"n_head": "3"}, {"model": {"model_type": "gpt-huge"}}])
def test_mingpt_without_its_number_of_heads_says_what_is_missing(config, tmp_path):
    _, file = mingpt("first", tmp_path, config=config)
    error = failure(lambda: fastllm.load(file))
    assert isinstance(error, fastllm.CheckpointError)
    assert "config.json" in str(error)
    assert config is None or ("n_head" in str(error) and str(file) in str(error))
