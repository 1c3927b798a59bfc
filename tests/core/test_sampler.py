"""The sampler against plain Python: which tokens may be drawn, and which one a random number draws."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastllm import NumericError, OptionError, _core
from fastllm.decoding import Sampling
from fastllm.errors import FastLLMError
from helpers.sampling import adjusted, buffer_of, coins, walk

ISAS = [name for name, supported in _core.isas() if supported]


def sampler(size, seed=1, isa=None, **options):
    sampling = Sampling(**{"top_p": 1.0} | options)
    return _core.Sampler(size, sampling, seed=seed, bias=sampling.logit_bias, isa=isa)


def check_draw(token, logits, options, coin):
    """Asserts that a draw is right. Returns False if rounding to f32 leaves several tokens possible."""
    if options.temperature == 0:
        assert token == int(np.nanargmax(logits))
        return True
    way = walk(logits, options)
    if not way.sure:
        return False
    assert token in way.tokens
    sums = np.cumsum(way.probs)
    if np.abs(sums - coin).min() > 1e-6:
        assert token == way.tokens[int(np.searchsorted(sums, coin, side="right"))]
    return True


# ---- against the oracle ----------------------------------------------------------------------------------------------

# Logits are multiples of 1/4, so that two tokens are equally likely or clearly not. Some are masked by biases.
quarters = st.integers(-60, 40).map(lambda q: q / 4)
one_logit = st.one_of(quarters, quarters, quarters, st.sampled_from([-math.inf, -1e30]))
vocabularies = st.lists(one_logit, min_size=1, max_size=20).filter(lambda logits: any(math.isfinite(x) for x in logits))
temperatures = st.sampled_from([0, 0.05, 0.5, 0.8, 1.0, 1.7, 30.0])


def unmasked(logits):
    """Replaces logits of -infinity by finite ones with biases of -infinity."""
    masks = {int(i): -math.inf for i in np.flatnonzero(np.isneginf(logits))}
    return np.where(np.isneginf(logits), np.float32(1), logits), masks


def check_draws(logits, options, seed, prompt, count):
    """Checks several draws, each after the tokens of those before; returns how many had a single right answer."""
    logits = np.array(logits, np.float32)
    given, masks = unmasked(logits)
    ours = _core.Sampler(len(logits), options, seed=seed, bias=dict(options.logit_bias) | masks)
    for token in prompt:
        ours.accept(token, generated=False)
    text, coin, sure = [], coins(seed), 0
    for _ in range(count):
        token = ours.draw(buffer_of(given))
        at = next(coin) if options.temperature else 0.0
        sure += check_draw(token, adjusted(logits, options, prompt, text), options, at)
        ours.accept(token, generated=True)
        text.append(token)
    return sure


@given(vocabularies, temperatures, st.integers(1, (1 << 64) - 1))
def test_temperature(logits, temperature, seed):
    assert check_draws(logits, Sampling(temperature=temperature, top_p=1.0), seed, [], 4) == 4


def samplings(**options):
    return st.fixed_dictionaries(options).map(lambda chosen: Sampling(**chosen))


filters = samplings(
    temperature=temperatures,
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.05, 0.3, 1.0]),
    typical_p=st.sampled_from([0.01, 0.2, 0.9, 1.0, 1.0]),
)


@settings(max_examples=150)
@given(vocabularies, filters, st.integers(1, (1 << 64) - 1))
def test_filters(logits, options, seed):
    assume(check_draws(logits, options, seed, [], 4))


@settings(max_examples=150)
@given(vocabularies, st.data())
def test_penalties_and_biases(logits, data):
    tokens = st.integers(0, len(logits) - 1)
    bias = data.draw(st.dictionaries(tokens, st.sampled_from([-math.inf, -3.0, 0.5, 20.0]), max_size=4))
    assume(any(math.isfinite(x) and bias.get(i) != -math.inf for i, x in enumerate(logits)))
    options = samplings(
        temperature=temperatures,
        top_p=st.sampled_from([0.6, 1.0]),
        repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
        presence_penalty=st.sampled_from([-1.0, 0.0, 0.75]),
        frequency_penalty=st.sampled_from([-0.5, 0.0, 0.4]),
        logit_bias=st.just(bias),
    )
    prompt, seed = data.draw(st.lists(tokens, max_size=8)), data.draw(st.integers(1, 1 << 40))
    assume(check_draws(logits, data.draw(options), seed, prompt, 5))


@pytest.mark.parametrize("size", [255, 256, 257, 1000])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 40}, {"typical_p": 0.3}])
def test_large_vocabularies(size, options):
    """Sums are taken over runs of 256 tokens, which must not show in what is drawn."""
    logits = np.random.default_rng(size).integers(-8, 9, size) / 4
    options = Sampling(**{"top_p": 1.0} | options)
    assert all(check_draws(logits, options, seed, [], 1) for seed in range(1, 30))


@pytest.mark.parametrize("size", [1, 16, 1000, 262_144])
@pytest.mark.parametrize("value", [0.0, -3.5])
def test_equal_logits(size, value):
    """Equal logits have the weight 1, so all sums are exact, and tokens come in the order of their ids."""
    for seed, (top_k, top_p, min_p, typical_p) in enumerate(
        itertools.product((0, 1, 7, 100_000), (0.3, 0.9, 1.0), (0.0, 1e-9, 1.0), (0.25, 0.9, 1.0)), 1
    ):
        options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
        kept = min(top_k or size, size)
        if top_p < 1:
            kept = math.floor(float(np.float32(top_p)) * kept) + 1
        if typical_p < 1:
            kept = math.ceil(float(np.float32(typical_p)) * kept)
        token = sampler(size, seed, **options).draw(buffer_of(np.full(size, value)))
        assert token == math.floor(next(coins(seed)) * kept), options


def order_of(logits, options):
    """Tokens in the order of their draw, the values that sort them, and the running sums of their probabilities."""
    scaled = logits * np.float32(1 / np.float32(options.temperature))
    weights = np.exp((scaled - scaled.max()).astype(np.float64)).astype(np.float32).astype(np.float64)
    order = np.lexsort((np.arange(len(weights)), -weights))
    if 0 < options.top_k < len(order):
        order = order[: options.top_k]
    if 0 < options.top_p < 1:
        sums = np.cumsum(weights[order])
        order = order[: 1 + np.searchsorted(sums, options.top_p * sums[-1], side="right")]
    order = order[weights[order] >= options.min_p]
    far = -np.log(np.maximum(weights, 1e-300))
    if 0 < options.typical_p < 1:
        total = weights[order].sum()
        far = np.abs(far - (weights * far)[order].sum() / total)
        order = order[np.lexsort((order, far[order]))]
        sums = np.cumsum(weights[order])
        order = order[: 1 + np.searchsorted(sums, options.typical_p * total, side="left")]
    sums = np.cumsum(weights[order])
    return order, far[order], sums / sums[-1]


SHAPES = {
    "flat": lambda rng, size: rng.random(size) * 1e-3,
    "spread": lambda rng, size: rng.standard_normal(size),
    "wide": lambda rng, size: 8 * rng.standard_normal(size),
    "levels": lambda rng, size: rng.integers(0, 4, size) / 4,
    "cluster": lambda rng, size: np.where(np.arange(size) == 77, 1, rng.random(size) * 1e-5),
    "peaked": lambda rng, size: np.where(rng.random(size) < 1e-3, 12 + rng.standard_normal(size), 0.0),
}
MANY = [
    {"top_p": 0.9},
    {"top_p": 0.9999999},
    {"top_k": 2500},
    {"top_k": 2000, "top_p": 0.95},
    {"min_p": 1e-9},
    {"min_p": 0.3},
    {"typical_p": 0.9},
    {"typical_p": 0.2, "temperature": 1e4},
    {"top_k": 2900, "top_p": 0.99, "min_p": 0.01, "typical_p": 0.8},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [3000, 40_003])
def test_many_tokens_of_any_shape(shape, size):
    """A draw is the token at which the sum passes the random number, as far as f32 probabilities can tell."""
    logits = SHAPES[shape](np.random.default_rng(size), size).astype(np.float32)
    buffer = buffer_of(logits)
    for options in MANY:
        sampling = Sampling(**{"top_p": 1.0} | options)
        order, far, sums = order_of(logits, sampling)
        place = np.full(size, -1)
        place[order] = np.arange(len(order))
        for seed in range(1, 5):
            coin, token = next(coins(seed)), sampler(size, seed, **options).draw(buffer)
            at = place[token]
            assert at >= 0
            # Tokens whose probabilities differ in the last bits only may come in another order.
            first, last = np.searchsorted(far, [far[at] - 1e-6, far[at] + 1e-6], side="right")
            low, high = sums[first - 1] if first else 0, sums[min(last, len(sums)) - 1]
            assert low - 1e-5 <= coin <= high + 1e-5, (options, seed)


def test_filters_take_effect_in_their_order():
    """top_p counts from what top_k leaves, and min_p comes last: two of four tokens are left, not one."""
    logits = np.log([0.5, 0.3, 0.1, 0.1])
    for top_k in (0, 3, 4):
        ours = sampler(4, top_k=top_k, top_p=0.6, min_p=0.5)
        assert {ours.draw(buffer_of(logits)) for _ in range(100)} == {0, 1}


def test_a_bias_comes_before_the_penalties():
    ours = sampler(2, temperature=0, repetition_penalty=10, logit_bias={0: 5.0})
    ours.accept(0, generated=False)
    assert ours.draw(buffer_of([1, 2])) == 1  # (1 + 5) / 10, not 1 / 10 + 5


# ---- frequencies and seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}]
)
def test_frequencies(options):
    logits = np.array([0, 1.5, -1, 2.25, 0.5, -4, 1, -math.inf, 0.75, 2], np.float32)
    draws = 5000
    given, masks = unmasked(logits)
    ours = sampler(len(logits), seed=99, logit_bias=masks, **options)
    way = walk(logits, Sampling(**{"top_p": 1} | options))
    assert way.sure
    counts = np.bincount([ours.draw(buffer_of(given)) for _ in range(draws)], minlength=len(logits))
    expected = np.zeros(len(logits))
    expected[way.tokens] = np.array(way.weights) / sum(way.weights) * draws
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    # Chi-square with at most 8 degrees of freedom exceeds 26 once in a thousand times; the seed is fixed.
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 26


def test_seeds():
    logits = buffer_of(np.zeros(50))

    def text(seed):
        ours = sampler(50, seed)
        return [ours.draw(logits) for _ in range(40)]

    assert text(7) == text(7)
    # 0 and the largest number are valid seeds.
    texts = [tuple(text(seed)) for seed in (0, 1, 2, 3, (1 << 64) - 1)]
    assert len(set(texts)) == len(texts)


@given(st.integers(1, 600), st.integers(1, 1 << 60), temperatures, st.sampled_from([0.5, 1.0]))
def test_every_instruction_set_draws_the_same(size, seed, temperature, top_p):
    rng = np.random.default_rng(seed)
    logits = (5 * rng.standard_normal(size)).astype(np.float32)
    logits[rng.random(size) < 0.2] = -np.inf
    logits[rng.integers(size)] = 1
    given, masks = unmasked(logits)
    buffer, texts = buffer_of(given), set()
    for isa in ISAS:
        ours = sampler(size, seed, isa, temperature=temperature, top_p=top_p, logit_bias=masks)
        texts.add(tuple(ours.draw(buffer) for _ in range(10)))
    assert len(texts) == 1
    assert np.isfinite(logits[list(texts.pop())]).all()


# ---- logits that are no numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 16, 19])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_nothing_to_draw(size, temperature, isa):
    """A logit that is not finite makes the draw an error, because the other logits of the row mean nothing either."""
    ours = sampler(size, isa=isa, temperature=temperature)
    for broken in (math.nan, math.inf, -math.inf):
        for place in range(size):
            logits = np.arange(size, dtype=np.float32)
            logits[place] = broken
            with pytest.raises(NumericError, match="not finite"):
                ours.draw(buffer_of(logits))
    nothing = sampler(size, isa=isa, temperature=temperature, logit_bias=dict.fromkeys(range(size), -math.inf))
    with pytest.raises(OptionError, match="no token to draw"):
        nothing.draw(buffer_of([0.0] * size))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"typical_p": 0.5}])
def test_masked_tokens_are_never_drawn(options):
    logits = np.full(40, -math.inf)
    logits[[3, 17, 39]] = 0, -2, -2.5
    given, masks = unmasked(logits)
    ours = sampler(40, temperature=5.0, logit_bias=masks, **options)
    drawn = {ours.draw(buffer_of(given)) for _ in range(500)}
    assert drawn <= {3, 17, 39}
    assert len(drawn) > 1


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"typical_p": 0.5}])
def test_logits_that_overflow(options):
    """Logits that overflow when they are divided by the temperature are still far more likely than the others."""
    logits = np.zeros(20)
    logits[7] = 3e38
    for temperature in (0.5, 1e-5):
        assert sampler(20, temperature=temperature, **options).draw(buffer_of(logits)) == 7


def test_the_most_likely_of_equals_is_the_first():
    logits = np.zeros(50)
    logits[[20, 31, 49]] = 4
    assert sampler(50, temperature=0).draw(buffer_of(logits)) == 20
    assert {sampler(50, seed, top_k=1).draw(buffer_of(logits)) for seed in range(1, 50)} == {20}


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 1.0}, {"typical_p": 0.5}, {"temperature": 0}]
)
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1e4])
def test_all_tokens_but_one_are_forbidden(options, temperature, penalty):
    """A bias of -infinity forbids a token, whatever the temperature and penalties are."""
    size, left = 300, 123
    bias = {i: -math.inf for i in range(size) if i != left}
    ours = sampler(size, **{"temperature": temperature} | options, logit_bias=bias, repetition_penalty=penalty)
    for token in range(size):
        ours.accept(token, generated=True)
    assert {ours.draw(buffer_of(np.linspace(-9, 9, size))) for _ in range(20)} == {left}
    none = sampler(size, **{"temperature": temperature} | options, logit_bias=bias | {left: -math.inf})
    with pytest.raises(FastLLMError):
        none.draw(buffer_of(np.zeros(size)))


def test_penalties_of_many_tokens():
    """The sampler's table of a text's tokens grows without losing one: a text that has every token, some often."""
    size, rng = 5000, np.random.default_rng(1)
    logits = rng.integers(-40, 40, size) / 4
    options = Sampling(temperature=0, repetition_penalty=1.25, presence_penalty=0.5, frequency_penalty=0.25)
    ours, counts = _core.Sampler(size, options, seed=1), np.zeros(size)
    for token in rng.permutation(np.repeat(np.arange(size), rng.integers(1, 4, size))):
        ours.accept(token, generated=True)
        counts[token] += 1
    expected = np.where(logits > 0, logits / 1.25, logits * 1.25) - (0.5 + 0.25 * counts)
    assert ours.draw(buffer_of(logits)) == np.argmax(expected.astype(np.float32))


def test_tokens_outside_the_vocabulary():
    ours = sampler(20)
    for token in (-1, 20, 1 << 40):
        with pytest.raises(OptionError):
            ours.accept(token, generated=True)
        with pytest.raises(OptionError, match="logit bias"):
            sampler(20, logit_bias={token: 1.0})
    with pytest.raises(OptionError, match="no row 2"):
        ours.draw(_core.Buffer(2 * 32 * 4), 2)
