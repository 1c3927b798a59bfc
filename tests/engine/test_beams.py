"""Beams in the engine: what a search gives, however it is run, and what it holds meanwhile."""

import threading
from contextlib import suppress

import numpy as np
import pytest

from fastllm.decoding.beams import BeamOptions
from fastllm.engine.scheduler import Scheduler
from fastllm.errors import CacheFullError, NumericError, OptionError
from fastllm.llm.stream import Background, Begin
from helpers.architectures import random_llm
from helpers.beams import beam_search, log_softmax

VOCAB = 61
PROMPT = [5, 9, 33, 2, 60, 17]
KINDS = [
    {"num_beams": 4},
    {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 0.4, "early_stopping": "never"},
    {"num_beams": 5, "temperature": 1.1, "top_p": 0.9, "no_repeat_ngram_size": 3},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.6, "num_return_sequences": 6},
    {"num_beams": 4, "force_words": [(7, 8), [(1, 2), (3,)]]},
    {"num_beams": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.3, "bad_words": [(4, 5)], "min_tokens": 4},
]


@pytest.fixture(params=["qwen", "gemma"])  # gemma has windows of 20 and 70 positions beside a layer that sees all
def llm(request):
    return random_llm(request.param, "q8", threads=2)


def alone(name, prompt, options, **load):
    """What a search gives in a model of its own."""
    return random_llm(name, "q8", **load).generate(prompt, **options)


def options_of(kind, seed=3, most=30):
    return {"stop": [11, 12], "max_tokens": most, "seed": seed, **KINDS[kind]}


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True}])
def test_beams_are_those_of_the_plain_way(llm, options):
    """The model's own logits, computed anew for each text."""
    logs = {}

    def scores_of(tokens):
        if tokens not in logs:
            logs[tokens] = log_softmax(llm.logits([*PROMPT, *tokens])[-1][:VOCAB])
        return logs[tokens]

    found = llm.generate(PROMPT, stop=[11, 12], max_tokens=8, num_return_sequences=options["num_beams"], **options)
    expected = beam_search(scores_of, BeamOptions(**options), [11, 12], 8)
    assert found == [tokens for _, tokens in expected]


def test_groups_are_those_of_the_plain_way(llm):
    options = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.6}
    found = llm.generate(PROMPT, stop=[11, 12], max_tokens=7, num_return_sequences=6, **options)
    expected = beam_search(
        lambda tokens: log_softmax(llm.logits([*PROMPT, *tokens])[-1][:VOCAB]), BeamOptions(**options), [11, 12], 7
    )
    assert found == [tokens for _, tokens in expected]


# ---- the same bits


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("name", ["qwen", "gemma"])
def test_the_same_alone_and_in_company(name, kind):
    expected = alone(name, PROMPT, options_of(kind), threads=1)
    llm = random_llm(name, "q8", threads=2)
    others = [llm.start(PROMPT[:i], llm.defaults, max_tokens=40, seed=i) for i in (1, 3, 5)]
    threads = [threading.Thread(target=list, args=(one,)) for one in others]
    threads += [threading.Thread(target=llm.generate, args=(PROMPT,), kwargs=options_of(3))]
    for thread in threads:
        thread.start()
    assert llm.generate(PROMPT, **options_of(kind)) == expected
    for thread in threads:
        thread.join()
    assert llm.generate(PROMPT, **options_of(kind)) == expected  # from a warm cache


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_several_prompts_are_searched_together(llm, kind):
    prompts = [PROMPT, PROMPT[:2], [*PROMPT, *range(30, 50)] * 4]
    options = {**options_of(kind), "num_return_sequences": 1 if "force_words" in KINDS[kind] else 2}
    assert llm.generate(prompts, **options) == [text for one in prompts for text in llm.generate(one, **options)]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_same_after_preemptions(llm, kind, monkeypatch):
    """Two searches and a text, of which one gives its pages up at every fifth step, and where there are none."""
    options = {**options_of(kind, most=50), "stop": ()}
    prompts = [PROMPT * 9, [8, *PROMPT] * 9]
    expected = [llm.generate(one, **options) for one in prompts]
    engine, places = llm._engine, llm._scheduler._steps.places
    while engine.prefixes.evict():
        pass
    engine.kv_bytes = engine.cache.limit = engine._bytes_for(1) * (2 * options["num_beams"] + 2)
    preempted, turn = [], [0]
    preempt, forward = places.preempt, engine.forward

    def noted(stepping):
        preempted.extend(one for one in stepping if one.searching)
        return preempt(stepping)

    def full(*args, **more):
        turn[0] += 1
        if turn[0] % 5 == 0 and len(places.running) > 1:
            raise CacheFullError("the test says so")
        return forward(*args, **more)

    monkeypatch.setattr(places, "preempt", noted)
    monkeypatch.setattr(engine, "forward", full)
    other = llm.start(PROMPT, llm.defaults, max_tokens=60, seed=1)
    thread = threading.Thread(target=list, args=(other,))
    thread.start()
    found = llm.generate(prompts, **options)
    thread.join()
    assert found == [text for texts in expected for text in (texts if isinstance(texts[0], list) else [texts])]
    assert preempted


def test_the_same_when_every_step_is_tried_again(llm, monkeypatch):
    """A step that is interrupted after its forward, as by Ctrl-C, takes nothing to the texts."""
    expected = [llm.generate(PROMPT, **options_of(kind)) for kind in range(len(KINDS))]
    steps, turn = llm._scheduler._steps, [0]
    real = type(steps)._take

    def interrupted(*args):
        turn[0] += 1
        if turn[0] % 2:
            raise KeyboardInterrupt
        real(steps, *args)

    monkeypatch.setattr(steps, "_take", interrupted)

    def persist(generation):
        while generation.finish_reason is None:
            with suppress(KeyboardInterrupt):
                generation.wait()

    for kind, texts in enumerate(expected):
        begun = llm.generate(PROMPT, stream=Begin(Background(llm._scheduler)), **options_of(kind))
        for text in begun.texts:
            persist(text.generation)
        assert begun.written() == texts


# ---- pages


def pages(llm):
    return llm._engine.cache.used // sum(llm._engine.cache.page_bytes)


def test_beams_share_pages(monkeypatch):
    """Of a prompt of three pages and a part, beams share the whole ones, and each has its own last one."""
    llm = random_llm("qwen", "q8")
    seen = []
    real = llm._engine.forward

    def forward(spans, *args, **more):
        ran = real(spans, *args, **more)
        if len(spans) > 1:
            seen.append((len(spans), pages(llm)))
        return ran

    monkeypatch.setattr(llm._engine, "forward", forward)
    prompt = (PROMPT * 40)[: 3 * 64 + 20]
    llm.generate(prompt, max_tokens=30, num_beams=5)
    kept = 4  # the prompt's pages, which are kept for later texts: three are shared, of one all have copies
    assert max(used for _, used in seen) == kept + 5
    assert {count for count, _ in seen} == {5}
    while llm._engine.prefixes.evict():
        pass
    assert pages(llm) == 0


def test_a_search_that_is_closed_gives_its_pages_back():
    llm = random_llm("qwen", "q8")
    from fastllm.llm.options import beam_search

    search = beam_search(
        llm._engine, llm._phrases, BeamOptions(num_beams=5), llm.defaults, seed=1, stop=(), ends=None, max_tokens=500
    )
    assert search.width == 5
    generation = llm.start(
        PROMPT, llm.defaults.updated(temperature=0), max_tokens=200, seed=1, beams=BeamOptions(num_beams=5)
    )
    steps = llm._scheduler._steps
    llm._scheduler._join(generation, 1)
    for _ in range(80):
        steps.step()
    assert pages(llm) > 5
    generation.close()
    assert generation.finish_reason == "cancelled"
    while llm._engine.prefixes.evict():
        pass
    assert pages(llm) == 0


def test_a_dropped_search_gives_its_pages_back():
    llm = random_llm("qwen", "q8")
    generation = llm.start(PROMPT, llm.defaults, max_tokens=200, seed=1, beams=BeamOptions(num_beams=5))
    llm._scheduler._join(generation, 1)
    for _ in range(30):
        llm._scheduler._steps.step()
    del generation
    while llm._engine.prefixes.evict():
        pass
    assert pages(llm) == 0


def test_a_search_wider_than_all_places_runs_alone(llm):
    expected = llm.generate(PROMPT, max_tokens=6, num_beams=20)
    llm._scheduler = Scheduler(llm._engine, 4)
    assert llm.generate([PROMPT, PROMPT], max_tokens=6, num_beams=20, n=1) == [expected] * 2


def test_no_pages_for_one_search_is_an_error():
    llm = random_llm("qwen", "q8")
    engine = llm._engine
    engine.kv_bytes = engine.cache.limit = engine._bytes_for(4)
    with pytest.raises(CacheFullError, match="the KV cache is full"):
        llm.generate(PROMPT, max_tokens=100, num_beams=8)
    assert len(llm.generate(PROMPT, max_tokens=20, temperature=0)) == 20


# ---- what texts are given


def test_logprobs_and_scores(llm):
    options = {"max_tokens": 9, "stop": [11, 12], "logprobs": 2, "num_beams": 4}
    begun = llm.start(PROMPT, llm.defaults.updated(temperature=0), max_tokens=9, seed=1, stop=[11, 12], logprobs=2,
                      beams=BeamOptions(num_beams=4, num_return_sequences=4))  # fmt: skip
    begun.wait()
    assert begun.tokens == llm.generate(PROMPT, **options)
    scores = [one.score for one in begun.search.found]
    assert scores == sorted(scores, reverse=True)
    for one in begun.search.found:
        logs = [log_softmax(row[:VOCAB]) for row in llm.logits([*PROMPT, *one.tokens])[len(PROMPT) - 1 :]]
        assert [entry.token for entry in one.logprobs] == one.tokens
        for entry, row in zip(one.logprobs, logs, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token], abs=1e-5)
            assert [token for token, _ in entry.top] == np.argsort(-row, kind="stable")[:2].tolist()
        total = sum(entry.logprob for entry in one.logprobs)
        ended = one.reason == "stop"
        if ended:
            total += max(logs[-1][11], logs[-1][12])
        assert one.score == pytest.approx(total / (len(one.tokens) + ended), abs=1e-4)


def test_callables_change_each_beams_scores(llm):
    """They are given log probabilities, and what they forbid is in no beam."""
    seen = []

    def process(ids, scores):
        assert abs(float(np.exp(scores.astype(np.float64)).sum()) - 1) < 1e-5
        seen.append(tuple(ids))
        scores[::2] = -np.inf

    plain = llm.generate(PROMPT, max_tokens=8, num_beams=3)
    odd = llm.generate(PROMPT, max_tokens=8, num_beams=3, logits_processor=process)
    assert all(token % 2 for token in odd)
    assert not all(token % 2 for token in plain)
    assert len(seen) == 1 + 7 * 3
    assert odd == llm.generate(
        PROMPT, max_tokens=8, num_beams=3, logits_processor=lambda _, s: np.where(np.arange(len(s)) % 2, s, -np.inf)
    )
    banned = llm.generate(PROMPT, max_tokens=8, num_beams=3, suppress_tokens=list(range(0, VOCAB, 2)))
    assert odd == banned


def test_errors_end_one_search_alone(llm):
    def fails(ids, scores):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        llm.generate(PROMPT, max_tokens=8, num_beams=3, logits_processor=fails)
    with pytest.raises(NumericError, match="the processed logits hold NaN"):
        llm.generate(PROMPT, max_tokens=8, num_beams=3, logits_processor=lambda _, s: s * np.nan)
    with pytest.raises(OptionError, match="the beams found 0 of 1 text: all else is forbidden"):
        llm.generate(PROMPT, max_tokens=8, num_beams=3, suppress_tokens=list(range(VOCAB)))
    with pytest.raises(OptionError, match="the beams found 1 of 2 texts: all else is forbidden"):
        llm.generate(PROMPT, max_tokens=8, num_beams=3, n=2, suppress_tokens=list(range(VOCAB - 1)))
    with pytest.raises(OptionError, match="with force_words in 3 tokens"):
        llm.generate(PROMPT, max_tokens=3, num_beams=3, force_words=[(1, 2, 3, 4)])


def test_broken_logits_are_named(monkeypatch):
    """Of a beam whose logits are not finite, the first layer is named; other texts go on."""
    llm = random_llm("qwen", "f32")
    real, turn = llm._engine.forward, [0]

    def forward(spans, logits, **more):
        ran = real(spans, logits, **more)
        turn[0] += 1
        if turn[0] == 4:
            np.frombuffer(memoryview(logits), np.float32).reshape(-1, llm._model.logits_stride)[1, 7] = np.nan
        return ran

    monkeypatch.setattr(llm._engine, "forward", forward)
    with pytest.raises(NumericError, match="logits at position 8 of the text, only they"):
        llm.generate(PROMPT, max_tokens=8, num_beams=3)
    assert len(llm.generate(PROMPT, max_tokens=8, num_beams=3)) == 8
