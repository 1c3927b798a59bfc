"""Iterating over a Generation: stopping, going on, and iterating from several threads."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastllm import OptionError
from fastllm.decoding import Sampling
from fastllm.engine.batch import Batch


@pytest.fixture(params=["plain", "lookup", "draft"])
def start(request, llm):
    """A function that starts the same text: plainly, with guesses from the prompt, or with a draft model."""
    guesses = {"plain": {}, "lookup": {"lookup": True}, "draft": {"draft": llm}}[request.param]

    def generation(seed=3):
        return llm.start([1, 5, 9] * 6, Sampling(repetition_penalty=1.2), max_tokens=20, seed=seed, stop=(), **guesses)

    return generation


@pytest.mark.parametrize("breaks", [(0,), (1,), (5,), (19,), (20,), (2, 3, 8)])
def test_iterating_goes_on_where_it_stopped(start, breaks):
    whole = list(start())
    assert len(whole) == 20
    generation, parts = start(), []
    for count in breaks:
        parts += itertools.islice(generation, count)
        assert generation.tokens == parts
    parts += generation
    assert parts == generation.tokens == whole
    assert generation.finish_reason == "length"
    assert list(generation) == []


def test_iterators_of_one_generation_are_one(start):
    whole = list(start())
    generation = start()
    one = iter(generation)
    assert [next(one), next(iter(generation)), *itertools.islice(generation, 3)] == whole[:5]
    one.close()  # closes this iterator; the text can go on
    assert [*one, *generation] == whole[5:]
    pairs = start()
    assert list(zip(pairs, pairs, strict=True)) == list(zip(whole[::2], whole[1::2], strict=True))


def test_an_iterator_that_is_left_gives_its_sequence_back(llm):
    prompt = [1, *range(7, 60)]
    for token in llm.start(prompt, Sampling(), max_tokens=20, seed=1):
        assert token in range(300)
        break
    again = llm.start(prompt, Sampling(), max_tokens=20, seed=1)
    next(iter(again))
    assert again.cached == len(prompt) - 1


def test_a_text_has_one_writer(llm):
    def start():
        return llm.start([1, 2, 3], Sampling(), max_tokens=12, seed=5, stop=())

    whole, generation, batch = list(start()), start(), Batch(llm._engine)
    head = list(itertools.islice(generation, 4))
    batch.add(generation)  # a text that has begun may go on in a batch
    for other in (batch, Batch(llm._engine)):
        with pytest.raises(OptionError, match="already"):
            other.add(generation)
    with pytest.raises(OptionError, match="batch"):
        iter(generation)
    while len(generation.tokens) < 8:
        batch.step()
    batch.drop(generation)
    iterator = iter(generation)
    middle = [next(iterator)]
    with pytest.raises(OptionError, match="already"):
        batch.add(generation)
    del iterator
    batch.add(generation)
    batch.close()
    assert generation.tokens == whole[:9] == head + generation.tokens[4:8] + middle
    assert list(generation) == whole[9:]
    batch.add(generation)  # it has ended
    assert batch.step() == [(generation, None)]
    assert list(generation) == []


def test_two_threads_iterate_over_one_generation(llm):
    """Of two threads that iterate at once one gets the text and the other an error."""
    whole = list(llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()))
    for _ in range(10):
        generation, meeting = llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()), threading.Barrier(2)

        def write(generation=generation, meeting=meeting):
            meeting.wait()
            try:
                return list(generation)
            except OptionError:
                return None

        with ThreadPoolExecutor(2) as pool:
            texts = [future.result() for future in [pool.submit(write) for _ in range(2)]]
        # If the second begins after the text has ended, it gets nothing.
        assert sorted(texts, key=lambda text: text or []) in ([None, whole], [[], whole])
        assert generation.tokens == whole
