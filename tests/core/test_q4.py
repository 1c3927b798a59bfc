"""Packing in four bits: the values, the layout, and the rounding with and without a calibration text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import CheckpointError, OptionError, _core
from helpers.oracle import damped
from helpers.writers import rows

shapes = st.tuples(st.integers(1, 40), st.integers(1, 100))


def pack(w, **options):
    return _core.pack("q4", *w.shape, "f32", np.ascontiguousarray(w).tobytes(), **options)


def scales_and_codes(matrix):
    """Reads a matrix by the layout in fastllm.h: f16 scales (d, groups) and codes (d, n)."""
    d, n = matrix.shape
    groups, panels = -(-n // 32), -(-d // 16)
    head = -(-groups * 32 // 64) * 64  # scales are padded to 64 bytes
    data = np.frombuffer(matrix.data, np.uint8).reshape(panels, head + groups * 256)
    scales = data[:, : groups * 32].copy().view(np.float16).reshape(panels, groups, 16)
    tiles = data[:, head:].reshape(panels, groups, 4, 16, 4)  # tile, row, k % 4
    codes = np.stack([tiles & 15, tiles >> 4], axis=3)  # (panels, groups, tile, half, row, k % 4)
    codes = codes.transpose(0, 4, 1, 2, 3, 5).reshape(panels * 16, groups * 32)
    return scales.transpose(0, 2, 1).reshape(panels * 16, groups)[:d], codes[:d, :n]


def table():
    """The 16 values that codes stand for, found by packing multiples of them."""
    w = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(-1, 32)[:, ::-1].copy()
    w = np.concatenate([w, np.random.default_rng(0).standard_normal((512, 32)).astype(np.float32)])
    matrix = pack(w)
    scales, codes = scales_and_codes(matrix)
    values = np.full(16, np.nan)
    found = rows(matrix).astype(np.float64) / scales.astype(np.float64)
    for code in range(16):
        seen = found[codes == code]
        assert (seen == seen[0]).all()
        values[code] = seen[0]
    return values


VALUES = table()


def naive(w):
    """Simple packing: each group's largest value gets the table's farthest value, the others get the nearest code."""
    d, n = w.shape
    groups = np.zeros((d, -(-n // 32) * 32))
    groups[:, :n] = w
    groups = groups.reshape(-1, 32)
    largest = groups[np.arange(len(groups)), np.abs(groups).argmax(axis=1)]
    scale = (largest / VALUES[np.abs(VALUES).argmax()]).astype(np.float16).astype(np.float64)[:, None]
    distance = np.abs(groups[:, :, None] - scale[:, :, None] * VALUES)
    nearest = scale * VALUES[distance.argmin(axis=2)]
    return nearest.reshape(d, -1)[:, :n]


def spread(seed, shape, heavy):
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, shape) if heavy else rng.standard_normal(shape)
    return (w * 0.02 * np.exp(rng.standard_normal((shape[0], 1)))).astype(np.float32)


def test_the_table():
    assert (np.diff(VALUES) > 0).all()
    assert (VALUES.round() == VALUES).all()
    assert VALUES[0] == -127
    assert VALUES[-1] < 127


@given(shapes, st.integers(0, 1 << 32), st.booleans(), st.integers(1, 3))
def test_values_are_table_times_scale(shape, seed, heavy, threads):
    w = spread(seed, shape, heavy)
    matrix = pack(w, threads=threads)
    scales, codes = scales_and_codes(matrix)
    expected = VALUES[codes].astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)[:, : shape[1]]
    assert (rows(matrix) == expected).all()
    # Each code is the nearest to its weight, up to half of one of the table's 255 steps.
    steps = np.abs(np.repeat(scales.astype(np.float64), 32, axis=1)[:, : shape[1]])
    gaps = np.abs(w[:, :, None] - np.repeat(scales.astype(np.float64), 32, axis=1)[:, : shape[1], None] * VALUES)
    assert (np.abs(expected - w) <= gaps.min(axis=2) + 1.01 * steps).all()
    assert bytes(matrix.data) == bytes(pack(w).data)


@pytest.mark.parametrize("heavy", [False, True])
def test_better_than_the_largest_value_decides(heavy):
    w = spread(3, (256, 256), heavy)
    found, plain = rows(pack(w)) - w, naive(w) - w
    assert (found**2).sum() < 0.93 * (plain**2).sum()
    relative = np.sqrt((found**2).sum(axis=1) / (w**2).sum(axis=1))
    assert 0.06 < relative.mean() < (0.095 if heavy else 0.08)


@given(st.integers(0, 1 << 32))
def test_what_counts_more_is_closer(seed):
    """With importances given, columns that count a hundredfold have less weighted error than without."""
    w, weight = spread(seed, (48, 96), False), np.where(np.arange(96) % 8 == 0, 100, 1).astype(np.float32)
    plain, weighted = rows(pack(w)) - w, rows(pack(w, importance=weight)) - w
    assert (weighted**2 @ weight).sum() < (plain**2 @ weight).sum()


def correlated(seed, n, count=2000):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, n // 4)) @ rng.standard_normal((n // 4, n))).astype(np.float32) + (
        rng.standard_normal((count, n)).astype(np.float32) * 0.3
    )


def factored(h):
    upper, importance = h.copy(), np.empty(len(h), np.float32)
    _core.factor(upper, importance)
    return {"importance": importance, "feedback": np.ascontiguousarray(upper.T, np.float32)}


def lost(matrix, w, h):
    """The squared error of the outputs, e h e^T summed over rows, of a packed matrix against w."""
    e = rows(matrix).astype(np.float64) - w
    return np.einsum("ij,jk,ik->", e, h, e)


@pytest.mark.parametrize("n", [1, 31, 64, 150])
@pytest.mark.parametrize("threads", [1, 3])
def test_factors(n, threads):
    exact = damped(correlated(0, max(n, 4))[:, :n])
    h, importance = exact.copy(), np.empty(n, np.float32)
    _core.factor(h, importance, threads=threads)
    upper = np.triu(h, 1) + np.eye(n)
    assert np.allclose(upper * importance.astype(np.float64) @ upper.T, exact, rtol=1e-5, atol=1e-6 * exact.max())
    again, same = exact.copy(), np.empty(n, np.float32)
    _core.factor(again, same)
    assert (np.triu(again) == np.triu(h)).all()
    assert (same == importance).all()


@pytest.mark.parametrize("n", [33, 96, 150])
def test_feedback_is_columns_rounded_in_turn(n):
    """Feedback of rounding errors halves the outputs' error; without correlated inputs it changes nothing."""
    w, h = spread(1, (40, n), False), damped(correlated(1, n))
    factors = factored(h)
    fed = pack(w, **factors)
    assert lost(fed, w, h) < 0.5 * lost(pack(w), w, h)
    assert lost(fed, w, h) < 0.6 * lost(pack(w, importance=np.diag(h).astype(np.float32)), w, h)
    assert bytes(fed.data) == bytes(pack(w, **factors, threads=3).data)
    # LDLQ (Chee et al., 2023, https://arxiv.org/abs/2307.13304): the outputs' error is that of the roundings alone.
    e = w - rows(fed).astype(np.float64)
    rounding = e @ (np.tril(factors["feedback"], -1) + np.eye(n)).T
    scales, _ = scales_and_codes(fed)
    steps = np.abs(np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n])
    assert (np.abs(rounding) <= 16 * steps).mean() > 0.99  # half of the table's widest gap is 13, except past its ends


@pytest.mark.parametrize("n", [1, 33, 96, 150])
def test_descent_betters_what_was_rounded_in_turn(n):
    """Coordinate descent has less error than rounding once, and hardly any single code could still improve it."""
    w, h = spread(2, (40, n), False), damped(correlated(2, max(n, 4))[:, :n])
    factors = factored(h)
    once, found = pack(w, **factors), pack(w, **factors, products=h.astype(np.float32))
    assert lost(found, w, h) <= (0.95 if n > 32 else 1) * lost(once, w, h)
    # The change of a row's error e h e^T if one code becomes any other, from the gradient at e.
    scales, codes = scales_and_codes(found)
    steps = np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n]
    slope = (w - rows(found).astype(np.float64)) @ h
    moves = steps[:, :, None] * (VALUES - VALUES[codes][:, :, None])
    change = moves**2 * np.diag(h)[:, None] - 2 * moves * slope[:, :, None]
    assert (change.min(axis=2) < -1e-6 * lost(found, w, h) / 40).mean() < 0.05  # best until later codes changed


@given(shapes, st.integers(0, 1 << 32), st.sampled_from(["plain", "important", "fed", "bettered"]))
def test_every_instruction_set_packs_the_same(shape, seed, how):
    w, h = spread(seed, shape, True), damped(correlated(seed, max(shape[1], 4), 64)[:, : shape[1]])
    factors = factored(h)
    options = {
        "plain": {},
        "important": {"importance": factors["importance"]},
        "fed": factors,
        "bettered": factors | {"products": h.astype(np.float32)},
    }[how]
    packed = {bytes(pack(w, isa=name, **options).data) for name, supported in _core.isas() if supported}
    assert len(packed) == 1


def test_rows_and_panels_are_packed_alone():
    """A row's bytes do not depend on the other rows, nor on how many there are."""
    w = spread(5, (37, 70), True)
    order = np.random.default_rng(0).permutation(37).astype(np.int32)
    assert (rows(pack(w, rows=order)) == rows(pack(w))[order]).all()
    assert (rows(pack(w[16:20])) == rows(pack(w))[16:20]).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_other_sources(dtype):
    w = spread(6, (20, 40), False)
    bits = w.astype(np.float16).view(np.uint16) if dtype == "f16" else (w.view(np.uint32) >> 16).astype(np.uint16)
    exact = (
        bits.view(np.float16).astype(np.float32) if dtype == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)
    )
    assert bytes(_core.pack("q4", 20, 40, dtype, bits.tobytes()).data) == bytes(pack(exact).data)


@given(st.integers(-160, 22), st.integers(0, 1 << 32))
def test_magnitudes(exponent, seed):
    """From weights too small for any f16 scale to the largest possible: never worse than zeros, and zeros stay zero."""
    w = (np.random.default_rng(seed).uniform(-1, 1, (3, 64)) * 2.0**exponent).astype(np.float32)
    w[1] = 0
    found = rows(pack(w)).astype(np.float64)
    assert np.isfinite(found).all()
    assert (found[1] == 0).all()
    error, size = np.abs(found - w), np.abs(w).max()
    assert (error <= np.minimum(0.2 * size + 2.0**-18, size + 2.0**-24)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9, -3e38])
def test_what_cannot_be_packed(bad):
    w = spread(7, (20, 64), False)
    w[17, 40] = bad
    with pytest.raises(CheckpointError):
        pack(w)


def test_the_largest():
    """The largest weight that packs is the same as for int8, whatever its sign."""
    for sign in (1, -1):
        w = np.full((1, 32), 65504 * 127 * sign, np.float32)
        w[0, ::2] *= -0.9
        found = rows(pack(w))
        assert np.isfinite(found).all()
        assert (np.abs(found - w) <= 0.25 * 65504 * 127).all()


def test_factors_that_do_not_fit():
    w, one = spread(8, (4, 32), False), np.ones(32, np.float32)
    for options in (
        {"importance": one[:31].copy()},
        {"feedback": np.zeros((32, 32), np.float32)},
        {"importance": one, "feedback": np.zeros((32, 31), np.float32)},
        {"importance": one, "products": np.zeros((32, 32), np.float32)},
        {"importance": one, "feedback": np.zeros((32, 32), np.float32), "products": np.zeros((31, 32), np.float32)},
    ):
        with pytest.raises(OptionError):
            pack(w, **options)
    with pytest.raises(OptionError):
        _core.factor(np.zeros((3, 4)), np.zeros(4, np.float32))
    for h in (np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1.0, np.inf])):
        with pytest.raises(CheckpointError):
            _core.factor(h, np.zeros(len(h), np.float32))
