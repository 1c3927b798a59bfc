"""Four bits: what packing makes of weights, with and without a calibration text, and models of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError, OptionError, _core
from fastllm.cli import main
from fastllm.families import Recipe, Weight
from fastllm.tensors import Tensor
from fastllm.weights import store
from fastllm.weights.calibration import Calibration
from fastllm.weights.convert import convert
from fastllm.weights.packing import assemble, plan
from fastllm.weights.source import open_source
from helpers import writers

shapes = st.tuples(st.integers(1, 40), st.integers(1, 100))


def rows(matrix):
    out = np.empty(matrix.shape, np.float32)
    for r in range(len(out)):
        matrix.row(r, out[r])
    return out


def pack(w, **options):
    return _core.pack("q4", *w.shape, "f32", np.ascontiguousarray(w).tobytes(), **options)


def scales_and_codes(matrix):
    """The layout read in another way: (d, groups) f16 and (d, n) codes, byte by byte as fastllm.h has them."""
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
    """The 16 values, seen through packing: -127 / 127 of its own scale tells where the long end is."""
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
    """Each group by its largest value at the table's long end, codes the nearest."""
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


# ---- packing ---------------------------------------------------------------------------------------------------------


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
    # Each code is the nearest to its weight, but for halves of a step of the table's 255.
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
    """Columns that count a hundredfold: their weighted error is smaller than without knowing."""
    w, weight = spread(seed, (48, 96), False), np.where(np.arange(96) % 8 == 0, 100, 1).astype(np.float32)
    plain, weighted = rows(pack(w)) - w, rows(pack(w, importance=weight)) - w
    assert (weighted**2 @ weight).sum() < (plain**2 @ weight).sum()


def correlated(seed, n, count=2000):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, n // 4)) @ rng.standard_normal((n // 4, n))).astype(np.float32) + (
        rng.standard_normal((count, n)).astype(np.float32) * 0.3
    )


def damped(x):
    """The sum of x x^T, with a hundredth of its diagonal's mean added to that."""
    h = x.astype(np.float64).T @ x
    return h + 0.01 * np.trace(h) / len(h) * np.eye(len(h))


def factored(h):
    upper, importance = h.copy(), np.empty(len(h), np.float32)
    _core.factor(upper, importance)
    return {"importance": importance, "feedback": np.ascontiguousarray(upper.T, np.float32)}


def lost(matrix, w, h):
    """The outputs' squared error."""
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
    """The outputs' error is less than half of plain packing's; and without any correlation nothing changes."""
    w, h = spread(1, (40, n), False), damped(correlated(1, n))
    factors = factored(h)
    fed = pack(w, **factors)
    assert lost(fed, w, h) < 0.5 * lost(pack(w), w, h)
    assert lost(fed, w, h) < 0.6 * lost(pack(w, importance=np.diag(h).astype(np.float32)), w, h)
    assert bytes(fed.data) == bytes(pack(w, **factors, threads=3).data)
    # LDLQ's identity: the error of the outputs is that of the roundings.
    e = w - rows(fed).astype(np.float64)
    rounding = e @ (np.tril(factors["feedback"], -1) + np.eye(n)).T
    scales, _ = scales_and_codes(fed)
    steps = np.abs(np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n])
    assert (np.abs(rounding) <= 16 * steps).mean() > 0.99  # half of the table's widest gap, 13, but at its ends


@pytest.mark.parametrize("n", [1, 33, 96, 150])
def test_descent_betters_what_was_rounded_in_turn(n):
    """Less error than rounding once, and no value or scale alone could be changed to have less."""
    w, h = spread(2, (40, n), False), damped(correlated(2, max(n, 4))[:, :n])
    factors = factored(h)
    once, found = pack(w, **factors), pack(w, **factors, products=h.astype(np.float32))
    assert lost(found, w, h) <= (0.95 if n > 32 else 1) * lost(once, w, h)
    # Moving one value to any other of the table: a single row's change of e h e^T, from e's slope.
    scales, codes = scales_and_codes(found)
    steps = np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n]
    slope = (w - rows(found).astype(np.float64)) @ h
    moves = steps[:, :, None] * (VALUES - VALUES[codes][:, :, None])
    change = moves**2 * np.diag(h)[:, None] - 2 * moves * slope[:, :, None]
    assert (change.min(axis=2) < -1e-6 * lost(found, w, h) / 40).mean() < 0.05  # others have moved since


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
    """A row's bytes do not depend on its neighbours, nor on how many there are."""
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
    """From what no f16 scale reaches to the largest it does: never worse than zeros, and zero where all are."""
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
    """The largest value that int8 takes too, at either end of the table."""
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


# ---- models ----------------------------------------------------------------------------------------------------------

CONFIG = writers.config(64, 96, 4, 2, 300, max_seq=160)
TOKENS = list(range(3, 45))
TEXT = "".join(np.random.default_rng(1).choice(list("tehainorgsdlcupm.,!? "), 6000))


def test_a_model_computes_with_its_own_weights(write_model):
    """A q4 model against one in f32 of the very values it holds: only int8 inputs are between them."""
    path = write_model(CONFIG)
    found = fastllm.load(path, dtype="q4")
    stored = assemble(open_source(path, None).recipe, dtype="q4", threads=1)
    tensors = {
        name: _core.pack("f32", *t.shape, "f32", rows(t).tobytes()) if isinstance(t, _core.Matrix) else t
        for name, t in stored.tensors.items()
    }
    exact = fastllm.llm.LLM(
        stored._replace(tensors=tensors), found.tokenizer, threads=1, context=None, path=path
    ).logits(TOKENS)
    error = np.sqrt(np.square(found.logits(TOKENS) - exact).mean())
    assert error < 0.05 * exact.std()
    far = fastllm.load(path, dtype="f32").logits(TOKENS)
    assert np.sqrt(np.square(far - exact).mean()) > 3 * error


def test_head_and_embedding_are_int8(write_model, tmp_path, capsys):
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out), "--dtype", "q4"]) == 0
    stored = store.open_file(out)
    kinds = {name: t.dtype for name, t in stored.tensors.items() if isinstance(t, _core.Matrix)}
    assert kinds["embed"] == kinds["head"] == "q8"
    assert kinds["layers.0.ffn.w1"] == kinds["layers.0.attn.wo"] == kinds["layers.0.attn.wq"] == "q4"
    assert kinds["layers.0.attn.wv"] == kinds["layers.0.ffn.w2"] == kinds["layers.1.ffn.w1"] == "q8"
    assert set(kinds.values()) == {"q4", "q8"}
    loaded = fastllm.load(out, dtype="q4")
    assert loaded.dtypes == ["q4"]
    assert (loaded.logits(TOKENS) == fastllm.load(path, dtype="q4").logits(TOKENS)).all()
    with pytest.raises(OptionError):
        fastllm.load(out, dtype="q8")
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "q4" in capsys.readouterr().out


def test_bits_of_a_weight():
    """Of a Llama of 1.1 billion weights: what is read for a token, head included, is less than Q4_K_M's 4.85 bits."""
    cfg = writers.config(2048, 5632, 32, 4, 32000, n_layers=22)
    weights = {
        name: Weight(Tensor("f16", shape, lambda begin, end: b""))
        for name, shape, required in cfg.matrices()
        if required or name == "head"
    }
    plans = plan(Recipe(cfg, weights, {}, 1, (2,), ()), "q4")
    read = [p for name, p in plans.items() if name != "embed"]
    assert 4.5 < sum(p.nbytes for p in read) * 8 / sum(math.prod(p.shape) for p in read) < 4.85
    layers = [p for name, p in plans.items() if name.startswith("layers.")]
    assert sum(p.nbytes for p in layers) * 8 / sum(math.prod(p.shape) for p in layers) < 4.6
    assert [name for name, p in plans.items() if p.dtype == "q8"] == [
        "layers.21.attn.wv",
        "layers.21.ffn.w2",
        "embed",
        "head",
    ]


# ---- calibration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_inputs_are_what_the_matrices_multiply(write_model):
    """The sums are those of inputs worked out from the streams: norms of what enters a layer."""
    path = write_model(CONFIG)
    stored = assemble(open_source(path, None).recipe, dtype="f32", threads=1)
    tokens = list(range(3, 260))
    seen = Calibration(stored, [1], tokens, threads=2)
    llm = fastllm.load(path, dtype="f32")
    pieces = [[1, *tokens[at : at + 159]] for at in range(0, len(tokens), 159)]  # the model has 160 positions
    x = np.concatenate([llm.hidden_states(piece, 1) for piece in pieces]).astype(np.float64)
    weight = np.frombuffer(stored.tensors["layers.1.attn_norm"].data, np.float32)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + stored.config.norm_eps) * weight
    importance, feedback, products = seen.factors("layers.1.attn.wk")
    upper = np.tril(feedback, -1).T.astype(np.float64) + np.eye(len(feedback))
    exact = damped(x)
    assert np.allclose(upper * importance @ upper.T, exact, rtol=1e-3, atol=1e-4 * exact.max())
    assert np.allclose(products, exact, rtol=1e-3, atol=1e-4 * exact.max())
    assert seen.factors("layers.0.ffn.w2").products.shape == (96, 96)
    assert seen.factors("embed") is None
    assert seen.factors("layers.1.router") is None


def test_calibrated_is_closer(write_model, tmp_path, text):
    """Over other text of the kind it was calibrated with, the logits are closer to those of the floats."""
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    tokens = (llm := fastllm.load(path, dtype="f32")).tokenize(TEXT[::-1])[:150]
    exact = llm.logits(tokens)
    plain = np.abs(fastllm.load(path, dtype="q4").logits(tokens) - exact)
    assert main(["convert", str(path), str(out), "--dtype", "q4", "--calibrate", str(text), "--threads", "1"]) == 0
    found = np.abs(fastllm.load(out).logits(tokens) - exact)
    assert (found**2).mean() < (plain**2).mean()
    again = tmp_path / "again.safetensors"
    convert(path, again, dtype="q4", calibrate=text, threads=2)
    assert again.read_bytes() == out.read_bytes()


def test_texts_that_cannot_calibrate(write_model, tmp_path, text, capsys):
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    for words in (b"", b"too few words", b"\xff\xfe\xff" * 1000):
        text.write_bytes(words)
        with pytest.raises(OptionError, match="calibration text"):
            convert(path, out, dtype="q4", calibrate=text)
    with pytest.raises(OptionError, match="cannot be read"):
        convert(path, out, dtype="q4", calibrate=tmp_path / "none.txt")
    text.write_text(TEXT)
    for options in ({"dtype": "q8"}, {}, {"format": "llama2c"}):
        with pytest.raises(OptionError, match="q4"):
            convert(path, out, calibrate=text, **options)
    assert main(["convert", str(path), str(out), "--calibrate", str(text)]) == 2
    assert "q4" in capsys.readouterr().err
    assert not out.exists()
