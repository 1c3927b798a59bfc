"""Texts that are written in one batch are the same as when each is written alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastllm import ContextError, OptionError
from fastllm.decoding import Sampling
from fastllm.engine import CHUNK
from fastllm.engine.batch import TOGETHER, Batch
from helpers.architectures import ARCHITECTURES, random_llm

REQUESTS = [
    # prompt's length, sampling, max_tokens, seed
    (1, Sampling(temperature=0), 40, 0),
    (7, Sampling(temperature=1.4, top_p=1.0), 25, 1),
    (90, Sampling(temperature=0.8, top_p=0.8), 50, 2),
    (3, Sampling(temperature=1.0, repetition_penalty=1.5, presence_penalty=0.3), 60, 3),
    (130, Sampling(top_k=4), None, 4),
    (20, Sampling(typical_p=0.5, logit_bias={7: 3.0}), 0, 5),
    (20, Sampling(min_p=0.1), 1, 6),
    (65, Sampling(temperature=2.0), 33, 1),
]


def requests(llm, count, stop=()):
    """New generations with prompts, samplings, limits and seeds of many kinds."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(count):
        length, sampling, max_tokens, seed = REQUESTS[i % len(REQUESTS)]
        prompt = rng.integers(3, llm.config.vocab_size, min(length, llm.context)).tolist()
        out.append(llm.start(prompt, sampling, max_tokens=max_tokens, seed=seed + i, stop=stop))
    return out


def alone(generations):
    return [(list(generation), generation.finish_reason) for generation in generations]


def together(engine, generations, most=TOGETHER):
    """The texts of generations that share a batch of at most `most`; a waiting one joins when another has ended."""
    batch = Batch(engine, most)
    for generation in generations:
        batch.add(generation)
    found = {generation: [] for generation in generations}
    ended = set()
    while batch:
        for generation, token in batch.step():
            assert generation not in ended
            if token is not None:
                found[generation].append(token)
            if generation.finish_reason:
                ended.add(generation)
    assert ended == set(generations)
    assert batch.step() == []
    return [(found[g], g.finish_reason) for g in generations]


@pytest.mark.parametrize("most", [1, 2, 5, 16])
def test_together_as_alone(llm, most):
    expected = alone(requests(llm, 24))
    assert together(llm._engine, requests(llm, 24), most) == expected
    # Again, now with the texts of the first time in the cache.
    assert together(llm._engine, requests(llm, 24), most) == expected


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.config.causal and a.config.head])
@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_every_architecture(name, dtype):
    llm = random_llm(name, dtype, threads=2)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 61, n).tolist() for n in (1, 40, 7, 90)]

    def start():
        return [llm.start(p, Sampling(), max_tokens=30, seed=i, stop=(5,)) for i, p in enumerate(prompts)]

    assert together(llm._engine, start()) == alone(start())


def test_stop_tokens(llm):
    texts = alone(requests(llm, 16))
    stop = tuple(text[len(text) // 2] for text, _ in texts if text)
    expected = alone(requests(llm, 16, stop))
    assert {reason for _, reason in expected} == {"stop", "length"}
    assert together(llm._engine, requests(llm, 16, stop)) == expected


def test_prompts_come_in_chunks_beside_texts_that_go_on(llm):
    """While prompts are read, each step still gives every running text a token."""
    batch = Batch(llm._engine)
    short = llm.start([1, 2, 3], Sampling(), max_tokens=None, seed=0, stop=())
    batch.add(short)
    assert [g for g, _ in batch.step()] == [short]
    rng = np.random.default_rng(0)
    long = [llm.start(rng.integers(3, 300, 150).tolist(), Sampling(), max_tokens=5, seed=i, stop=()) for i in range(5)]
    for generation in long:
        batch.add(generation)
    steps = 0
    while not all(generation.tokens for generation in long):
        assert short in dict(batch.step())
        steps += 1
    assert steps == -(-5 * 150 // CHUNK)
    batch.close()
    assert not batch


def test_texts_may_join_and_leave_at_any_time(llm):
    rng = np.random.default_rng(3)
    expected = alone(requests(llm, 20))
    waiting, batch, found, dropped = requests(llm, 20), Batch(llm._engine, 4), {}, set()
    everyone = list(waiting)
    while waiting or batch:
        while waiting and rng.random() < 0.2:
            batch.add(waiting.pop(0))
        for generation, token in batch.step():
            found.setdefault(generation, [])
            if token is not None:
                found[generation].append(token)
            if rng.random() < 0.01:
                batch.drop(generation)
                dropped.add(generation)
    assert dropped
    for generation, (tokens, reason) in zip(everyone, expected, strict=True):
        if generation in dropped:
            assert found[generation] == tokens[: len(found[generation])]
        else:
            assert (found[generation], generation.finish_reason) == (tokens, reason)


def test_a_text_that_is_dropped_before_it_began(llm):
    batch, (first, second) = Batch(llm._engine, 1), requests(llm, 2)
    batch.add(first)
    batch.add(second)
    batch.drop(second)
    while batch:
        assert second not in dict(batch.step())
    assert second.tokens == []


def test_times_and_what_was_cached(llm):
    generations = [llm.start([1, *range(5, 45)], Sampling(), max_tokens=9, seed=i, stop=()) for i in range(3)]
    together(llm._engine, generations, 1)
    assert [generation.cached for generation in generations] == [0, 40, 40]
    assert all(g.prompt_seconds > 0 and g.decode_seconds > 0 for g in generations)


# ---- generate_batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"temperature": 1.5, "top_p": 1, "stop": ["e", "the"]}])
def test_generate_batch(llm, options):
    prompts = ["the ocean once", "", "once", "the ocean", "a"] * 5
    seeds = list(range(len(prompts)))
    expected = [llm.generate(p, max_tokens=40, seed=s, **options) for p, s in zip(prompts, seeds, strict=True)]
    assert llm.generate_batch(prompts, max_tokens=40, seed=seeds, **options) == expected
    one = [llm.generate(p, max_tokens=12, seed=7, **options) for p in prompts]
    assert llm.generate_batch(prompts, max_tokens=12, seed=7, **options) == one


def test_generate_batch_without_a_tokenizer():
    llm = random_llm("qwen", "f32")
    prompts = [[1, 2, 3], [4], [5, 6]]
    texts = llm.generate_batch(prompts, max_tokens=20, seed=3)
    assert texts == [llm.generate(prompt, max_tokens=20, seed=3) for prompt in prompts]
    assert all(isinstance(text, list) for text in texts)


def test_nothing_to_write(llm):
    assert llm.generate_batch([]) == []
    assert llm.generate_batch(["the", "a"], max_tokens=0) == ["", ""]


def test_wrong_options(llm):
    for wrong in ({"seed": [1]}, {"temperature": -1}, {"stop": [""]}, {"max_tokens": -1}):
        with pytest.raises(OptionError):
            llm.generate_batch(["the", "a"], **wrong)
    with pytest.raises(OptionError, match="a list of prompts"):
        llm.generate_batch("the")
    with pytest.raises(ContextError):
        llm.generate_batch([[1], [1] * 1000])
    with pytest.raises(TypeError):
        llm.generate_batch(["the"], no_such_option=1)


def test_no_token_to_draw_ends_the_batch(llm):
    """A text without a token to draw ends the batch with an error; the pages of all its texts return to the cache."""
    with pytest.raises(OptionError, match="no token to draw"):
        llm.generate_batch(["the", "a"], logit_bias={i: -float("inf") for i in range(300)})
    assert llm.generate_batch(["the"], max_tokens=5, seed=1) == [llm.generate("the", max_tokens=5, seed=1)]


def test_batches_in_several_threads(llm):
    expected = alone(requests(llm, 8))
    start = threading.Barrier(3)

    def run(_):
        start.wait()
        return together(llm._engine, requests(llm, 8))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [expected] * 3
