"""Tiny random models of the transformers library, and assertions that fastllm computes the same."""

import math

import numpy as np
import pytest

import fastllm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny

PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}


def build(architecture, config, *, seed=0):
    """A model of the named class with eager attention. All its parameters are random, those of biases and norms too.

    The weights of queries and keys are large enough that attention prefers some positions.
    """
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)._from_config(config, **PLAIN)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2 or "norm" in name.lower():
                p.add_(torch.randn_like(p), alpha=0.25)  # stays near the 0 or 1 that the class began with
            else:
                p.normal_(0.0, _spread(name) / math.sqrt(p.shape[-1]))
    for settings in (model.config, getattr(model, "generation_config", model.config)):
        settings.eos_token_id = None
    return model.eval()


def _spread(name):
    return 2.0 if "q_proj" in name or "k_proj" in name else 1.3


def tokens(vocab_size, count, *, seed=0):
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def logits(model, ids):
    """The logits after every token, float32 (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def greedy(model, ids, count):
    """The `count` most likely tokens after ids, one after the other."""
    with torch.no_grad():
        prompt = torch.tensor([ids])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
    return out[0, len(ids) :].tolist()


def difference(found, expected):
    """The largest difference, divided by the standard deviation of the expected values if that is more than 1."""
    return float(np.abs(found - expected).max() / max(1.0, expected.std()))


def agree(model, folder, *, length=150, new_tokens=20, tolerance=1e-4, save=None, **options):
    """Saves a model, loads it with fastllm, and asserts that logits and greedy continuations are the same."""
    model.save_pretrained(folder, **(save or {}))
    llm = fastllm.load(folder, threads=1, **({"dtype": "f32"} | options))
    ids = tokens(llm.config.vocab_size, length)
    expected = logits(model, ids)
    assert expected.std() > 0.05
    assert difference(llm.logits(ids), expected) < tolerance
    if new_tokens:
        assert list(llm.generate(ids, max_tokens=new_tokens, temperature=0)) == greedy(model, ids, new_tokens)
    return llm
