"""Masks of draws: a token whose bit is 0 is not drawn, as if a bias of -infinity forbade it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError, _core
from fastllm.decoding import Sampling
from helpers import writers

VOCAB, STRIDE = 300, 304
ISAS = [name for name, supported in _core.isas() if supported]
OPTIONS = [
    {"temperature": 0},
    {"temperature": 1.2, "top_p": 1},
    {"temperature": 0.8, "top_k": 7, "repetition_penalty": 1.3},
    {"min_p": 0.05, "top_p": 0.9, "presence_penalty": 1},
    {"typical_p": 0.7},
    {"mirostat_tau": 3.0, "top_p": 1},
    {"xtc_probability": 0.5, "top_p": 1},
    {"temperature": 0, "watermark": {"hashing_key": 5}},
]


@pytest.fixture(scope="module")
def models():
    cfg = writers.SMALL
    return {isa: writers.core_model(cfg, writers.random_weights(cfg), "f32", isa=isa) for isa in ISAS}


def logits_of(rows, seed):
    buffer = _core.Buffer(rows * STRIDE * 4)
    view = np.frombuffer(buffer, np.float32).reshape(rows, STRIDE)
    view[:, :VOCAB] = np.random.default_rng(seed).normal(0, 3, (rows, VOCAB))
    return buffer


def mask_of(tokens):
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def sampler(options, seed, bias=None, isa=None):
    sampling = Sampling(**options)
    mark = None if sampling.watermark is None else sampling.watermark.lists(VOCAB)
    return _core.Sampler(VOCAB, sampling, seed=seed, bias=bias, watermark=mark, isa=isa)


@given(
    st.sampled_from(OPTIONS),
    st.integers(0, 1 << 32),
    st.lists(st.sets(st.integers(0, VOCAB - 1), min_size=2) | st.just(set(range(32, 290))), min_size=1, max_size=4),
)
def test_rows_and_instruction_sets(models, options, seed, sets):
    """Several rows at once give what they give one by one, on every instruction set."""
    rows = logits_of(len(sets), seed)
    plain, expected = sampler(options, seed), []
    for i, allowed in enumerate(sets):
        expected += models[ISAS[0]].draw([(plain, i, (), False, [mask_of(allowed)])], rows)[0]
        assert expected[-1] in allowed
    for isa, model in models.items():
        masks = [mask_of(allowed) for allowed in sets]
        draws = [(sampler(options, seed, isa=isa), 0, expected[:-1], False, masks)]
        assert model.draw(draws, rows, threads=2) == [expected]


@given(st.sampled_from(OPTIONS), st.integers(0, 1 << 32), st.sets(st.integers(0, VOCAB - 1), min_size=2))
def test_as_biases_forbid(models, options, seed, allowed):
    rows, model = logits_of(1, seed), models[ISAS[0]]
    biased = sampler(options, seed, {t: -math.inf for t in range(VOCAB) if t not in allowed})
    assert model.draw([(sampler(options, seed), 0, (), False, [mask_of(allowed)])], rows) == model.draw(
        [(biased, 0, ())], rows
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_the_only_token_takes_no_random_number(models, options):
    rows, model = logits_of(2, 3), models[ISAS[0]]
    one, two = sampler(options, 9), sampler(options, 9)
    assert model.draw([(one, 0, (), False, [mask_of({77})])], rows) == [[77]]
    two.accept(77, generated=True)
    assert model.draw([(one, 1, ())], rows) == model.draw([(two, 1, ())], rows)


def test_nothing_is_allowed(models):
    rows, model = logits_of(2, 3), models[ISAS[0]]
    (found,) = model.draw([(sampler({}, 1), 0, (), False, [mask_of(())])], rows)
    assert isinstance(found, OptionError)
    # Of a later row it only ends the draws.
    assert model.draw([(sampler({}, 1), 0, [77], False, [mask_of({77}), mask_of(())])], rows) == [[77]]


def test_bad_masks(models):
    rows, model = logits_of(2, 3), models[ISAS[0]]
    with pytest.raises(OptionError, match="1 masks of 2 rows"):
        model.draw([(sampler({}, 1), 0, [5], False, [mask_of({1})])], rows)
    with pytest.raises(OptionError, match="a mask of 36 bytes, not 40"):
        model.draw([(sampler({}, 1), 0, (), False, [mask_of({1})[:36]])], rows)
    with pytest.raises(TypeError):
        model.draw([(sampler({}, 1), 0, (), False, [bytearray(40)])], rows)
