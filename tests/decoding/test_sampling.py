"""The options of a draw: which numbers they take, and what a checkpoint's own become."""

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from fastllm import CheckpointError, OptionError
from fastllm.decoding import DEFAULTS, Sampling, checkpoint_defaults


def test_numbers_of_numpy():
    found = Sampling(temperature=np.float32(0.5), top_p=np.float16(0.25), top_k=np.int64(5), min_p=np.int8(0))
    assert found == Sampling(temperature=0.5, top_p=0.25, top_k=5, min_p=0)
    assert [type(value) for value in found[:4]] == [float, float, int, float]
    assert Sampling(logit_bias={np.int32(3): np.float32(-1), 4: np.int64(2)}).logit_bias == {3: -1.0, 4: 2.0}


def test_all_tokens_and_one():
    assert Sampling(top_k=-1) == Sampling(top_k=0)
    for least in (0, 0.0, 1e-50):
        assert Sampling(top_p=least).temperature == 0
    assert Sampling(top_p=1e-9).temperature == 1


def test_ids_as_in_json():
    assert Sampling(logit_bias={"260": -100, 7: 1}).logit_bias == {260: -100.0, 7: 1.0}
    assert Sampling(logit_bias={3: -math.inf}).logit_bias == {3: -math.inf}


NO_NUMBERS = [True, np.bool_(True), "1", None, math.nan, np.float32("nan"), 1j, [1], Decimal(1), b"1"]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    "name", [name for name, value in DEFAULTS._asdict().items() if isinstance(value, (int, float))]
)
def test_no_numbers(name, value):
    with pytest.raises(OptionError, match=f"^{name} must be a "):
        Sampling(**{name: value})
    if value is not None:
        with pytest.raises(OptionError, match=f"^{name} must be a "):
            DEFAULTS.updated(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": 10**400},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 5.0},
        {"top_k": 1 << 31},
        {"min_p": np.float32(2)},
        {"typical_p": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": 1e9},
        {"frequency_penalty": -1e9},
        {"logit_bias": [5]},
        {"logit_bias": "5"},
        {"logit_bias": {True: 1}},
        {"logit_bias": {"-5": 1}},
        {"logit_bias": {"\u0665": 1}},
        {"logit_bias": {"": 1}},
        {"logit_bias": {5.0: 1}},
        {"logit_bias": {None: 1}},
        {"logit_bias": {5: True}},
        {"logit_bias": {5: "1"}},
        {"logit_bias": {5: math.nan}},
        {"logit_bias": {5: math.inf}},
        {"logit_bias": {5: 1, "5": 2}},
        {"logit_bias": {"9" * 5000: 1}},
        {"penalty_window": -1},
        {"no_repeat_ngram_size": 1.0},
        {"bad_words": 5},
        {"bad_words": ["a", ""]},
        {"bad_words": [[]]},
        {"bad_words": [[1, -2]]},
        {"bad_words": [b"a"]},
        {"bad_words": {"a": 1}},
        {"sequence_bias": 5},
        {"sequence_bias": "abc"},
        {"sequence_bias": {(): 1}},
        {"sequence_bias": {(1, "a"): 1}},
        {"sequence_bias": {"a": math.inf}},
        {"sequence_bias": [["a", 1], ["a", 2]]},
        {"sequence_bias": [["a"]]},
        {"suppress_tokens": "12"},
        {"suppress_tokens": [1, True]},
        {"begin_suppress_tokens": [1 << 31]},
        {"forced_eos_token_id": -1},
        {"forced_eos_token_id": 2.0},
        {"forced_eos_token_id": 2, "suppress_tokens": [1, 2]},
        {"dry_multiplier": -1},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"dry_penalty_last_n": -2},
        {"dry_sequence_breakers": [""]},
        {"top_n_sigma": -2},
        {"top_h": 1.5},
        {"xtc_probability": 2},
        {"mirostat_eta": 2},
        {"sampler_order": 5},
        {"sampler_order": ["heat"]},
        {"sampler_order": ["top_k", "top_k"]},
        {"sampler_order": ["typ_p", "typical_p"]},
        {"sampler_order": "top_k;penalties"},
        {"sampler_order": ["top_k", ["top_p"]]},
        {"watermark": 5},
        {"watermark": {"strength": 5}},
    ],
    ids=lambda options: repr(options)[:60],
)
def test_out_of_range(options):
    with pytest.raises(OptionError, match=f"^{next(iter(options))} ") as error:
        Sampling(**options)
    assert len(str(error.value)) < 250


def test_updated():
    base = Sampling(temperature=0.5, top_k=3)
    assert base.updated(top_k=0, min_p=None) == Sampling(temperature=0.5)
    assert base.updated() == base


@pytest.mark.parametrize(
    "values",
    [
        {"greenlist_ratio": 0},
        {"greenlist_ratio": 1},
        {"bias": math.nan},
        {"hashing_key": -1},
        {"hashing_key": 0.5},
        {"seeding_scheme": "righthash"},
        {"context_width": 0},
    ],
    ids=repr,
)
def test_a_watermark_out_of_range(values):
    with pytest.raises(OptionError, match=f"^{next(iter(values))} of the watermark must be "):
        Sampling(watermark=values)


@pytest.mark.parametrize("value", [5, "100", (1,), (-1, 1.1), (1.5, 1.1), (5, 0), (5, math.nan), (5, "x")], ids=repr)
def test_a_decay_out_of_range(value):
    with pytest.raises(OptionError, match="exponential_decay_length_penalty must be "):
        Sampling(exponential_decay_length_penalty=value)


def test_an_order():
    """What a list leaves out is off; llama.cpp's own list is understood."""
    theirs = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
    found = Sampling(sampler_order=theirs, eta_cutoff=0.1, top_h=0.5, top_p=0.8)
    assert found.sampler_order == ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
    assert (found.eta_cutoff, found.top_h, found.top_p) == (0, 0, 0.8)
    assert Sampling(sampler_order=["min_p"], temperature=0.5, top_k=3).temperature == 1
    assert Sampling(sampler_order=()) == DEFAULTS


def test_mirostat_takes_the_place_of_filters():
    assert Sampling(mirostat_tau=5).top_p == 1
    base = Sampling(top_p=0.9, top_k=40, min_p=0.1, temperature=0.7, repetition_penalty=1.1)
    found = base.updated(mirostat_tau=5, top_k=None)
    assert (found.top_p, found.top_k, found.min_p, found.temperature, found.repetition_penalty) == (1, 0, 0, 0.7, 1.1)
    for name, value in {"top_k": 5, "top_p": 0.5, "xtc_probability": 0.5, "top_h": 0.5}.items():
        with pytest.raises(OptionError, match=f"^mirostat_tau takes the place of {name}: "):
            base.updated(**{"mirostat_tau": 5, name: value})
    assert base.updated(mirostat_tau=5, top_k=0, top_p=1.0).mirostat_tau == 5


# ---- of checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_names_none():
    assert checkpoint_defaults(Path("m"), {}) == DEFAULTS == Sampling(temperature=1, top_p=0.9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.6}, Sampling(temperature=0.6, top_p=1)),
        ({"top_k": 64, "top_p": 0.95}, Sampling(top_k=64, top_p=0.95)),
        ({"repetition_penalty": 1.05}, Sampling(repetition_penalty=1.05, top_p=1)),
        ({"temperature": 0}, Sampling(temperature=0, top_p=1)),
    ],
)
def test_a_checkpoint_that_names_some(options, expected):
    """What it leaves out is off, as in transformers and vLLM."""
    assert checkpoint_defaults(Path("m"), options) == expected


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": 1.5}, {"min_p": "x"}, {"heat": 1}])
def test_a_checkpoint_that_asks_for_too_much(options):
    with pytest.raises(CheckpointError, match=r"^models/m has sampling options that are not possible: "):
        checkpoint_defaults(Path("models/m"), options)
