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
@pytest.mark.parametrize("name", [name for name in Sampling._fields if name != "logit_bias"])
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
