"""Tokens that a sampler is told to give next, whatever the logits."""

import numpy
import pytest

from fastllm import OptionError, _core
from fastllm.decoding import Sampling

VOCAB = 40


def logits(rows, seed=0):
    model = numpy.random.default_rng(seed).normal(size=(rows, 48)).astype(numpy.float32)
    buffer = _core.Buffer(model.nbytes)
    numpy.frombuffer(memoryview(buffer), numpy.float32)[: model.size] = model.ravel()
    return buffer


def sampler(**options):
    return _core.Sampler(VOCAB, Sampling(temperature=1, **options), seed=3)


def drawn(one, count, accept=True):
    tokens = []
    for i in range(count):
        tokens.append(one.draw(logits(1, i)))
        if accept:
            one.accept(tokens[-1], generated=True)
    return tokens


def test_the_next_tokens():
    """They take no random number, so that the draws after them are those that the seed gives."""
    one = sampler(repetition_penalty=1.5)
    one.write([7, 7, 39])
    assert drawn(one, 1, accept=False) == drawn(one, 1, accept=False) == [7]
    assert drawn(one, 3) == [7, 7, 39]
    plain = sampler(repetition_penalty=1.5)
    for token in (7, 7, 39):
        plain.accept(token, generated=True)
    assert drawn(one, 5) == drawn(plain, 5)


def test_a_copy_and_another_call():
    one = sampler()
    one.write([1, 2, 3])
    assert drawn(one, 1) == [1]
    twin = one.copy()
    assert drawn(twin, 2) == drawn(one, 2) == [2, 3]
    one.write([4, 5])
    one.write([6])
    assert drawn(one, 1) == [6]
    one.write([])
    assert drawn(one, 2) == drawn(twin, 2)


def test_tokens_of_the_prompt_do_not_count():
    one = sampler()
    one.write([5])
    one.accept(3, generated=False)
    assert drawn(one, 1) == [5]


def test_tokens_that_are_none():
    for token in (-1, VOCAB, 1 << 40):
        with pytest.raises(OptionError, match="sampler: no token"):
            sampler().write([1, token])
