"""Which weights each method of pruning sets to zero, against the papers' formulas in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.weights.pruning import masks
from fastllm.weights.pruning.options import Method, parse
from helpers.oracle import sparsegpt

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 12))


def matrix(seed, d, n, *, coarse=False):
    """Random weights; `coarse` ones have few values, so that many are equal."""
    w = np.random.default_rng(seed).standard_normal((d, n)).astype(np.float32)
    return np.round(w * 2) / np.float32(2) if coarse else w


def smallest_first(scores, count):
    """Where the `count` smallest of a flat array are, the first ones among equals."""
    gone = np.zeros(len(scores), bool)
    gone[sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]] = True
    return gone


@settings(deadline=None)
@given(SIZES, st.integers(0, 99), st.floats(0, 1), st.booleans())
def test_magnitude_is_by_matrix(size, seed, share, coarse):
    w = matrix(seed, *size, coarse=coarse)
    gone = smallest_first(np.abs(w).ravel(), round(share * w.size)).reshape(w.shape)
    assert (masks.magnitude(w, Method("magnitude", share)) == np.where(gone, 0, w)).all()


@settings(deadline=None)
@given(SIZES, st.integers(0, 99), st.booleans())
def test_two_of_each_four(size, seed, coarse):
    w = matrix(seed, size[0], 4 * size[1], coarse=coarse)
    gone = np.concatenate([smallest_first(np.abs(four), 2) for four in w.reshape(-1, 4)]).reshape(w.shape)
    assert (masks.magnitude(w, parse("magnitude:2of4")) == np.where(gone, 0, w)).all()


def test_threshold():
    w = matrix(0, 5, 7, coarse=True)
    assert (masks.threshold(w, parse("threshold:0.5")) == np.where(np.abs(w) < 0.5, 0, w)).all()
    assert (masks.threshold(w, parse("threshold:0")) == w).all()


@settings(deadline=None)
@given(SIZES, st.integers(0, 99), st.floats(0, 1), st.booleans(), st.sampled_from([1 << 20, 3]))
def test_wanda_is_by_row(size, seed, share, coarse, rows):
    d, n = size
    w, x = matrix(seed, d, n, coarse=coarse), matrix(seed + 1, 5, n, coarse=coarse).astype(np.float64)
    squares = (x**2).sum(axis=0)
    gone = np.array([smallest_first(np.abs(row) * np.sqrt(squares), round(share * n)) for row in w])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_ROWS", rows)
        assert (masks.wanda(w, Method("wanda", share), squares) == np.where(gone, 0, w)).all()


def test_wanda_of_fours():
    w, squares = matrix(0, 6, 24, coarse=True), np.arange(24.0)
    scores = (np.abs(w) * np.sqrt(squares)).reshape(-1, 4)
    gone = np.concatenate([smallest_first(four, 2) for four in scores]).reshape(w.shape)
    assert (masks.wanda(w, parse("wanda:2of4"), squares) == np.where(gone, 0, w)).all()


# 300 columns are two blocks and a part of one.
@pytest.mark.parametrize(("d", "n"), [(16, 32), (33, 300), (5, 128)])
@pytest.mark.parametrize("how", ["sparsegpt:0.5", "sparsegpt:0.3", "sparsegpt:2of4", "sparsegpt:0", "sparsegpt:1"])
def test_sparsegpt(d, n, how):
    """The same zeros as the paper's algorithm in double precision, and nearly the same other weights.

    Inputs are correlated, and one is always zero. A cost that nearly equals another may fall on the other side: of
    all weights at most 1 in 200, with what that changes in the same row.
    """
    rng = np.random.default_rng(n)
    w, method = matrix(d, d, n), parse(how)
    x = (rng.standard_normal((400, n)) @ (np.eye(n) + 0.3 * rng.standard_normal((n, n)) / n**0.5)).astype(np.float32)
    x[:, 3] = 0
    h = x.astype(np.float64).T @ x.astype(np.float64)
    expected = sparsegpt(w, h, None if method.of_four else method.share)
    found = masks.sparsegpt(w, method, masks.Inverse(h.copy(), 1), threads=1)
    assert (found == masks.sparsegpt(w, method, masks.Inverse(h.copy(), 2), threads=2)).all()
    assert ((found == 0) == (expected == 0)).mean() >= 0.995
    same = ((found == 0) == (expected == 0)).all(axis=1)
    assert same.sum() > 0.6 * d
    assert np.allclose(found[same], expected[same], rtol=1e-3, atol=1e-4)
    if method.of_four:
        assert ((found.reshape(-1, 4) == 0).sum(axis=1) >= 2).all()
    else:
        blocks = [found[:, at : at + 128] for at in range(0, n, 128)]
        dead = 0 if how.endswith(":1") else d  # the column whose input is zero is zero before anything is chosen
        assert (blocks[-1] == 0).sum() >= round(method.share * blocks[-1].size)
        assert sum((block == 0).sum() for block in blocks) <= sum(round(method.share * b.size) for b in blocks) + dead


def test_sparsegpt_beats_zeroing():
    """Its outputs are nearer to the unpruned ones than those of the same zeros, and than wanda's and magnitude's."""
    rng = np.random.default_rng(0)
    n = 200
    x = rng.standard_normal((600, n)) @ rng.standard_normal((n, n)) * 10 ** rng.uniform(-1, 1, n)
    w, h = matrix(1, 40, n), x.T @ x
    found = masks.sparsegpt(w, Method("sparsegpt", 0.5), masks.Inverse(h.copy(), 1), threads=1)
    by_wanda = masks.wanda(w, Method("wanda", 0.5), h.diagonal())

    def error(pruned):
        e = (w - pruned).astype(np.float64)
        return np.einsum("in,nm,im->", e, h, e)

    assert error(found) < 0.7 * error(np.where(found == 0, 0, w))
    assert error(found) < error(by_wanda) < error(masks.magnitude(w, Method("magnitude", 0.5)))
