"""Folders of tiny models, one of each family of decoders, and functions to change and to compare them."""

import pytest

import fastllm
from helpers import reference
from helpers.families import decoders, gpt
from helpers.reference import torch, transformers

load_file, save_file = (getattr(pytest.importorskip("safetensors.torch"), name) for name in ("load_file", "save_file"))

IDS = reference.tokens(90, 24)

# One of each family: transformers' name, and what its config needs besides decoders.SIZES.
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
    """A causal language model of the family `case` with two layers."""
    if case in DECODERS:
        family, values = DECODERS[case]
        return decoders.build(family, **{**values, "num_hidden_layers": 2, **more})
    architecture, config, values = GPT[case]
    return gpt.built(architecture, config, {**values, **more})


def rewrite(folder, change):
    """Replaces a folder's dict of tensors by change(dict)."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def load(folder):
    return fastllm.load(folder, dtype="f32", threads=1)


def theirs(folder, kind="AutoModelForCausalLM"):
    """The model that a class of transformers makes of a folder."""
    return getattr(transformers, kind).from_pretrained(folder, **reference.PLAIN).eval()


def same(found, expected):
    """Asserts that values are equal up to rounding, and not all alike."""
    assert expected.std() > 0.05
    assert reference.difference(found, expected) < 1e-4


def last_hidden(model, ids=IDS):
    """transformers' hidden states after the final norm, (tokens, dim)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()
