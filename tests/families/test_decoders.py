"""Decoders compute transformers' logits and greedy texts."""

import numpy as np
import pytest

import fastllm
from fastllm.families import recipe
from fastllm.families.architectures import FAMILIES, split
from fastllm.formats import open_checkpoint
from helpers import reference
from helpers.families.decoders import (
    CASES,
    EXPERTS,
    LONG,
    MODULES,
    SIZES,
    architecture,
    build,
    edit,
    plan_of,
    rope,
    same_recipe,
)
from helpers.reference import torch, transformers


@pytest.mark.parametrize("case", CASES)
def test_logits_and_texts_are_those_of_transformers(case, tmp_path):
    family, values = CASES[case]
    reference.agree(build(family, **values), tmp_path, new_tokens=20)
    plan_of(tmp_path)


def test_every_family_is_tested():
    decoders = {name for name, (module, _) in FAMILIES.items() if module in MODULES}
    tested = {split(architecture(family))[0] for family, _ in CASES.values()}
    assert decoders == tested | {"qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"}


def test_phi3_uses_the_factors_of_the_context(tmp_path):
    """Short factors up to the original context; long ones, for every position, in a longer context."""
    model = build("Phi3", original_max_position_embeddings=64, **rope(LONG))
    short = reference.agree(model, tmp_path, length=40)
    assert short.context == 64
    reference.agree(model, tmp_path, length=150, context=256)
    made = plan_of(tmp_path)
    assert made.config.rope_switch == 64
    assert made.vectors["rope.freqs"] != made.vectors["rope.freqs_long"]
    old = {"type": "su", "short_factor": LONG["short_factor"], "long_factor": LONG["long_factor"]}
    edit(tmp_path, original_max_position_embeddings=64, rope_parameters=None, rope_scaling=old)
    same_recipe(recipe(open_checkpoint(tmp_path)), made)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_and_shards(dtype, tmp_path):
    build("Qwen2", tie_word_embeddings=True).to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = reference.tokens(131, 150)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **reference.PLAIN)
    expected = reference.logits(model, ids)  # of the rounded weights, computed in f32
    for options in ({"dtype": "f32"}, {}):  # by default keys and values are f16, which costs more than 1e-4
        llm = fastllm.load(tmp_path, threads=1, **options)
        assert reference.difference(llm.logits(ids), expected) < (1e-4 if options else 3e-2)


def test_experts_in_one_tensor(tmp_path):
    """All experts of a layer in one tensor, as transformers 5 has them in memory."""
    from safetensors.torch import save_file

    for family, values in (
        ("Mixtral", {"num_local_experts": 5}),
        ("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 33}),
    ):
        folder = tmp_path / family
        model = build(family, **values)
        llm = reference.agree(model, folder, new_tokens=0)
        names = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        assert any(name.endswith("experts.gate_up_proj") for name in names)
        save_file(names, folder / "model.safetensors", metadata={"format": "pt"})
        ids = reference.tokens(131, 20)
        assert np.array_equal(fastllm.load(folder, dtype="f32", threads=1).logits(ids), llm.logits(ids))
        plan_of(folder)


def test_experts_that_are_copies_equal_the_dense_model(tmp_path):
    dense = build("Qwen3", head_dim=12)
    moe = build(
        "Qwen3Moe", head_dim=12, **EXPERTS, moe_intermediate_size=SIZES["intermediate_size"], norm_topk_prob=True
    )
    weights = dense.state_dict()
    for name, p in moe.state_dict().items():
        layer = name.split(".mlp.")[0]
        if name.endswith("gate_up_proj"):
            one = torch.cat([weights[f"{layer}.mlp.gate_proj.weight"], weights[f"{layer}.mlp.up_proj.weight"]])
            p.copy_(one.expand_as(p))
        elif name.endswith("experts.down_proj"):
            p.copy_(weights[f"{layer}.mlp.down_proj.weight"].expand_as(p))
        elif "mlp.gate." not in name:  # the router's choice does not matter among equal experts
            p.copy_(weights[name])
    ids = reference.tokens(131, 150)
    found = []
    for name, model in (("dense", dense), ("moe", moe)):
        model.save_pretrained(tmp_path / name)
        found.append(fastllm.load(tmp_path / name, dtype="f32", threads=1).logits(ids))
    assert reference.difference(found[1], found[0]) < 1e-5
