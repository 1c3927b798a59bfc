"""Texts that are written together are the same as when each is written alone."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastllm
from fastllm import ContextError, OptionError
from fastllm.decoding import Sampling
from fastllm.engine import CHUNK
from helpers.architectures import ARCHITECTURES, random_llm
from helpers.plain import places, plain_text

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


def requests(llm, count):
    """Prompts, samplings, limits and seeds of many kinds."""
    rng = np.random.default_rng(1)
    for i in range(count):
        length, sampling, max_tokens, seed = REQUESTS[i % len(REQUESTS)]
        prompt = rng.integers(3, llm.config.vocab_size, min(length, llm.context)).tolist()
        yield prompt, sampling, {"max_tokens": max_tokens, "seed": seed + i}


def start(llm, count, stop=()):
    return [llm.start(prompt, sampling, stop=stop, **limits) for prompt, sampling, limits in requests(llm, count)]


def alone(llm, count, stop=()):
    return [plain_text(llm, prompt, sampling, stop=stop, **limits) for prompt, sampling, limits in requests(llm, count)]


def together(llm, generations):
    llm._scheduler.run(generations)
    return [(g.tokens, g.finish_reason) for g in generations]


@pytest.mark.parametrize("most", [1, 2, 5, 16])
def test_together_as_alone(llm, most):
    expected = alone(llm, 24)
    places(llm, most)
    assert together(llm, start(llm, 24)) == expected
    # Again, now with the texts of the first time in the cache.
    assert together(llm, start(llm, 24)) == expected
    assert [(list(g), g.finish_reason) for g in start(llm, 24)] == expected


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.config.causal and a.config.head])
@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_every_architecture(name, dtype):
    llm = random_llm(name, dtype, threads=2)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 61, n).tolist() for n in (1, 40, 7, 90)]
    limits = [{"max_tokens": 30, "seed": i, "stop": (5,)} for i in range(4)]
    expected = [plain_text(llm, p, Sampling(), **some) for p, some in zip(prompts, limits, strict=True)]
    for _ in range(2):
        texts = [llm.start(p, Sampling(), **some) for p, some in zip(prompts, limits, strict=True)]
        assert together(llm, texts) == expected


def test_stop_tokens(llm):
    stop = tuple(text[len(text) // 2] for text, _ in alone(llm, 16) if text)
    expected = alone(llm, 16, stop)
    assert {reason for _, reason in expected} == {"stop", "length"}
    assert together(llm, start(llm, 16, stop)) == expected


def test_prompts_come_in_pieces_beside_texts_that_go_on(llm):
    """While prompts are read, each step still gives every running text a token."""
    rng = np.random.default_rng(0)
    short = llm.start([1, 2, 3], Sampling(), max_tokens=None, seed=0, stop=())
    head = [next(short) for _ in range(3)]
    long = [llm.start(rng.integers(3, 300, 150).tolist(), Sampling(), max_tokens=5, seed=i, stop=()) for i in range(5)]
    for generation in long:
        llm._scheduler._join(generation, 5)
    before, steps = len(short.tokens), 0
    short.ahead = 1000
    while not all(generation.tokens for generation in long):
        llm._scheduler._steps.step()
        steps += 1
        assert len(short.tokens) == before + steps
    assert steps > 1
    assert head == short.tokens[:3]
    llm._scheduler.run(long)
    assert short.tokens == plain_text(llm, [1, 2, 3], Sampling(), max_tokens=None, seed=0)[0][: len(short.tokens)]


def test_without_writers_prompts_are_read_in_chunks(llm):
    sizes = []
    forward = llm._engine.forward
    llm._engine.forward = lambda spans, *more, **named: (
        sizes.append(sum(len(tokens) for _, tokens, _ in spans)),
        forward(spans, *more, **named),
    )[1]
    prompts = [[i] * 150 for i in range(5)]
    together(llm, [llm.start(p, Sampling(), max_tokens=1, seed=0, stop=()) for p in prompts])
    assert sizes == [CHUNK, CHUNK, 750 - 2 * CHUNK]


def test_texts_may_join_and_leave_at_any_time(llm):
    rng = np.random.default_rng(3)
    expected = alone(llm, 20)
    scheduler = places(llm, 4)
    everyone = start(llm, 20)
    waiting, closed = list(everyone), set()
    while waiting or any(g.finish_reason is None for g in everyone):
        while waiting and rng.random() < 0.2:
            scheduler._join(waiting.pop(0), 1000)
        scheduler._steps.step()
        for generation in everyone:
            if generation.finish_reason is None and rng.random() < 0.003:
                generation.close()
                closed.add(generation)
    assert closed
    for generation, (tokens, reason) in zip(everyone, expected, strict=True):
        if generation in closed:
            assert generation.tokens == tokens[: len(generation.tokens)]
            assert generation.finish_reason == "cancelled"
        else:
            assert (generation.tokens, generation.finish_reason) == (tokens, reason)


def test_times_and_what_was_cached(llm):
    places(llm, 1)
    generations = [llm.start([1, *range(5, 45)], Sampling(), max_tokens=9, seed=i, stop=()) for i in range(3)]
    together(llm, generations)
    assert [generation.cached for generation in generations] == [0, 40, 40]
    assert all(g.prompt_seconds > 0 and g.decode_seconds > 0 for g in generations)


@pytest.mark.parametrize("length", [17, 64, 65, 135])
def test_several_texts_on_one_prompt_compute_it_once(llm, length):
    prompt = np.random.default_rng(1).integers(3, 300, length).tolist()
    texts = [llm.start(prompt, Sampling(), max_tokens=20, seed=i, stop=()) for i in range(6)]
    together(llm, texts)
    assert [g.cached for g in texts] == [0] + [length - 1] * 5
    assert [g.tokens for g in texts] == [
        plain_text(llm, prompt, Sampling(), max_tokens=20, seed=i)[0] for i in range(6)
    ]


def test_a_shared_beginning_is_computed_once(llm):
    """Texts that differ after a common beginning wait for the one that reads it."""
    rng = np.random.default_rng(2)
    system = rng.integers(3, 300, 100).tolist()
    prompts = [system + rng.integers(3, 300, 10 + i).tolist() for i in range(6)]
    texts = [llm.start(prompt, Sampling(), max_tokens=10, seed=1, stop=()) for prompt in prompts]
    together(llm, texts)
    assert [g.cached for g in texts] == [0] + [100] * 5
    expected = [plain_text(llm, prompt, Sampling(), max_tokens=10, seed=1)[0] for prompt in prompts]
    assert [g.tokens for g in texts] == expected


def test_two_chats_on_one_system_prompt_both_keep_their_cache(llm):
    rng = np.random.default_rng(3)
    system = rng.integers(3, 300, 70).tolist()
    chats = [list(system), list(system)]
    for turn in range(3):
        for i in range(2):
            chat = chats[i]
            known = len(chat) if turn else 70 * (i > 0)
            chat += rng.integers(3, 300, 9).tolist()
            generation = llm.start(chat, Sampling(temperature=0), max_tokens=3, seed=1, stop=())
            chat += list(generation)
            assert generation.cached >= known - 1


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_streams_of_several_threads(llm):
    expected = alone(llm, 8)
    meeting = threading.Barrier(3)

    def run(_):
        meeting.wait()
        return [(list(g), g.finish_reason) for g in start(llm, 8)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [expected] * 3


def test_batches_in_several_threads(llm):
    expected = alone(llm, 8)
    meeting = threading.Barrier(3)

    def run(_):
        meeting.wait()
        return together(llm, start(llm, 8))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [expected] * 3


def test_a_text_that_is_not_asked_for_pauses(llm):
    """It keeps neither a place from others nor the machine busy."""
    places(llm, 2)
    left = [llm.start([3, i], Sampling(), max_tokens=100, seed=i, stop=()) for i in range(4)]
    heads = [[next(g) for _ in range(2)] for g in left]
    for i in range(3):
        assert (
            list(llm.start([9, i], Sampling(), max_tokens=60, seed=i, stop=()))
            == plain_text(llm, [9, i], Sampling(), max_tokens=60, seed=i)[0]
        )
    for i, (head, generation) in enumerate(zip(heads, left, strict=True)):
        assert len(generation.tokens) < 40
        assert head + list(generation) == plain_text(llm, [3, i], Sampling(), max_tokens=100, seed=i)[0]


def test_in_the_background(llm):
    expected = alone(llm, 8)
    texts, done = start(llm, 8), threading.Event()
    for generation in texts:
        generation.notify = lambda: done.set() if all(g.finish_reason for g in texts) else None
        llm._scheduler.write_in_background(generation)
    assert done.wait(30)
    assert [(g.tokens, g.finish_reason) for g in texts] == expected


# ---- leaving ---------------------------------------------------------------------------------------------------------


def test_a_text_that_is_left_is_freed_at_once(llm):
    gc.disable()
    try:
        generation = llm.start([1, *range(5, 45)], Sampling(), max_tokens=50, seed=1, stop=())
        for _ in zip(range(3), generation, strict=False):
            pass
        sequence = generation.sequence.length
        assert sequence > 40
        watch = weakref.ref(generation)
        del generation
        assert watch() is None
        again = llm.start([1, *range(5, 45)], Sampling(), max_tokens=1, seed=1, stop=())
        next(again)
        assert again.cached == 40  # what it had computed is kept for the next
    finally:
        gc.enable()


def test_closing_wakes_the_thread_that_waits(llm):
    """A reader in another thread gets the end of the text, and what follows is not disturbed."""
    for _ in range(5):
        generation = llm.start([1, 2], Sampling(), max_tokens=150, seed=5, stop=())
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(list, generation)
            while len(generation.tokens) < 5:
                time.sleep(0)
            generation.close()
            tokens = reader.result(10)
        whole = plain_text(llm, [1, 2], Sampling(), max_tokens=150, seed=5)[0]
        assert tokens == whole[: len(tokens)]
        assert generation.finish_reason in ("cancelled", "length")


# ---- what fails ------------------------------------------------------------------------------------------------------


def test_a_callable_that_raises_fails_alone(llm):
    expected = alone(llm, 8)
    texts = start(llm, 8)
    bad = llm.start([1, 2, 3], Sampling(), max_tokens=20, seed=1, stop=())
    bad.processors = [lambda ids, logits: 1 / 0 if len(ids) > 6 else None]
    worse = llm.start([1, 2, 3], Sampling(), max_tokens=20, seed=1, stop=())
    worse.watch = lambda token: [][token]
    assert together(llm, [bad, *texts, worse])[1:-1] == expected
    assert isinstance(bad.error, ZeroDivisionError)
    assert len(bad.tokens) == 4
    assert isinstance(worse.error, IndexError)
    assert bad.finish_reason == worse.finish_reason == "error"
    with pytest.raises(ZeroDivisionError):
        list(bad)
    assert list(bad) == []


def test_a_callable_cannot_write_with_the_same_model(llm):
    """It would wait for the step that it is called from. Logits and vectors it may ask for."""
    again = llm.start([1, 2, 3], Sampling(), max_tokens=5, seed=1, stop=())
    again.watch = lambda token: llm.generate([4, 5], max_tokens=2)
    fine = llm.start([1, 2, 3], Sampling(), max_tokens=5, seed=1, stop=())
    fine.watch = lambda token: llm.logits([4, 5]).size == 0
    llm._scheduler.run([again, fine])
    assert isinstance(again.error, OptionError)
    assert "same model" in str(again.error)
    assert fine.tokens == plain_text(llm, [1, 2, 3], Sampling(), max_tokens=5, seed=1)[0]
    assert len(llm.generate([4, 5], max_tokens=2, ignore_eos=True).tokens) == 2


def test_processors_change_logits(llm):
    """A callable may change the logits in place or return others; -inf forbids a token."""

    def forbid(ids, logits):
        assert logits.dtype == np.float32
        assert logits.shape == (300,)
        logits[np.arange(300) != 7 + len(ids) % 2] = -np.inf

    def replace(ids, logits):
        new = np.full(300, -np.inf)
        new[11] = 0
        return new

    one = llm.start([1, 2, 3], Sampling(), max_tokens=4, seed=1, stop=())
    one.processors = [forbid]
    two = llm.start([1, 2, 3], Sampling(temperature=0), max_tokens=4, seed=1, stop=())
    two.processors = [forbid, replace]
    assert together(llm, [one, two]) == [([8, 7, 8, 7], "length"), ([11] * 4, "length")]


def test_logprobs_are_the_models_own(llm):
    """Of the raw logits, whatever a callable makes of them; and one for each token, a stop token not counted."""

    def only(ids, logits):
        logits[np.arange(300) != 7] = -np.inf

    plain = llm.start([1, 2, 3], Sampling(logit_bias={7: 1e6}), max_tokens=3, seed=1, stop=(), logprobs=2)
    changed = llm.start([1, 2, 3], Sampling(), max_tokens=3, seed=1, stop=(), logprobs=2, processors=[only])
    assert together(llm, [plain, changed]) == [([7, 7, 7], "length")] * 2
    assert changed.logprobs == plain.logprobs
    assert len(plain.logprobs) == 3
    free = llm.start([1, 2], Sampling(), max_tokens=30, seed=4, stop=(), logprobs=0)
    free.wait()
    stop = free.tokens[10]
    ended = llm.start([1, 2], Sampling(), max_tokens=30, seed=4, stop=(stop,), logprobs=0)
    ended.wait()
    assert ended.finish_reason == "stop"
    assert ended.logprobs == free.logprobs[: len(ended.tokens)]


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [3, 4, 6, 9])
def test_a_small_limit_gives_the_same_texts(llm, pages):
    """Texts are preempted and computed again where there are no pages for all."""
    expected = alone(llm, 24)
    engine = llm._engine
    engine.kv_bytes = engine.cache.limit = pages * engine.cache.page_bytes[0]
    assert together(llm, start(llm, 24)) == expected
    assert engine.cache.used <= engine.kv_bytes


def test_what_is_kept_makes_room(write_model):
    """Old texts fill all that kv_bytes allows; whatever needs memory then has them forgotten."""
    llm = fastllm.load(write_model(), kv_bytes=1 << 16, threads=1)
    pages = (1 << 16) // llm._engine.cache.page_bytes[0]
    assert llm.context == pages * 64 < 160 or llm.context == 160
    for i in range(2 * pages):
        llm.generate([i] * 50, max_tokens=1)
    cache = llm._engine.cache
    assert cache.limit - cache.used < cache.page_bytes[0]
    text = [7] * (llm.context - 1)
    assert llm.hidden_states(text).shape == (len(text), 40)
    assert llm.logits(text).shape == (len(text), 300)
    assert llm.attentions(text, 0).shape[1] == len(text)
    with pytest.raises(ContextError, match=r"prompt has 161 tokens, the context"):
        llm.generate([1] * 161)


def test_a_context_that_does_not_fit(write_model):
    path = write_model()
    page = fastllm.load(path)._engine.cache.page_bytes[0]
    llm = fastllm.load(path, kv_bytes=page)
    assert llm.context == 64
    with pytest.raises(ContextError, match="prompt has 65 tokens, the context 64, which is all that kv_bytes has room"):
        llm.generate([1] * 65)
    assert len(llm.generate([1] * 60, max_tokens=None, ignore_eos=True).tokens) == 5
    short = fastllm.load(path, kv_bytes=10)
    with pytest.raises(ContextError):
        short.generate([1, 2])


def test_memory_is_given_back(llm):
    engine = llm._engine
    together(llm, start(llm, 24))
    assert engine.cache.used <= 8 * 4 * engine.cache.page_bytes[0]
    while engine.prefixes.evict():
        pass
    assert engine.cache.used == 0
