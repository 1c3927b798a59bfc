"""Texts of every kind at one engine, in any order: each is what it is alone."""

import random
import threading

import pytest

import fastllm
from fastllm.decoding import Sampling
from fastllm.engine.costs import Costs
from fastllm.engine.scheduler import Scheduler
from helpers import writers
from helpers.architectures import random_llm
from helpers.plain import plain_text

VOCAB = 61


class Eager(Costs):
    """Costs by which guesses always pay, so that every number of them is tried."""

    def best(self, chances, each=0.0, others=0):
        return max(n for n in (0, 1, 3, 7, 15) if n <= len(chances))


class Texts:
    """Requests with shared beginnings, and what each gives alone."""

    def __init__(self, llm, rng):
        self.llm, self.rng = llm, rng
        self.beginnings = [[rng.randrange(VOCAB) for _ in range(rng.choice((5, 40, 64, 90, 150)))] for _ in range(6)]

    def request(self):
        rng = self.rng
        beginning = rng.choice(self.beginnings)
        prompt = beginning[: rng.randrange(len(beginning) + 1)]
        prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.choice((0, 1, 3, 20)))] or [rng.randrange(VOCAB)]
        sampling = Sampling(
            temperature=rng.choice((0, 0.7, 1.5)),
            top_p=rng.choice((0.5, 0.9, 1.0)),
            top_k=rng.choice((0, 0, 5)),
            min_p=rng.choice((0.0, 0.0, 0.05)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.3)),
            frequency_penalty=rng.choice((0.0, 0.0, 0.4)),
        )
        stop = tuple(rng.sample(range(VOCAB), rng.choice((0, 0, 1, 2))))
        return (
            prompt,
            sampling,
            {"max_tokens": rng.choice((0, 1, 2, 8, 20, 40)), "seed": rng.randrange(1 << 32), "stop": stop},
        )


def options(llm, rng):
    return rng.choice(({}, {}, {"lookup": True}, {"draft": llm}))


def check(generation, expected):
    tokens, reason = expected
    if generation.finish_reason == "cancelled":
        assert generation.tokens == tokens[: len(generation.tokens)]
    else:
        assert (generation.tokens, generation.finish_reason) == (tokens, reason)


@pytest.fixture(params=["qwen", "gemma"])  # gemma has windows of 20 and 70 positions beside a layer that sees all
def llm(request):
    llm = random_llm(request.param, "q8", threads=2)
    llm._engine.costs = Eager()
    return llm


@pytest.mark.parametrize("pages", [None, 5])
def test_2000_texts(llm, pages):
    """500 texts with each of two models and two limits of memory."""
    rng = random.Random(f"{llm.config.windows} {pages}")
    engine, texts = llm._engine, Texts(llm, rng)
    if pages:
        engine.kv_bytes = engine.cache.limit = engine._bytes_for(pages)
    llm._scheduler = scheduler = Scheduler(engine, rng.choice((3, 16)))
    open_, done = [], 0
    while done < 500:
        while len(open_) < 40 and rng.random() < 0.6:
            prompt, sampling, limits = texts.request()
            generation = llm.start(prompt, sampling, **limits, **options(llm, rng))
            open_.append((generation, plain_text(llm, prompt, sampling, **limits)))
            if rng.random() < 0.8:
                scheduler._join(generation, 1000)  # it is written while others are asked for
        rng.shuffle(open_)
        for generation, _ in open_[: rng.randrange(1, 5)]:
            what = rng.random()
            if what < 0.5:
                next(generation, None)
            elif what < 0.8:
                generation.wait()
            elif what < 0.9:
                generation.close()
        for generation, expected in open_.copy():
            if generation.finish_reason is not None or rng.random() < 0.01:  # some are left in the middle
                if generation.finish_reason is not None:
                    check(generation, expected)
                open_.remove((generation, expected))
                done += 1
        generation = None  # or else the last one would not be left
    if pages:
        assert engine.cache.used <= engine.kv_bytes


def test_threads(llm):
    """Four threads write, iterate, leave and close texts of their own at the same time."""
    rng = random.Random(5)
    expected = []
    for _ in range(120):
        prompt, sampling, limits = Texts(llm, rng).request()
        expected.append((prompt, sampling, limits, plain_text(llm, prompt, sampling, **limits)))
    wrong = []

    def work(seed):
        own = random.Random(seed)
        try:
            for prompt, sampling, limits, text in own.sample(expected, 60):
                generation = llm.start(prompt, sampling, **limits, **options(llm, own))
                what = own.random()
                if what < 0.4:
                    generation.wait()
                elif what < 0.8:
                    list(generation)
                else:
                    for _ in zip(range(5), generation, strict=False):
                        pass
                    generation.close()
                check(generation, text)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_a_text_on_its_own_after_all(tmp_path):
    """The file on disk, in a model that has seen nothing, gives the same."""
    cfg = writers.config(40, 57, 4, 2, 300)
    (tmp_path / "model.bin").write_bytes(writers.v0(cfg, writers.random_weights(cfg, 0, tied=False)))
    one, other = (fastllm.load(tmp_path / "model.bin", threads=n) for n in (1, 2))
    prompts = [list(range(3, 3 + n)) for n in (5, 90, 64)]
    texts = [one.start(p, Sampling(), max_tokens=30, seed=i, stop=()) for i, p in enumerate(prompts)]
    one._scheduler.run(texts)
    for i, (prompt, generation) in enumerate(zip(prompts, texts, strict=True)):
        assert list(other.start(prompt, Sampling(), max_tokens=30, seed=i, stop=())) == generation.tokens
