"""Model.draw: several texts' rows at once are what Sampler.draw gives one by one, and a text that fails fails alone."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import NumericError, OptionError, _core
from fastllm.decoding import Sampling
from helpers import writers
from helpers.calls import run
from helpers.liars import Changes

ISAS = [name for name, supported in _core.isas() if supported]
GREEDY = Sampling(temperature=0)


def tiny(vocab, isa=None):
    """A model of a vocabulary; only its draws are used."""
    cfg = writers.config(16, 16, 1, 1, vocab, n_layers=1)
    return writers.core_model(cfg, writers.random_weights(cfg), "f32", isa=isa)


def rows_of(model, logits):
    """A Buffer of these rows, and a writable view of them."""
    buffer = model.logits(len(logits))
    view = np.frombuffer(memoryview(buffer), np.float32).reshape(len(logits), -1)[:, : len(logits[0])]
    view[:] = logits
    return buffer, view


MODELS = {(vocab, isa): tiny(vocab, isa) for vocab in (5, 300, 40_000) for isa in ISAS}

samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 0, 3, 40]),
        "top_p": st.sampled_from([0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.1]),
        "typical_p": st.sampled_from([1.0, 1.0, 0.7]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
    }
).map(lambda chosen: Sampling(**chosen))


def one_by_one(sampler, buffer, row, guesses):
    """What Model.draw must give, by Sampler.draw and accept."""
    tokens = []
    for i in range(len(guesses) + 1):
        try:
            token = sampler.draw(buffer, row + i)
        except (NumericError, OptionError) as error:
            return tokens or str(error)
        sampler.accept(token, generated=True)
        tokens.append(token)
        if guesses[i : i + 1] != [token]:
            break
    return tokens


def told(results):
    """Results with the messages of exceptions in place of them, which can be compared."""
    return [str(r) if isinstance(r, Exception) else r for r in results]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted({vocab for vocab, _ in MODELS})), st.integers(0, 1 << 32), st.data())
def test_draws_are_those_one_by_one(vocab, seed, data):
    """For every filter, number of threads and instruction set, with guesses right and wrong, in several steps."""
    rng, texts = np.random.default_rng(seed), data.draw(st.integers(1, 6))
    logits = (3 * rng.standard_normal((4 * texts, vocab))).astype(np.float32)
    if data.draw(st.booleans()):
        logits[rng.integers(4 * texts), rng.integers(vocab)] = rng.choice([np.nan, np.inf, -np.inf])
    options = [data.draw(samplings) for _ in range(texts)]
    bias = {int(t): b for t, b in zip(rng.integers(0, vocab, 4), (-math.inf, 3, -2, 0.5), strict=True)}
    barred = [int(t) for t in rng.integers(0, vocab, 3)]

    def samplers(isa=None):
        return [
            _core.Sampler(vocab, o, seed=seed + i, bias=bias if i % 2 else None, bars=[(barred, i)], isa=isa)
            for i, o in enumerate(options)
        ]

    buffer, _ = rows_of(MODELS[vocab, ISAS[0]], logits)
    right = [one_by_one(s, buffer, 4 * i, []) for i, s in enumerate(samplers())]
    wrong = [[int(t) for t in rng.integers(0, vocab, 2)] for _ in right]
    guesses = [[*a, *b] if isinstance(a, list) else b for a, b in zip(right, wrong, strict=True)]
    alone = samplers()
    expected = [one_by_one(s, buffer, 4 * i, guesses[i]) for i, s in enumerate(alone)]
    after = [one_by_one(s, buffer, 4 * i, []) for i, s in enumerate(alone)]
    for isa in ISAS:
        for threads in (1, 2, 3):
            model, ours = MODELS[vocab, isa], samplers(isa)
            draws = [(s, 4 * i, guesses[i]) for i, s in enumerate(ours)]
            assert told(model.draw(draws, buffer, threads=threads)) == expected
            assert told(model.draw([(s, row, ()) for s, row, _ in draws], buffer, threads=threads)) == after


def test_a_right_guess_takes_the_next_row():
    model = MODELS[300, "scalar"]
    logits = np.zeros((5, 300))
    logits[range(5), [7, 9, 11, 13, 15]] = 5
    buffer, _ = rows_of(model, logits)
    fresh = lambda: _core.Sampler(300, GREEDY, seed=1)  # noqa: E731
    cases = {
        (0, ()): [7],
        (0, (7, 9, 11, 13)): [7, 9, 11, 13, 15],
        (0, (7, 8)): [7, 9],
        (0, (6, 9)): [7],
        (3, (13,)): [13, 15],
    }
    assert model.draw([(fresh(), row, guesses) for row, guesses in cases], buffer) == list(cases.values())


def test_a_later_row_that_fails_fails_again_as_the_first():
    """The tokens before it count, as they would if each had had a forward of its own."""
    model = MODELS[300, "scalar"]
    buffer, view = rows_of(model, np.zeros((3, 300)))
    view[0, 4] = view[1, 5] = 9
    view[2, 100] = np.nan
    ours = _core.Sampler(300, Sampling(top_p=1.0, temperature=0.1), seed=5)
    twin = ours.copy()
    assert model.draw([(ours, 0, [4, 5])], buffer) == [[4, 5]]
    assert [twin.draw(buffer, 0), twin.draw(buffer, 1)] == [4, 5]
    assert told(model.draw([(ours, 2, [])], buffer)) == ["the logits are not finite"]
    view[2, 100] = 0
    assert model.draw([(ours, 2, [])], buffer) == [[twin.draw(buffer, 2)]]  # the failed draw took no random number


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_that_fails_fails_alone(threads):
    model, size = MODELS[40_000, ISAS[-1]], 40_000
    buffer, view = rows_of(model, np.random.default_rng(1).standard_normal((4, size)))
    view[1, 777] = np.inf
    nothing = dict.fromkeys(range(size), -math.inf)
    ours = [_core.Sampler(size, Sampling(), seed=i, bias=nothing if i == 2 else None) for i in range(4)]
    alone = [ours[i].copy().draw(buffer, i) for i in (0, 3)]
    first, broken, empty, last = model.draw([(s, i, ()) for i, s in enumerate(ours)], buffer, threads=threads)
    assert [first, last] == [[alone[0]], [alone[1]]]
    assert (type(broken), type(empty)) == (NumericError, OptionError)
    assert "no token to draw" in str(empty)


# ---- barred tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("until", [0, 1, 3, 10])
def test_barred_tokens(temperature, until):
    """Tokens of the prompt do not count. 3 and 8 are so likely that all draws give one of them once they can."""
    model = MODELS[300, ISAS[-1]]
    logits = np.zeros((1, 300))
    logits[0, [3, 8]] = 1000, 900
    buffer, _ = rows_of(model, logits)
    ours = _core.Sampler(300, Sampling(temperature=temperature), seed=1, bars=[([3, 8, 3], until)])
    for _ in range(20):
        ours.accept(5, generated=False)
    drawn = [model.draw([(ours, 0, ())], buffer)[0][0] for _ in range(12)]
    assert not {3, 8} & set(drawn[:until])
    assert set(drawn[until:]) == {3}


def test_all_barred():
    model = MODELS[5, "scalar"]
    buffer, _ = rows_of(model, np.zeros((2, 5)))
    ours = _core.Sampler(5, GREEDY, seed=1, bars=[(range(5), 1)])
    assert "no token to draw" in str(model.draw([(ours, 0, ())], buffer)[0])
    ours.accept(4, generated=True)
    assert model.draw([(ours, 0, [0])], buffer) == [[0, 0]]
    with pytest.raises(OptionError, match="bars: no token 5"):
        _core.Sampler(5, GREEDY, seed=1, bars=[([1, 5], 1)])


def test_barred_tokens_leave_penalties_and_biases():
    """What is barred cannot be drawn however large its bias is; a penalty does not bring it back."""
    buffer, _ = rows_of(MODELS[5, "scalar"], [[1, 2, 3, 4, 5]])
    options = Sampling(temperature=0, repetition_penalty=2, presence_penalty=-100)
    ours = _core.Sampler(5, options, seed=1, bias={4: 1e9}, bars=[([4], 2)])
    ours.accept(4, generated=True)
    assert ours.draw(buffer) == 3
    ours.accept(4, generated=True)
    assert ours.draw(buffer) == 4


# ---- logits that Python has changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"typical_p": 0.5}, {"temperature": 0}, {"repetition_penalty": 1.5}]
)
def test_processed_logits(options, isa):
    """-infinity in a processed row forbids a token, as a bias of -infinity does; in others it is an error."""
    model, size = MODELS[300, isa], 300
    allowed = [0, 17, 255, 256, 299]
    forbidden = {i: -math.inf for i in range(size) if i not in allowed}
    # Two rows of the same logits; the second one is changed in place.
    buffer, view = rows_of(model, np.repeat(np.random.default_rng(1).standard_normal((1, size)), 2, axis=0))
    view[1, list(forbidden)] = -np.inf
    sampling = Sampling(**{"top_p": 1.0} | options)
    for seed in range(1, 6):
        ours = _core.Sampler(size, sampling, seed=seed)
        biased = _core.Sampler(size, sampling, seed=seed, bias=forbidden)
        for _ in range(5):
            token, as_bias = model.draw([(ours, 1, (), True), (biased, 0, ())], buffer)
            assert token == as_bias
            assert token[0] in allowed
        for raw in ((ours, 1, ()), (ours, 1, (), False)):
            assert told(model.draw([raw], buffer)) == ["the logits are not finite"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.nan])
@pytest.mark.parametrize("place", [0, 15, 16, 299])
def test_processed_logits_that_are_no_numbers(value, place):
    model = MODELS[300, ISAS[-1]]
    buffer, view = rows_of(model, np.zeros((1, 300)))
    view[0, 1::2] = -np.inf
    view[0, place] = value
    ours = _core.Sampler(300, GREEDY, seed=1)
    error = model.draw([(ours, 0, (), True)], buffer)[0]
    assert isinstance(error, NumericError)
    assert str(error) == "the processed logits hold NaN or infinity"
    view[:] = -np.inf
    assert isinstance(model.draw([(ours, 0, (), True)], buffer)[0], OptionError)


# ---- copies ----------------------------------------------------------------------------------------------------------


@given(samplings, st.integers(0, 1 << 40), st.integers(0, 30))
def test_a_copy_goes_on_as_the_original_would(options, seed, count):
    model = MODELS[300, ISAS[-1]]
    buffer, _ = rows_of(model, np.random.default_rng(seed).standard_normal((1, 300)))
    ours = _core.Sampler(300, options, seed=seed, bias={1: 2.0, 5: -math.inf}, bars=[([3, 4], 20)])
    draws = lambda s, n: [model.draw([(s, 0, ())], buffer)[0][0] for _ in range(n)]  # noqa: E731
    draws(ours, count)
    twin = ours.copy()
    expected = draws(twin, 12)
    assert draws(ours.copy(), 12) == expected
    del twin
    assert draws(ours, 12) == expected


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_drawn():
    model = MODELS[300, "scalar"]
    buffer, _ = rows_of(model, np.zeros((3, 300)))
    ours, other = _core.Sampler(300, GREEDY, seed=1), _core.Sampler(299, GREEDY, seed=1)
    before = ours.copy()
    for draws, match in (
        ([(ours, 3, ())], "no row 3"),
        ([(ours, 1, [0, 0])], "no row 1, or no 2 after it"),
        ([(ours, 1 << 63, [0])], "no row"),
        ([(ours, 0, [300])], "no token 300"),
        ([(ours, 0, [-1])], "no token -1"),
        ([(ours, 0, [1 << 40])], "no token"),
        ([(other, 0, ())], "another vocabulary"),
        ([(ours, 0, ()), (ours, 1, ())], "twice"),
        ([(ours, 0)], "2 values"),
        ([(ours, 0, (), 1, None, 2)], "6 values"),
    ):
        with pytest.raises(OptionError, match=match):
            model.draw(draws, buffer)
    assert model.draw([(ours.copy(), 0, (), 1, None)], buffer) == [[before.draw(buffer)]]
    for draws in (
        [(ours, 0, (), 0, 2)],
        [(ours, 0, (), 0, "a")],
        [(None, 0, ())],
        [(ours, 0, 7)],
        [7],
        7,
        None,
        [("a", 0, ())],
        [(ours, "0", ())],
        [(ours, 0, "a")],
    ):
        with pytest.raises((TypeError, OptionError)):
            model.draw(draws, buffer)
    with pytest.raises(TypeError):
        model.draw([(ours, 0, ())], None)
    assert model.draw([], buffer) == []
    assert model.draw([(ours, 0, ())], buffer) == [[before.draw(buffer)]]  # nothing stayed in use


def test_draws_that_change_while_they_are_read():
    """Converting an argument may run Python code, which uses the sampler or empties the list."""
    model = MODELS[300, "scalar"]
    buffer, _ = rows_of(model, np.zeros((2, 300)))
    ours = _core.Sampler(300, GREEDY, seed=1)
    draws = []
    draws += [(ours, Changes(0, draws, list.clear), [0]), (_core.Sampler(300, GREEDY, seed=1), 0, [0])]
    assert model.draw(draws, buffer) == [[0, 0], [0, 0]]
    again = [(ours, Changes(0, ours, lambda s: s.draw(buffer)), ())]
    assert model.draw(again, buffer) == [[0]]


# ---- memory ----------------------------------------------------------------------------------------------------------

_MANY = """
import sys
sys.path.insert(0, sys.argv[1])
from fastllm import _core
from fastllm.decoding import Sampling
from helpers import writers
cfg = writers.config(16, 16, 1, 1, 262_144, n_layers=1)
model = writers.core_model(cfg, writers.random_weights(cfg), "q8")
options, logits = Sampling(temperature=0, repetition_penalty=1.1), model.logits(16)
def rss():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
def write(count):
    made = [_core.Sampler(262_144, options, seed=i, bars=[([1, 2], 1)]) for i in range(count)]
    for start in range(0, count, 16):
        some = made[start : start + 16]
        for sampler in some:
            sampler.accept(5, generated=False)
        model.draw([(s, row, ()) for row, s in enumerate(some)], logits)
    return made
write(16)
before = rss()
kept = write(10_000)
print(rss() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or "ASAN_OPTIONS" in os.environ, reason="memory as Linux counts it, without a sanitizer's"
)
def test_samplers_are_small_at_a_large_vocabulary():
    done = run(_MANY, Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 6 << 10  # KiB: no more than 600 bytes each
