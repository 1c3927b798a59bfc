"""GGUF's blocks moved into panels: the weights that the blocks say, whatever the rows, and the layout byte by byte."""

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import CheckpointError, _core
from helpers.blocks import DECODE, KEPT, scales_and_minima
from helpers.writers import rows

BLOCKS = _core.block_types()
MOVED = {kind: dtype for kind, (_, _, dtype, _) in BLOCKS.items() if dtype}
HALVES = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,), "MXFP4": ()}  # where blocks have f16; the others at 0


@st.composite
def matrices(draw, kind):
    """Random blocks of a matrix (d, n), uint8 (d * n / values, bytes), all of whose scales f16 can hold, and d."""
    values, nbytes, *_ = BLOCKS[kind]
    d, across = draw(st.integers(1, 40)), draw(st.integers(1, 3 if values == 256 else 9))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    blocks = rng.integers(0, 256, (d * across, nbytes), np.uint8)
    blocks[rng.random(len(blocks)) < 0.1] = 0
    # Of Q4_K, Q6_K and IQ4_XS small integers multiply the scale, 63, 127 and 32 at most.
    most = draw(st.sampled_from([1e-6, 1e-3, 1.0, 6e4 / 128 if values == 256 else 6e4]))
    for at in HALVES.get(kind, (0,)):
        halves = (rng.uniform(-most, most, len(blocks))).astype("<f2")
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = rng.integers(104, 144, len(blocks))  # 2^-24 to 2^15
    return blocks, d


def packed(kind, blocks, d, **options):
    values, *_ = BLOCKS[kind]
    return _core.pack(MOVED[kind], d, len(blocks) // d * values, kind, blocks.tobytes(), **options)


def references(kind, blocks):
    """What each of blocks stands for, by numpy and if it is installed by the gguf package."""
    yield DECODE[kind](blocks)
    if find_spec("gguf"):
        import gguf

        yield gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).reshape(len(blocks), -1)


@pytest.mark.parametrize("kind", [kind for kind in MOVED if kind not in KEPT])
@given(st.data())
def test_weights_to_the_bit(kind, data):
    blocks, d = data.draw(matrices(kind))
    matrix = packed(kind, blocks, d, threads=data.draw(st.integers(1, 3)))
    assert matrix.dtype == MOVED[kind]
    assert matrix.values == BLOCKS[kind][3]
    for expected in references(kind, blocks):
        assert rows(matrix).tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", KEPT)
@given(st.data())
def test_weights_but_for_the_rounding_of_scales(kind, data):
    """They are an oracle's, to the bit. Q4_K's and IQ4_XS's scales are off by 2^-11, or f16's least step."""
    blocks, d = data.draw(matrices(kind))
    found = rows(packed(kind, blocks, d, threads=data.draw(st.integers(1, 3))))
    assert (found == KEPT[kind](blocks).astype(np.float32).reshape(found.shape)).all()
    if kind == "Q6_K":
        return
    for expected in references(kind, blocks):
        groups = expected.astype(np.float64).reshape(-1, 32)
        errors = np.abs(found.reshape(-1, 32) - groups).max(axis=1)
        sizes = np.abs(groups).max(axis=1)
        if kind == "Q4_K":  # the largest code times scale, and the minimum, may be larger than their sums
            minima = np.abs(scales_and_minima(blocks)[1])
            sizes = sizes + 2 * minima.ravel()
        assert (errors <= 2.0**-11 * sizes + 127 * 2.0**-24).all()


@given(st.data())
def test_half_of_each_group_of_q6_k_is_exact(data):
    """But for its scale; and the other half is off by half a step at most, which is 1/96 of the largest weight."""
    blocks, d = data.draw(matrices("Q6_K"))
    found = rows(packed("Q6_K", blocks, d)).astype(np.float64).reshape(-1, 2, 16)
    for expected in references("Q6_K", blocks):
        halves = expected.astype(np.float64).reshape(-1, 2, 16)
        largest = np.abs(halves).max(axis=(1, 2))
        errors = np.abs(found - halves).max(axis=2)
        assert (errors.min(axis=1) <= 2.0**-11 * largest + 64 * 2.0**-24).all()
        assert (errors.max(axis=1) <= (0.5 / 96 + 2.0**-11) * largest + 64 * 2.0**-24).all()


@pytest.mark.parametrize("kind", MOVED)
@given(st.data())
def test_rows_in_any_order(kind, data):
    """Of a matrix in any order, with any number of threads: the bytes that the rows have alone."""
    blocks, d = data.draw(matrices(kind))
    order = np.array(data.draw(st.lists(st.integers(0, d - 1), min_size=d, max_size=d)), np.int32)
    moved = packed(kind, blocks, d, rows=order, threads=data.draw(st.integers(1, 3)))
    turned = blocks.reshape(d, -1, blocks.shape[1])[order].reshape(blocks.shape)
    assert bytes(moved.data) == bytes(packed(kind, turned, d).data)


@given(st.data())
def test_layout(data):
    """Panels of 16 rows: scales and minima of each group, then lines of 16 rows x 8 codes. The rest is zeros."""
    kind = data.draw(st.sampled_from(["Q4_0", "Q4_1"]))
    blocks, d = data.draw(matrices(kind))
    across = len(blocks) // d
    start = {"Q4_0": 2, "Q4_1": 4}[kind]
    tall = np.zeros((-(-d // 16) * 16, across, blocks.shape[1]), np.uint8)
    tall[:d] = blocks.reshape(d, across, -1)
    out = b""
    for panel in tall.reshape(-1, 16, across, blocks.shape[1]):
        head = panel[:, :, :start].copy().view("<f2")  # row, group, scale or minimum
        scales = head.transpose(1, 2, 0).tobytes()
        codes = np.concatenate([panel[..., start:] & 15, panel[..., start:] >> 4], axis=2)
        lines = codes.reshape(16, across, 4, 2, 4)  # row, group, line, half of a byte, byte
        nibbles = lines[..., 0, :] | lines[..., 1, :] << 4
        out += scales + bytes(-len(scales) % 64) + nibbles.transpose(1, 2, 0, 3).tobytes()
    assert bytes(packed(kind, blocks, d).data) == out


@pytest.mark.parametrize("kind", MOVED)
def test_scales_that_cannot_be(kind):
    """One in the last block of the last row, not finite or too large for f16, is an error that names the matrix."""
    _, nbytes, *_ = BLOCKS[kind]
    for at in HALVES.get(kind, (0,)) or (0,):
        for bits in (0x7C00, 0xFC00, 0x7E01):
            blocks = np.zeros((17 * 2, nbytes), np.uint8)
            blocks[-1, at : at + 2] = np.frombuffer(bits.to_bytes(2, "little"), np.uint8)
            if kind == "MXFP4":
                blocks[-1, 0] = 144
            with pytest.raises(CheckpointError, match=r"layer 7 as q\w+: a value is not finite, or too large"):
                packed(kind, blocks, 17, name="layer 7")
    if kind in ("Q4_K", "Q6_K", "IQ4_XS"):
        blocks = np.full((1, nbytes), 0x7F, np.uint8)
        for at in HALVES.get(kind, (0,)):
            blocks[0, at : at + 2] = np.frombuffer(np.array(6e4, "<f2").tobytes(), np.uint8)
        with pytest.raises(CheckpointError, match="too large"):
            packed(kind, blocks, 1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_other_types_and_sizes(kind):
    values, nbytes, kept, _ = BLOCKS[kind]
    data = bytes(2 * nbytes)
    for dtype in _core.TYPES:
        if dtype != kept:
            with pytest.raises(CheckpointError, match=f"w cannot become {dtype} from {kind}"):
                _core.pack(dtype, 2, values, kind, data, name="w")
    for d, n in ((2, values - 1), (2, values + 1), (1, values), (3, values), (2, 2 * values), (2, 0), (0, values)):
        with pytest.raises(CheckpointError, match="cannot be"):
            _core.pack(kept or "q8", d, n, kind, data)


def test_a_table():
    """A q4 matrix computes with the 16 values that it is given, and with no others than int8."""
    data = _core.Buffer(_core.matrix_bytes("q4", 1, 32))
    memoryview(data)[0:2] = np.array(1, "<f2").tobytes()
    memoryview(data)[64] = 0x3F
    table = [*range(-128, -120), *range(120, 128)]
    matrix = _core.Matrix("q4", 1, 32, data, values=table)
    assert matrix.values == tuple(table)
    expected = np.full(32, -128.0)
    expected[[0, 4]] = 127, -125
    assert (rows(matrix) == expected).all()
    for bad in ([], table[1:], [*table, 0], [*table[1:], 128], [*table[1:], 0.5], [*table[1:], None], 7):
        with pytest.raises(CheckpointError, match="cannot have the values"):
            _core.Matrix("q4", 1, 32, data, values=bad)
    for dtype in ("q8", "q4m", "f32"):
        buffer = _core.Buffer(_core.matrix_bytes(dtype, 1, 32))
        assert _core.Matrix(dtype, 1, 32, buffer).values is None
        with pytest.raises(CheckpointError, match="cannot have the values"):
            _core.Matrix(dtype, 1, 32, buffer, values=table)
