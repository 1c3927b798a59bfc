"""Iterating over a Generation: stopping, going on, closing, and iterating from several threads."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastllm import OptionError
from fastllm.decoding import Sampling


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


def test_a_closed_text_has_ended(start):
    generation = start()
    head = list(itertools.islice(generation, 4))
    generation.close()
    assert list(generation) == []
    assert (generation.tokens[:4], generation.finish_reason) == (head, "cancelled")
    generation.close()
    ended = start()
    assert len(list(ended)) == 20
    ended.close()
    assert ended.finish_reason == "length"
    never = start()
    never.close()
    assert (list(never), never.tokens, never.finish_reason) == ([], [], "cancelled")


def test_two_threads_iterate_over_one_generation(llm):
    """Of two threads that want its next token at once one gets the text and the other an error."""
    whole = list(llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()))
    for _ in range(10):
        generation, meeting = llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()), threading.Barrier(2)

        def write(found, generation=generation, meeting=meeting):
            meeting.wait()
            try:
                found += generation
            except OptionError:
                found.append("error")

        texts = [[], []]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, texts))
        # Each token goes to one of them; one that asks while the other waits for a token stops with the error.
        tokens = [token for text in texts for token in text if token != "error"]
        assert sorted(tokens) == sorted(whole)
        assert generation.tokens == whole
