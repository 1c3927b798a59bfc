"""Activations in int8: outliers that are multiplied as floats, and precise, which has two rows of int8 a token."""

import numpy as np
import pytest

from fastllm import _core
from helpers import oracle, writers
from helpers.architectures import ARCHITECTURES

ISAS = [name for name, supported in _core.isas() if supported]
CFG = writers.config(96, 160, 6, 2, 150)
TYPES = ("q8", "q4", "q4m")


def with_outliers(cfg, seed=5):
    """Weights with a few channels that are far larger than others, as trained models have."""
    weights = writers.random_weights(cfg, seed)
    weights["embed"][:, [3, 40]] *= 30
    for name, w in weights.items():
        if name.endswith("ffn.w1"):
            w[[5, 70]] *= 6
    return weights


def logits(cfg, weights, dtype, tokens, **how):
    model = writers.core_model(cfg, weights, dtype, isa=how.pop("isa", None))
    return writers.logits(model, tokens, cfg.vocab_size, **how)


def as_floats(cfg, weights, dtype):
    """What the packed weights stand for, in f32."""
    found = dict(weights)
    for name, w in weights.items():
        if w.ndim == 2 and name != "positions":
            found[name] = writers.rows(writers.pack(dtype, w))
    return found


@pytest.mark.parametrize("dtype", TYPES)
def test_distance_to_floats(dtype):
    weights, tokens = with_outliers(CFG), np.random.default_rng(6).integers(0, 150, 90).tolist()
    exact = logits(CFG, as_floats(CFG, weights, dtype), "f32", tokens)
    plain = np.abs(logits(CFG, weights, dtype, tokens) - exact).mean()
    precise = np.abs(logits(CFG._replace(precise=True), weights, dtype, tokens) - exact).mean()
    assert precise < plain / 50


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_same_however_it_is_computed(dtype, precise):
    cfg, weights = CFG._replace(precise=precise), with_outliers(CFG)
    tokens = np.random.default_rng(7).integers(0, 150, 131).tolist()
    expected = logits(cfg, weights, dtype, tokens, isa="scalar")
    for isa in ISAS:
        for threads, chunk in ((1, None), (1, 1), (2, 3), (3, 5), (2, 8), (2, 33)):
            assert (logits(cfg, weights, dtype, tokens, isa=isa, threads=threads, chunk=chunk) == expected).all()


@pytest.mark.parametrize("name", [name for name, (cfg, *_) in ARCHITECTURES.items() if cfg.n_experts and cfg.causal])
def test_experts(name):
    """Rows of experts are as many as tokens chose them, so that their bundles vary with the chunks."""
    cfg, optional, tied = ARCHITECTURES[name]
    weights = writers.random_weights(cfg, 3, tied=tied, optional=optional)
    weights["embed"][:, 3] *= 30
    tokens = np.random.default_rng(8).integers(0, cfg.vocab_size, 70).tolist()
    for precise in (False, True):
        found = cfg._replace(precise=precise)
        expected = logits(found, weights, "q8", tokens, isa="scalar")
        for isa in ISAS:
            for threads, chunk in ((1, None), (1, 1), (2, 9)):
                assert (logits(found, weights, "q8", tokens, isa=isa, threads=threads, chunk=chunk) == expected).all()


# 16,600 channels: more groups than the core lists outliers of at once, a last one that is not whole.
@pytest.mark.parametrize("n", [160, 16_600])
def test_products_with_outliers(n):
    """Against the rule in numpy, where a hundredth of the values is twelve times as large."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((40, n)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] *= 12
    x[:, -1] = 60
    seen = oracle.q8_activations(x)
    assert (seen == x).any(axis=1).mean() > 0.1  # some are taken as they are
    for dtype in TYPES:
        matrix = writers.pack(dtype, rng.standard_normal((48, n)).astype(np.float32))
        expected = seen @ writers.rows(matrix).astype(np.float64).T
        first = None
        for isa in ISAS:
            for tokens in (40, 1):
                found = np.empty((tokens, 48), np.float32)
                matrix.multiply(x[:tokens], found, threads=2, isa=isa)
                first = found if first is None else first
                assert (found == first[:tokens]).all()
        np.testing.assert_allclose(first, expected, rtol=0, atol=1e-6 * n)
