"""Weights in panels: the layout byte by byte, the rounding bit by bit, and what cannot be packed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import CheckpointError, OptionError, _core
from helpers import oracle, writers
from helpers.calls import run
from helpers.writers import rows

shapes = st.tuples(st.integers(1, 50), st.integers(1, 100))


@st.composite
def matrices(draw):
    """Random matrices with groups of zeros, of subnormal numbers, and of one large number among small ones."""
    d, n = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    exponents = rng.integers(*sorted((draw(st.integers(-45, 4)), 5)), (d, n))
    w = rng.standard_normal((d, n)) * 10.0 ** np.where(rng.random((d, 1)) < 0.5, exponents[:, :1], exponents)
    w[rng.random((d, n)) < draw(st.sampled_from([0, 0.5, 0.99]))] = 0
    return w.astype(np.float32)


def same_bits(a, b):
    return a.tobytes() == b.tobytes()


@given(matrices(), st.sampled_from(["f32", "f16", "bf16", "q8"]), st.integers(1, 3))
def test_layout_and_rows(w, dtype, threads):
    w = np.clip(w, -6e4, 6e4)  # the range of f16
    matrix = _core.pack(dtype, *w.shape, "f32", w.tobytes(), threads=threads)
    assert (matrix.dtype, matrix.shape) == (dtype, w.shape)
    expected = oracle.panels(dtype, w)
    assert matrix.nbytes == len(expected) == _core.matrix_bytes(dtype, *w.shape)
    assert bytes(matrix.data) == expected
    assert (rows(matrix) == oracle.rounded(dtype, w)).all()


@given(matrices())
def test_int8_is_off_by_half_a_step_at_most(w):
    matrix = writers.pack("q8", w)
    _, scales = oracle.q8(w)
    steps = np.repeat(scales.astype(np.float64), 32, axis=1)[:, : w.shape[1]]
    assert (np.abs(rows(matrix).astype(np.float64) - w) <= 0.50001 * steps).all()
    # From the smallest f16 scale that covers the largest weight to 4 % more.
    largest = np.abs(w).max(axis=1)
    assert (steps.max(axis=1) <= largest / 127 * (1.04 + 2.0**-10) + 2.0**-24).all()


def test_int8_scales_are_searched():
    """Normal weights lose a sixth less than with the largest weight / 127 as the scale."""
    w = np.random.default_rng(1).standard_normal((64, 320)).astype(np.float32)
    plain = np.abs(w.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
    before = (np.rint(w.reshape(-1, 32) / plain) * plain).reshape(w.shape)
    assert ((rows(writers.pack("q8", w)) - w) ** 2).sum() < 0.86 * ((before - w) ** 2).sum()


@given(shapes, st.integers(0, 1 << 32), st.integers(1, 3))
def test_permuted_rows(shape, seed, threads):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32)
    order = rng.integers(0, shape[0], shape[0]).astype(np.int32)
    matrix = _core.pack("f32", *shape, "f32", w.tobytes(), rows=order, threads=threads)
    assert same_bits(rows(matrix), w[order])


@given(st.data(), shapes)
def test_halves_stay_what_they_are(data, shape):
    """f16 and bf16 weights keep their values in their own type and in f32; f32 rounds to f16 as in numpy."""
    bits = np.random.default_rng(data.draw(st.integers(0, 1 << 32))).integers(0, 1 << 16, shape)
    halves = bits.astype(np.uint16)
    f16 = np.where((halves & 0x7C00) == 0x7C00, halves & 0x83FF, halves).view(np.float16)
    bf16 = np.where((halves & 0x7F80) == 0x7F80, halves & 0x807F, halves)
    floats = (bf16.astype(np.uint32) << 16).view(np.float32)
    for source, blob, expected in (
        ("f16", f16.tobytes(), f16.astype(np.float32)),
        ("bf16", bf16.tobytes(), floats),
    ):
        for dtype in (source, "f32"):
            assert same_bits(rows(_core.pack(dtype, *shape, source, blob)), expected)


def test_every_f16():
    """All 63,488 finite f16 become f32 and f16 again; an f32 midway between two rounds to the even one."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32)
    positive = np.sort(finite[finite > 0])
    middles = ((positive[1:].astype(np.float64) + positive[:-1]) / 2).astype(np.float32)
    w = np.concatenate([finite, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    matrix = _core.pack("f16", 1, len(w), "f32", w.astype(np.float32).tobytes())
    assert same_bits(rows(matrix)[0], w.astype(np.float16).astype(np.float32))


# ---- what cannot be packed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((dtype, bad) for dtype in ("f32", "f16", "bf16", "q8") for bad in (np.nan, np.inf, -np.inf)),
        ("f16", 65520.0),  # rounds to infinity; 65519 does not
        ("bf16", 3.4e38),
        ("q8", 127 * 65520.0),
    ],
)
def test_values_that_do_not_fit(dtype, value):
    w = np.ones((20, 40), np.float32)
    w[17, 39] = value
    with pytest.raises(CheckpointError, match=r"layer 7 as .*: a value is not finite, or too large"):
        _core.pack(dtype, 20, 40, "f32", w.tobytes(), name="layer 7")


@pytest.mark.parametrize(
    ("dtype", "value"), [("f32", 3.4e38), ("f16", 65519.0), ("bf16", 3.38e38), ("q8", 127 * 65519.0)]
)
def test_the_largest_values_that_fit(dtype, value):
    w = np.full((1, 32), value, np.float32)
    assert (rows(writers.pack(dtype, w)) == oracle.rounded(dtype, w)).all()
    assert np.isfinite(rows(writers.pack(dtype, w))).all()


def test_sizes_that_do_not_fit():
    one = bytes(4 * 6)
    good = np.arange(2, dtype=np.int32)
    for size in (0, 4 * 6 - 1, 4 * 6 + 1):
        with pytest.raises(CheckpointError):
            _core.pack("f32", 2, 3, "f32", bytes(size))
    for d, n in ((0, 3), (2, 0), (0, 0)):
        with pytest.raises(CheckpointError):
            _core.pack("f32", d, n, "f32", b"")
    with pytest.raises(CheckpointError):
        _core.pack("f32", 2, 3, "f32", one, rows=good[:1])
    for bad in (-1, 2):
        with pytest.raises(CheckpointError):
            _core.pack("f32", 2, 3, "f32", one, rows=np.array([0, bad], np.int32))
    for types in (("int3", "f32"), ("f32", "int3")):
        with pytest.raises(OptionError, match="no weight type"):
            _core.pack(types[0], 2, 3, types[1], one)
    for source in ("q8", "q4", "q4m"):  # panels are no source
        with pytest.raises(CheckpointError):
            _core.pack("f32", 2, 3, source, one)


OVERFLOWS = """
from fastllm import CheckpointError, _core

for d, n in ((1 << 62, 4), (1 << 32, 1 << 32), ((1 << 62) + 1, 4)):
    try:
        _core.pack("f32", d, n, "f32", bytes(d * n * 4 % (1 << 64)))
    except (CheckpointError, OverflowError, MemoryError):
        print("refused")
try:
    _core.Matrix("f32", ((1 << 53) + 1) * 16, 32, _core.Buffer(2048))
except (CheckpointError, OverflowError):
    print("refused")
"""


def test_a_product_of_dimensions_that_overflows():
    """Dimensions whose product wraps around, modulo 2^64, to the number of values that are given."""
    done = run(OVERFLOWS)
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * 4), done.stderr


def test_panels_that_do_not_fit():
    size = _core.matrix_bytes("q8", 3, 40)
    buffer = _core.Buffer(size + 64)
    _core.Matrix("q8", 3, 40, memoryview(buffer)[:size])
    for part in (memoryview(buffer)[: size - 1], memoryview(buffer), memoryview(buffer)[1 : size + 1]):
        with pytest.raises(CheckpointError):
            _core.Matrix("q8", 3, 40, part)
    with pytest.raises(CheckpointError):
        _core.Matrix("q8", 0, 40, b"")
    for bad in (b"", bytes(3), bytes(5)):
        with pytest.raises(CheckpointError):
            _core.Vector(bad)


def test_rows_that_are_not_there():
    matrix = writers.pack("f32", np.ones((3, 5), np.float32))
    for r, size in ((3, 5), (0, 4), (0, 6)):
        with pytest.raises(OptionError):
            matrix.row(r, np.empty(size, np.float32))
