"""Filters in any order, and what the text so far does to logits: against plain Python, and on all instruction sets."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastllm import OptionError, _core
from fastllm.decoding import Sampling, Watermark
from fastllm.errors import TokenizerError
from fastllm.llm.steering import Phrases
from helpers.sampling import adjusted, buffer_of, coins, walk

ISAS = [name for name, supported in _core.isas() if supported]


def sampler(size, options, seed=1, *, isa=None, ends=(), min_tokens=0, max_tokens=10**6):
    phrases = Phrases(size, TokenizerError("none"))
    lists = phrases.sampler_options(options, ends, min_tokens=min_tokens, max_tokens=max_tokens)
    return _core.Sampler(size, options, seed=seed, isa=isa, **lists)


def check_draws(logits, options, seed, prompt, count):
    """Checks several draws, each after the tokens of those before; returns how many had a single right answer."""
    logits = np.array(logits, np.float32)
    ours, text, coin, sure = sampler(len(logits), options, seed), [], coins(seed), 0
    ours.accept_all(prompt)
    mu = 2.0 * options.mirostat_tau
    for _ in range(count):
        changed = adjusted(logits, options, prompt, text)
        if not np.isfinite(changed.max()):
            with pytest.raises(OptionError, match=r"there is no token to draw$"):
                ours.draw(buffer_of(logits))
            return sure
        token = ours.draw(buffer_of(logits))
        if options.temperature == 0:
            assert changed[token] == changed.max()
            sure += 1
        else:
            chance = next(coin) if options.xtc_probability > 0 else 1.0
            way, at = walk(changed, options, mu=mu, chance=chance), next(coin)
            if not way.sure:
                return sure  # mirostat's bound may have become another
            sums = np.cumsum(way.probs)
            assert token in way.tokens
            if np.abs(sums - at).min() > 1e-5:
                assert token == way.tokens[int(np.searchsorted(sums, at, side="right"))]
                sure += 1
            p = way.probs[list(way.tokens).index(token)]
            mu -= options.mirostat_eta * (-math.log2(p) - options.mirostat_tau)
        ours.accept(token, generated=True)
        text.append(token)
    return sure


# ---- filters ---------------------------------------------------------------------------------------------------------

quarters = st.integers(-60, 40).map(lambda q: q / 4)
vocabularies = st.lists(quarters, min_size=1, max_size=24)
FILTERS = {
    "temperature": st.sampled_from([0.3, 0.8, 1.0, 1.7, 20.0]),
    "dynatemp_range": st.sampled_from([0.0, 0.0, 0.5, 2.0]),
    "dynatemp_exponent": st.sampled_from([1.0, 0.5, 3.0]),
    "top_n_sigma": st.sampled_from([0.0, -1, 0.3, 1.0, 2.5]),
    "top_h": st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    "top_k": st.integers(0, 30),
    "top_p": st.sampled_from([0.2, 0.9, 1.0]),
    "min_p": st.sampled_from([0.0, 1e-3, 0.3, 1.0]),
    "typical_p": st.sampled_from([0.2, 0.9, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 1e-3, 0.3]),
    "eta_cutoff": st.sampled_from([0.0, 1e-3, 0.3]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.sampled_from([0.01, 0.1, 0.4]),
}
orders = st.one_of(
    st.just(()), st.permutations(_core.FILTERS[:-1]), st.lists(st.sampled_from(_core.FILTERS[:-1]), unique=True)
)


@settings(max_examples=400, deadline=None)
@given(vocabularies, st.fixed_dictionaries(FILTERS), orders, st.integers(1, 1 << 62))
def test_filters_in_any_order(logits, options, order, seed):
    assume(check_draws(logits, Sampling(**options, sampler_order=order), seed, [], 4))


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in ("dynatemp_exponent", "xtc_threshold")])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_filter(name, data):
    """One at a time, and in a vocabulary that is larger than a part."""
    off = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0}
    on = {other: FILTERS[other] for other in FILTERS if other.split("_")[0] == name.split("_")[0]}
    options = Sampling(**off | data.draw(st.fixed_dictionaries(on)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    logits = rng.integers(-20, 21, data.draw(st.sampled_from([1, 2, 30, 700]))) / 4
    assume(check_draws(logits, options, data.draw(st.integers(1, 1 << 62)), [], 3))


@settings(max_examples=100, deadline=None)
@given(vocabularies, st.sampled_from([0.5, 2.0, 5.0]), st.sampled_from([0.0, 0.1, 0.7]), st.integers(1, 1 << 62))
def test_mirostat(logits, tau, eta, seed):
    options = Sampling(mirostat_tau=tau, mirostat_eta=eta, temperature=0.9)
    assume(check_draws(logits, options, seed, [], 12))


@pytest.mark.parametrize("isa", ISAS)
def test_any_instruction_set(isa):
    """The same tokens as scalar code draws, with every option."""
    rng = np.random.default_rng(7)
    for case in range(60):
        options = {
            "temperature": float(rng.choice([0.7, 1.0, 1.4])),
            "top_p": float(rng.choice([0.8, 1.0])),
            "typical_p": float(rng.choice([0.9, 1.0])),
            "no_repeat_ngram_size": int(rng.choice([0, 2])),
            "penalty_window": int(rng.choice([0, 5])),
            "repetition_penalty": float(rng.choice([1.0, 1.2])),
            "dry_multiplier": float(rng.choice([0.0, 0.8])),
            "dry_sequence_breakers": ((5,),),
            "sampler_order": tuple(rng.permutation(_core.FILTERS[:-1])) if case % 2 else (),
            "watermark": [None, {}, {"seeding_scheme": "selfhash"}][case % 3],
        }
        for name in (
            "dynatemp_range",
            "top_n_sigma",
            "top_h",
            "min_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "xtc_probability",
        ):
            options[name] = float(rng.choice([0.0, 0.0, 0.01, 0.5]))
        if case % 5 == 0:
            options = {"mirostat_tau": 4.0, "watermark": options["watermark"], "dry_multiplier": 0.0}
        options = Sampling(**options)
        both = [sampler(2000, options, 3 + case, isa=name) for name in (isa, "scalar")]
        for _ in range(20):
            logits = buffer_of((3 * rng.standard_normal(2000)).astype(np.float32))
            found, expected = (one.draw(logits) for one in both)
            assert found == expected
            for one in both:
                one.accept(found, generated=True)


# ---- the text so far -------------------------------------------------------------------------------------------------

phrases = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
HISTORY = {
    "penalty_window": st.sampled_from([0, 1, 3, 8]),
    "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
    "presence_penalty": st.sampled_from([0.0, 0.75]),
    "frequency_penalty": st.sampled_from([0.0, 0.5]),
    "no_repeat_ngram_size": st.integers(0, 4),
    "dry_multiplier": st.sampled_from([0.0, 0.75, 2.0]),
    "dry_base": st.sampled_from([1.0, 1.75]),
    "dry_allowed_length": st.integers(1, 4),
    "dry_penalty_last_n": st.sampled_from([-1, 0, 3, 10]),
    "dry_sequence_breakers": st.lists(phrases, max_size=2),
    "bad_words": st.lists(phrases, max_size=3),
    "sequence_bias": st.dictionaries(phrases, st.sampled_from([-3.0, 0.5, 8.0]), max_size=3),
    "temperature": st.sampled_from([0.0, 1.0]),
}


@settings(max_examples=400, deadline=None)
@given(
    st.lists(quarters, min_size=6, max_size=12),
    st.fixed_dictionaries(HISTORY),
    st.lists(st.integers(0, 5), max_size=30),
    st.integers(1, 1 << 62),
)
def test_history(logits, options, prompt, seed):
    check_draws(logits, Sampling(top_p=1.0, **options), seed, prompt, 12)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries(HISTORY), st.lists(st.integers(0, 5), max_size=100), st.integers(0, 90))
def test_a_copy_goes_on_alike(options, tokens, at):
    options = Sampling(**options, watermark={"context_width": 2}, exponential_decay_length_penalty=(2, 1.1))
    one = sampler(300, options, 9, ends=[7], min_tokens=30)
    one.accept_all(tokens[:at])
    two, rng = one.copy(), np.random.default_rng(1)
    for token in tokens[at:]:
        one.accept(token, generated=True)
    for token in tokens[at:]:
        two.accept(token, generated=True)
    for _ in range(8):
        logits = buffer_of(rng.standard_normal(300).astype(np.float32))
        token = one.draw(logits)
        assert token == two.draw(logits)
        for each in (one, two):
            each.accept(token, generated=True)


def test_a_long_repetition_is_quick():
    """DRY of 100,000 times the same token: what it costs grows with the text, not with its square."""
    ours = sampler(300, Sampling(temperature=0, dry_multiplier=1.0, dry_sequence_breakers=()))
    ours.accept_all([3] * 100_000)
    logits = np.zeros(300)
    logits[3] = 1e9
    assert ours.draw(buffer_of(logits)) == 0  # the penalty is finite, and large enough


def test_forced_and_decaying_tokens():
    options = Sampling(temperature=0, forced_eos_token_id=[2, 3], exponential_decay_length_penalty=(3, 2.0))
    ours = sampler(8, options, ends=[1], min_tokens=2, max_tokens=7)
    logits = np.array([5, 1, -9, -8, 4, 0, 0, 0], np.float32)
    drawn = []
    for _ in range(7):
        drawn.append(ours.draw(buffer_of(logits)))
        ours.accept(drawn[-1], generated=True)
    # 1 rises by factors of 2 from 1 after the third token: 2, 4, 8; the seventh is one of those that are forced
    assert drawn[:4] == [0, 0, 0, 0]
    assert drawn[6] in (2, 3)
    assert ours.draw(buffer_of(logits)) == 1


def test_a_decay_without_end():
    ours = sampler(8, Sampling(temperature=1.0, exponential_decay_length_penalty=(0, 1e4)), ends=[1])
    for _ in range(50):
        ours.accept(0, generated=True)
    assert ours.draw(buffer_of(np.array([5, -1, 3, 0, 0, 0, 0, 0], np.float32))) == 1


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"suppress_tokens": [1000]}, "suppress_tokens has 1000, which is no token id: the vocabulary has 300"),
        ({"begin_suppress_tokens": [300]}, "begin_suppress_tokens has 300, which"),
        ({"forced_eos_token_id": 300}, "forced_eos_token_id has 300, which"),
        ({"bad_words": [[1, 300]]}, "bad_words has 300, which"),
        ({"sequence_bias": {(300,): 1}}, "sequence_bias has 300, which"),
        ({"dry_multiplier": 1, "dry_sequence_breakers": [[300]]}, "dry_sequence_breakers has 300, which"),
        ({"exponential_decay_length_penalty": (1, 1.1)}, "exponential_decay_length_penalty needs a token that ends"),
        ({"logit_bias": {300: 1}}, "logit bias: no token 300"),
    ],
    ids=repr,
)
def test_ids_outside_the_vocabulary(options, cause):
    with pytest.raises(OptionError, match=f"^{cause}"):
        sampler(300, Sampling(**options))


# ---- watermark -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_watermark_is_found(scheme, temperature):
    mark, rng = Watermark(seeding_scheme=scheme, context_width=2, bias=4.0), np.random.default_rng(3)
    texts = {}
    for options in (Sampling(temperature=temperature), Sampling(temperature=temperature, watermark=mark)):
        ours, text = sampler(300, options, 5), [5, 9]
        ours.accept_all(text)
        for _ in range(80):
            token = ours.draw(buffer_of(2 * rng.standard_normal(300).astype(np.float32)))
            ours.accept(token, generated=True)
            text.append(token)
        texts[options.watermark] = text
    assert mark.detect(texts[mark], 300).found
    assert mark.detect(texts[mark], 300).p_value < 1e-9
    assert not mark.detect(texts[None], 300).found
    assert not Watermark(hashing_key=1, seeding_scheme=scheme, context_width=2).detect(texts[mark], 300).found


def test_what_a_watermark_cannot_be_found_in():
    with pytest.raises(OptionError, match=r"^tokens has 1 tokens: to find the watermark it needs 2$"):
        Watermark().detect([5], 300)
    with pytest.raises(OptionError, match="no token 300 in a vocabulary of 300"):
        Watermark().detect([300, 5, 3], 300)
    with pytest.raises(OptionError, match="tokens has -1, which is no token id"):
        Watermark().detect([5, -1], 300)
