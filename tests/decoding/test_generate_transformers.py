"""Whole texts against transformers' `generate`, on tiny random models: greedy and drawn, with options of all kinds."""

from unittest import mock

import numpy as np
import pytest

import fastllm
from helpers.sampling import coins

torch = pytest.importorskip("torch")
reference = pytest.importorskip("helpers.reference")
transformers = reference.transformers

VOCAB, MOST, ENDS = 160, 20, [7, 11]
SHAPES = {
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    ),
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=128
    ),
}  # fmt: skip
OPTIONS = {
    "temperature": [0.7, 1.6],
    "top_h": [0.6, 0.95],
    "top_k": [5, 60],
    "top_p": [0.5, 0.95],
    "min_p": [0.02, 0.2],
    "epsilon_cutoff": [3e-3, 0.02],
    "eta_cutoff": [3e-3, 0.05],
    "repetition_penalty": [0.8, 1.3],
    "no_repeat_ngram_size": [1, 2, 3],
    "bad_words": [((3,), (4, 5)), ((1, 2, 3), (0, 0), (8, 2))],
    "sequence_bias": [{(3,): 2.0, (4, 5): 6.0}],
    "suppress_tokens": [(2, 5, 9)],
    "begin_suppress_tokens": [(0, 1, 2, 3)],
    "forced_eos_token_id": [7],
    "exponential_decay_length_penalty": [(5, 1.2)],
    "min_tokens": [3, 15],
    "watermark": [{"bias": 4.0, "greenlist_ratio": 0.5}],
}
FILTERS = {"top_h", "top_k", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff"}
RANKED = FILTERS | {"watermark"}  # with one of these our sampler goes through the tokens by probability


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """The same model in transformers, and in fastllm."""
    folder = tmp_path_factory.mktemp(request.param)
    model = reference.build(request.param, SHAPES[request.param]())
    model.save_pretrained(folder)
    return model, fastllm.load(folder, dtype="f32", kv="f32", cache=False)


def theirs(model, prompt, options, seed):
    """transformers' text, where its draws use the random numbers of our sampler; None where one of them was close."""
    given, close = {"top_k": 0} | options, []
    given["bad_words_ids"] = [list(words) for words in given.pop("bad_words", ())] or None
    given["sequence_bias"] = [[list(ids), bias] for ids, bias in given.pop("sequence_bias", {}).items()] or None
    given["min_new_tokens"] = given.pop("min_tokens", None)
    if (watermark := given.pop("watermark", None)) is not None:
        given["watermarking_config"] = transformers.WatermarkingConfig(**watermark)
    coin = coins(seed)

    def multinomial(probs, num_samples):
        weights = probs[0].double().numpy()
        order = np.lexsort((np.arange(VOCAB), -weights)) if RANKED & set(options) else np.arange(VOCAB)
        sums, at = np.cumsum(weights[order]) / weights.sum(), next(coin)
        close.append(np.abs(sums - at).min() < 1e-4)
        return torch.tensor([[order[int(np.searchsorted(sums, at, side="right"))]]])

    with mock.patch.object(torch, "multinomial", multinomial), torch.no_grad():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, eos_token_id=ENDS, pad_token_id=0,
            do_sample="temperature" in options, **given,
        )  # fmt: skip
    text = out[0, len(prompt) :].tolist()
    return None if any(close) else text[: next((i for i, token in enumerate(text) if token in ENDS), len(text))]


def test_random_options(pair):
    """100 random configurations of each model."""
    model, llm = pair
    compared = 0
    for seed in range(1, 101):
        rng = np.random.default_rng(seed)
        options = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items() if rng.random() < 0.3}
        prompt = rng.integers(0, VOCAB, rng.integers(1, 12)).tolist()
        if "temperature" in options:
            options = {"temperature": 1.0} | options
        else:  # no filter changes which token is the most likely one
            options = {name: value for name, value in options.items() if name not in FILTERS}
        expected = theirs(model, prompt, options, seed)
        if expected is None:
            continue
        compared += 1
        ours = {"temperature": 0, "top_p": 1, "stop": ENDS} | options
        found = llm.generate(prompt, max_tokens=MOST, seed=seed, **ours)
        assert found == expected, (seed, options)
    assert compared >= 90
