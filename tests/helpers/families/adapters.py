"""LoRA adapters with random weights, saved by the PEFT library."""

import json

import numpy as np
import pytest

import fastllm
from helpers import reference
from helpers.reference import torch, transformers

peft = pytest.importorskip("peft")

VOCAB, LENGTH = 61, 40


def llama_config(**more):
    return transformers.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        }
        | more
    )


def llama(folder, **more):
    """Saves a tiny Llama and returns it."""
    model = reference.build("LlamaForCausalLM", llama_config(**more))
    model.save_pretrained(folder)
    return model


def adapted(model, folder, *, seed=1, name="default", **options):
    """Adds a LoRA adapter to a model, makes all its trained parameters random, and saves it. Returns PEFT's model."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]} | options))
    model = peft.get_peft_model(model, config, adapter_name=name).eval()
    with torch.no_grad():
        for _, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.2 / np.sqrt(p.shape[-1]) if p.dim() > 1 else 0.1)
    model.save_pretrained(folder)
    return model


def expected(model):
    """PEFT's logits for the tokens of found()."""
    return reference.logits(model, reference.tokens(VOCAB, LENGTH))


def found(base, adapters, **options):
    """fastllm's logits of a model with adapters."""
    llm = fastllm.load(base, lora=adapters, threads=1, **({"dtype": "f32"} | options))
    return llm.logits(reference.tokens(VOCAB, LENGTH))


def read_tensors(folder):
    """The tensors of an adapter, by name."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def rewrite(folder, tensors=None, **config):
    """Replaces an adapter's tensors, if given, and changes values of its config."""
    from safetensors.torch import save_file

    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
