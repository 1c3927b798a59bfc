"""The bookkeeping of beams: against the plain way, and by brute force where there are beams for all texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.decoding.beams import BeamOptions, Group, Rules
from fastllm.decoding.followers import Beam, Follower
from fastllm.decoding.forced import Forced
from fastllm.errors import OptionError
from helpers.beams import beam_search, every_text, log_softmax


class Table:
    """A model whose log probabilities depend on the last two tokens."""

    def __init__(self, seed, vocab, spread=2.0):
        rng = np.random.default_rng(seed)
        self.vocab = vocab
        self.rows = [log_softmax(row) for row in spread * rng.standard_normal(((vocab + 1) ** 2, vocab))]

    def __call__(self, tokens):
        before, last = (-1, -1, *tokens)[-2:]
        return self.rows[(before + 1) * (self.vocab + 1) + last + 1]


class Sums:
    """Scores of beams, for Rules.step."""

    def __init__(self, table):
        self._table = table

    def score(self, beam, token):
        return float(self._table(beam.tokens)[token] + beam.score)

    def best(self, beam):
        row = [Follower(beam, token, self.score(beam, token)) for token in range(self._table.vocab)]
        return sorted(row, key=lambda one: -one.score)

    def ends(self, beam, token):
        return False


def search(table, rules):
    """The texts that a search with a table in place of a model finds."""
    groups, penalty = rules.start(), rules.options.diversity_penalty
    while not all(group.over for group in groups):
        taken, new = [], []
        for group in groups:
            if group.over:
                new.append(group)
                continue
            scores = Sums(table)
            followers = [
                Follower(beam, token, scores.score(beam, token) - penalty * taken.count(token))
                for beam in group.beams
                for token in range(table.vocab)
            ]
            followers = sorted(followers, key=lambda one: -one.score)[: rules.most]
            running, done, over = rules.step(group, followers, scores)
            beams = [Beam([*b.tokens, t], total, rules.progress(b, t)) for b, t, total in running]
            taken += [token for _, token, _ in running]
            new.append(Group([] if over else beams, done, over))
        groups = new
    found = [one for group in groups for one in group.done]
    return [(one.score, one.tokens) for one in sorted(found, key=lambda one: -one.score)]


OPTIONS = st.builds(
    dict,
    length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
)


def same(found, expected):
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])


@settings(max_examples=300, deadline=None)
@given(OPTIONS, st.integers(0, 10**6), st.integers(2, 6), st.integers(0, 2), st.integers(1, 9))
def test_beams_are_those_of_the_plain_way(options, seed, beams, ends, most):
    table, options = Table(seed, 9), BeamOptions(num_beams=beams, **options)
    stop = list(range(ends))
    found = search(table, Rules(options, stop=stop, ends=None, max_tokens=most))
    same(found, beam_search(table, options, stop, most))


@settings(max_examples=200, deadline=None)
@given(OPTIONS, st.integers(0, 10**6), st.sampled_from([(2, 1), (2, 3), (3, 2)]), st.integers(0, 2), st.integers(1, 8))
def test_groups_are_those_of_the_plain_way(options, seed, shape, ends, most):
    groups, size = shape
    options = BeamOptions(num_beams=groups * size, num_beam_groups=groups, diversity_penalty=0.7, **options)
    table, stop = Table(seed, 9), list(range(ends))
    found = search(table, Rules(options, stop=stop, ends=None, max_tokens=most))
    same(found, beam_search(table, options, stop, most))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, -0.5, 2.0]), st.integers(1, 4))
def test_with_beams_for_all_texts_the_best_is_found(seed, penalty, most):
    options, table = BeamOptions(num_beams=81, length_penalty=penalty, early_stopping="never"), Table(seed, 4)
    found = search(table, Rules(options, stop=[0], ends=None, max_tokens=most))
    expected = every_text(table, 4, options, [0], most)
    same(found[:1], expected[:1])
    assert {tuple(tokens) for _, tokens in found} <= {tuple(tokens) for _, tokens in expected}


def has(text, phrase):
    return any(tuple(text[i : i + len(phrase)]) == phrase for i in range(len(text)))


PHRASE = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.lists(PHRASE, min_size=1, max_size=2), min_size=1, max_size=2))
def test_texts_have_the_forced_words(seed, words):
    """With few beams: all texts that are found have them. With beams for all: the best one that Forced sees is found.

    A phrase within a broken-off beginning of itself is not seen: of those texts none is asked for.
    """
    table, most = Table(seed, 4), 5
    forced = Forced(words)
    for beams in (2, 5, 300):
        options = BeamOptions(num_beams=beams, early_stopping="never", force_words=words)
        found = search(table, Rules(options, stop=[0], ends=None, max_tokens=most, forced=forced))
        for _, text in found:
            assert all(any(has(text, phrase) for phrase in ways) for ways in words)
    seen = []
    for score, text in every_text(table, 4, options, [0], most):
        progress = forced.start
        for token in text:
            progress = forced.add(progress, token)
        if forced.complete(progress):
            seen.append((score, text))
    same(found[:1], seen[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number from 1"),
        ({"num_beams": 2.5}, "num_beams must be a whole number"),
        ({"num_beams": True}, "num_beams must be a whole number"),
        ({"num_beams": 1001}, "num_beams must be 1000 or less"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_beams is 2, which does not give 3 texts"),
        ({"num_beams": 4, "length_penalty": float("nan")}, "length_penalty must be a number"),
        ({"num_beams": 4, "early_stopping": "soon"}, "early_stopping must be True, False or \"never\", not 'soon'"),
        ({"num_beams": 4, "early_stopping": 1}, "early_stopping must be"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups must divide num_beams"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups needs a diversity_penalty"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty needs num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words": ["a"]}, "do not go together"),
        ({"length_penalty": 2.0}, "length_penalty is of beams: it needs num_beams"),
        ({"early_stopping": True}, "early_stopping is of beams"),
        ({"force_words": ["a"]}, "force_words is of beams"),
        ({"num_beams": 2, "force_words": "dragon"}, "force_words must be a list of texts"),
        ({"num_beams": 2, "force_words": [[]]}, "force_words has an empty list"),
        ({"num_beams": 2, "force_words": [""]}, "in which there is no token"),
        ({"num_beams": 2, "force_words": [[[1], [2.5]]]}, "force_words has 2.5, which is no token id"),
        ({"num_beams": 2, "force_words": [7.0]}, "force_words has 7.0"),
    ],
)
def test_what_is_impossible_is_refused(options, message):
    with pytest.raises(OptionError) as error:
        BeamOptions(**options)
    assert message in str(error.value)


def test_forced_words_in_each_form():
    given = ["a", (1, 2), [3, 4], ["b", [5, 6]], [[7]], 8]
    assert BeamOptions(num_beams=2, force_words=given).force_words == (
        ("a",),
        ((1, 2),),
        ((3, 4),),
        ("b", (5, 6)),
        ((7,),),
        ((8,),),
    )
