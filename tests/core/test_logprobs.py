"""Model.logprobs against numpy in double precision: values, the order of the top, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import NumericError, OptionError, _core
from helpers import writers

ISAS = [name for name, supported in _core.isas() if supported]
SIZES = (1, 2, 15, 16, 17, 255, 256, 257, 600, 5000)


def tiny(vocab, isa):
    """A model of a vocabulary, of which only the logits' functions are used."""
    cfg = writers.config(16, 16, 1, 1, vocab, n_layers=1)
    return writers.core_model(cfg, writers.random_weights(cfg), "f32", isa=isa)


MODELS = {(vocab, isa): tiny(vocab, isa) for vocab in SIZES for isa in ISAS}


def buffer_of(model, logits):
    buffer = model.logits(2)
    view = np.frombuffer(memoryview(buffer), np.float32).reshape(2, -1)
    view[0] = np.nan  # another text's row, and the padding of ours
    view[1, : len(logits)] = logits
    view[1, len(logits) :] = np.nan
    return buffer


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def order(logits, top):
    """The `top` largest, lowest id first among equals."""
    return [int(i) for i in np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))[:top]]


SHAPES = {
    "spread": lambda rng, n: 3.5 * rng.standard_normal(n),
    "wide": lambda rng, n: 60 * rng.standard_normal(n),  # most probabilities are 0 as floats
    "flat": lambda rng, n: 7 + 1e-6 * rng.standard_normal(n),
    "equal": lambda rng, n: np.full(n, -3.25),
    "levels": lambda rng, n: rng.integers(-2, 3, n) / 4,
    "zeros": lambda rng, n: rng.choice([0.0, -0.0, 1e-45, -1e-45], n),
    "neighbours": lambda rng, n: np.float32(9) + rng.integers(0, 9, n) * np.float32(2**-20),  # of one probability
    "rising": lambda rng, n: np.arange(n) / 64,
    "falling": lambda rng, n: -np.arange(n) / 64,
    "large": lambda rng, n: 1e37 * rng.standard_normal(n),
    "certain": lambda rng, n: np.where(np.arange(n) == n // 2, 40.0, rng.standard_normal(n)),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(sorted(SHAPES)), st.integers(0, 1 << 32), st.data())
def test_log_softmax(size, shape, seed, data):
    logits = SHAPES[shape](np.random.default_rng(seed), size).astype(np.float32)
    token, top = (
        data.draw(st.integers(0, size - 1)),
        data.draw(st.sampled_from([0, 1, 5, 20, size]).map(lambda k: min(k, size))),
    )
    found = [MODELS[size, isa].logprobs(buffer_of(MODELS[size, isa], logits), 1, token, top) for isa in ISAS]
    assert all(f == found[0] for f in found)
    own, best = found[0]
    expected = log_softmax(logits)
    assert [i for i, _ in best] == order(logits, top)
    for i, value in [(token, own), *best]:
        # The exponentials are floats, a unit or two in the last place off; so is the sum, and its logarithm by as much.
        assert value == pytest.approx(expected[i], rel=3e-7, abs=3e-7)
        assert value <= 0


def test_a_small_rest_is_not_lost():
    """Where one token has nearly all of the probability, its logarithm is minus the small rest."""
    logits = np.full(600, -30, np.float32)
    logits[5] = 0
    model = MODELS[600, ISAS[-1]]
    own, best = model.logprobs(buffer_of(model, logits), 1, 5, 2)
    assert own == pytest.approx(-math.log1p(599 * math.exp(-30)), rel=1e-6)
    assert own < 0
    assert best == [(5, own), (0, pytest.approx(-30))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 16, 599])
def test_logits_that_are_no_numbers(value, place, isa):
    logits = np.zeros(600, np.float32)
    logits[place] = value
    with pytest.raises(NumericError, match="the logits are not finite"):
        MODELS[600, isa].logprobs(buffer_of(MODELS[600, isa], logits), 1, 3, 5)


def test_what_there_is_not():
    model = MODELS[17, "scalar"]
    buffer = buffer_of(model, np.zeros(17))
    for arguments, match in (
        ((buffer, 2, 0), "no row 2"),
        ((buffer, 1 << 62, 0), "no row"),
        ((buffer, 1, 17), "no token 17"),
        ((buffer, 1, -1), "no token -1"),
        ((buffer, 1, 1 << 70), "no token"),
        ((buffer, 1, 3, 18), "no 18 tokens"),
        ((_core.Buffer(0), 0, 3), "no row 0"),
    ):
        with pytest.raises(OptionError, match=match):
            model.logprobs(*arguments)
    for arguments in ((None, 1, 3), (buffer, 1, None), (buffer, "1", 3), (buffer, 1, "3"), (buffer, 1, 3.0)):
        with pytest.raises(TypeError):
            model.logprobs(*arguments)
    with pytest.raises(OverflowError):
        model.logprobs(buffer, 1, 3, -1)
