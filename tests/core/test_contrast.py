"""What weighs predictions against each other: the head on its own, guidance, DoLa, degeneration penalties."""

import math

import numpy as np
import pytest

from fastllm import _core
from fastllm.errors import NumericError, OptionError
from helpers import contrasts, writers
from helpers.architectures import ARCHITECTURES
from helpers.writers import SMALL

ISAS = [name for name, supported in _core.isas() if supported]
HEADS = [name for name, made in ARCHITECTURES.items() if made.config.head]


def built(name, dtype, isa=None):
    config, optional, tied = ARCHITECTURES[name]
    weights = writers.random_weights(config, 3, tied=tied, optional=optional)
    tensors = writers.core_tensors(config, weights, dtype)
    return config, tensors, _core.Model(config, tensors, kv_dtype="f32", isa=isa, paced=False)


def stream(model, config, tokens):
    """The output of the last layer, and the logits of all tokens as the forward gives them."""
    hidden, logits = _core.Buffer(4 * len(tokens) * config.dim), model.logits(len(tokens))
    model.forward([(_core.KVCache(model).sequence(), tokens, len(tokens))], logits, hidden={config.n_layers: hidden})
    return hidden, bytes(logits)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize("name", HEADS)
def test_the_head_alone_is_the_forwards(name, dtype):
    tokens = np.random.default_rng(1).integers(0, 61, 19).tolist()
    for isa in ISAS:
        config, _, model = built(name, dtype, isa)
        hidden, expected = stream(model, config, tokens)
        for threads in (1, 2, 5):
            found = model.logits(len(tokens))
            _core.head(model, hidden, len(tokens), found, threads=threads)
            assert bytes(found) == expected
        one, row = _core.Buffer(4 * config.dim), model.logits(1)  # a single row takes another way through the core
        memoryview(one)[:] = memoryview(hidden)[-4 * config.dim :]
        _core.head(model, one, 1, row)
        assert bytes(row) == expected[-len(bytes(row)) :]


@pytest.mark.parametrize("dtype", ["f32", "q8"])
@pytest.mark.parametrize("name", [n for n in HEADS if ARCHITECTURES[n].config.causal])
def test_an_early_exit_is_the_matrix_and_its_bias(name, dtype):
    tokens = np.random.default_rng(1).integers(0, 61, 5).tolist()
    config, tensors, model = built(name, dtype)
    hidden, _ = stream(model, config, tokens)
    found, expected = model.logits(5), np.empty((5, model.logits_stride), np.float32)
    _core.head(model, hidden, 5, found, norm=False, threads=2)
    rows = np.frombuffer(hidden, np.float32).reshape(5, config.dim)
    tensors.get("head", tensors["embed"]).multiply(rows, expected)
    if (bias := writers.random_weights(config, 3, optional=ARCHITECTURES[name].optional).get("head.bias")) is not None:
        expected[:, : config.vocab_size] += bias
    assert (np.frombuffer(found, np.float32).reshape(5, -1) == expected).all()


def test_head_refuses(model):
    with pytest.raises(OptionError, match="no room for 3 rows"):
        _core.head(model, _core.Buffer(4 * 40 * 3), 3, model.logits(2))
    with pytest.raises(OptionError, match="no room for 4 rows"):
        _core.head(model, _core.Buffer(4 * 40 * 3), 4, model.logits(4))
    encoder = ARCHITECTURES["clip"]
    weights = writers.random_weights(encoder.config, 3, optional=encoder.optional)
    without = writers.core_model(encoder.config, weights, "f32")
    with pytest.raises(OptionError, match="the model has none"):
        _core.head(without, _core.Buffer(4096), 1, _core.Buffer(4096))


# ---- scores


def rows_of(model, *rows):
    buffer = model.logits(len(rows))
    filled = np.frombuffer(memoryview(buffer), np.float32).reshape(len(rows), -1)
    filled[:, : model_size(model)] = rows
    return buffer, filled[:, : model_size(model)]


def model_size(model):
    return SMALL.vocab_size


def small(isa=None):
    return writers.core_model(SMALL, writers.random_weights(SMALL), "f32", isa=isa)


def random_rows(seed, n, spread=3.0):
    return (spread * np.random.default_rng(seed).standard_normal((n, SMALL.vocab_size))).astype(np.float32)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.0, -2.0])
def test_guidance(scale):
    found = set()
    for isa in ISAS:
        logits, other = random_rows(1, 2)
        buffer, rows = rows_of(small(isa), other, logits)
        out, found_scores = rows_of(small(isa), np.zeros(SMALL.vocab_size))
        _core.guide(small(isa), buffer, 1, 0, scale, out)
        np.testing.assert_allclose(found_scores[0], contrasts.guided(logits, other, scale), rtol=1e-5, atol=1e-4)
        assert (rows == [other, logits]).all()
        found.add(found_scores.tobytes())
        _core.guide(small(isa), buffer, 1, 0, scale, buffer)  # in place of one of the two
        assert (rows[0] == found_scores[0]).all()
    assert len(found) == 1


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.5, 3.0, 90.0])  # of 90 most probabilities are 0 as floats
def test_dola(n, spread):
    found = set()
    for isa in ISAS:
        for threads in (1, 2, 4):
            logits, *exits = random_rows(n, 1 + n, spread)
            model = small(isa)
            buffer, rows = rows_of(model, logits)
            early, _ = rows_of(model, *exits)
            _core.dola(model, buffer, 0, early, n, buffer, threads=threads)
            expected = contrasts.dola_scores(logits, exits)
            assert ((rows[0] == -math.inf) == (expected == -math.inf)).all()
            np.testing.assert_allclose(rows[0], expected, rtol=1e-5, atol=1e-4)
            found.add(rows[0].tobytes())
    assert len(found) == 1


def test_dola_takes_the_first_of_equal_exits():
    logits, early = random_rows(3, 2)
    model = small()
    alone, expected = rows_of(model, logits)
    _core.dola(model, alone, 0, rows_of(model, early)[0], 1, alone)
    buffer, rows = rows_of(model, logits)
    _core.dola(model, buffer, 0, rows_of(model, early, early, logits)[0], 3, buffer)
    assert (rows == expected).all()


def test_scores_of_what_is_not_finite(model):
    for bad in (math.nan, math.inf, -math.inf):
        for place in (0, 1):
            pair = random_rows(4, 2)
            pair[place, 7] = bad
            buffer, rows = rows_of(model, *pair)
            with pytest.raises(NumericError, match="not finite"):
                _core.guide(model, buffer, 0, 1, 1.5, buffer)
            exits, _ = rows_of(model, pair[1], pair[1])
            with pytest.raises(NumericError, match="not finite"):
                _core.dola(model, buffer, 0, exits, 2, buffer, threads=2)
            np.testing.assert_array_equal(rows, pair)


def test_scores_refuse_rows_that_there_are_not(model):
    buffer, _ = rows_of(model, *random_rows(4, 2))
    with pytest.raises(OptionError, match="guide: no row 2"):
        _core.guide(model, buffer, 0, 2, 1.5, buffer)
    with pytest.raises(OptionError, match="dola: no row 2"):
        _core.dola(model, buffer, 2, buffer, 1, buffer)
    for n in (0, 3):
        with pytest.raises(OptionError, match=f"dola: no {n} rows"):
            _core.dola(model, buffer, 0, buffer, n, buffer)


# ---- degeneration


def test_degeneration():
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((150, SMALL.dim)).astype(np.float32)
    rows[100] = 1000 * rows[3]  # the same direction
    found = set()
    for isa in ISAS:
        buffer = _core.Buffer(rows.nbytes)
        memoryview(buffer)[:] = rows.tobytes()
        for pieces in ((1, 2, 60, 5), (68,), (65, 3)):  # of 68 positions
            directions, at = _core.Directions(small(isa)), 0
            for n in pieces:
                directions.append(buffer, at, n)
                at += n
            assert directions.count == 68
            for threads in (1, 3):
                penalties = directions.degeneration(buffer, 68, 82, threads=threads)
                np.testing.assert_allclose(penalties, contrasts.degeneration(rows[:68], rows[68:]), atol=1e-6)
                assert penalties[32] == max(penalties)
                assert penalties[5] == directions.degeneration(buffer, 73, 1)[0]
                found.add(tuple(penalties))
    assert len(found) == 1


def test_degeneration_refuses(model):
    directions, buffer = _core.Directions(model), _core.Buffer(4 * SMALL.dim * 3)
    with pytest.raises(OptionError, match="no position"):
        directions.degeneration(buffer, 0, 1)
    for first, n in ((0, 4), (4, 0), (2, 2), (3, 1)):
        with pytest.raises(OptionError, match=f"no {n} rows from {first} on in 3"):
            directions.append(buffer, first, n)
    with pytest.raises(OptionError, match="0 positions cannot be cut to 1"):
        directions.truncate(1)
    directions.append(buffer, 0, 3)  # zeros have no direction: they are like nothing
    assert directions.degeneration(buffer, 0, 2) == [0, 0]
    np.frombuffer(memoryview(buffer), np.float32)[3] = math.nan
    assert str(directions.degeneration(buffer, 0, 2)) == "[nan, 0.0]"
    directions.append(buffer, 0, 1)
    assert str(directions.degeneration(buffer, 1, 1)) == "[nan]"
    directions.truncate(3)
    assert directions.degeneration(buffer, 1, 1) == [0]
