"""Contrastive search, DoLa and guidance: what they write, and that they are texts like all others."""

import gc
import random
import sys
import threading

import numpy as np
import pytest

from fastllm import ContextError, NumericError
from fastllm.decoding import Sampling
from fastllm.decoding.search import SearchOptions
from fastllm.engine import contrastive, dola, guidance
from helpers import contrasts, writers
from helpers.architectures import ARCHITECTURES, random_llm
from helpers.plain import places

VOCAB, GREEDY = 61, Sampling(temperature=0)
FAMILIES = ["gpt2", "neox", "qwen", "gemma", "olmo2", "cohere", "granite", "mixtral"]
SEARCHES = {
    "contrastive": (SearchOptions(penalty_alpha=0.6), Sampling(temperature=0, top_k=4)),
    "dola": (SearchOptions(dola_layers=[0, 1]), Sampling(temperature=0.9, repetition_penalty=1.2)),
    "guidance": (SearchOptions(guidance_scale=1.7), Sampling(temperature=1.1, top_p=0.9)),
    "negative": (SearchOptions(guidance_scale=3.0, negative_prompt=[5, 9, 2, 2, 7]), GREEDY),
}


def prompt_of(n, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, n).tolist()


def start(llm, name, prompt, *, max_tokens=20, seed=0, stop=(), **more):
    search, sampling = SEARCHES[name]
    return llm.start(prompt, sampling, max_tokens=max_tokens, seed=seed, stop=stop, search=search, **more)


# ---- what they write


@pytest.mark.parametrize("length", [1, 30, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive(family, length):
    llm, prompt = random_llm(family, "f32"), prompt_of(length)
    for alpha, k, penalty in ((0.6, 4, 1.0), (0.2, 7, 1.3), (1.0, 3, 1.0)):
        found = llm.generate(
            prompt, penalty_alpha=alpha, top_k=k, repetition_penalty=penalty, max_tokens=12, ignore_eos=True
        )
        assert found == contrasts.plain_contrastive(llm, prompt, alpha=alpha, k=k, count=12, penalty=penalty)


@pytest.mark.parametrize("length", [1, 30, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_dola(family, length):
    llm, prompt = random_llm(family, "f32"), prompt_of(length)
    architecture = ARCHITECTURES[family]
    weights = writers.random_weights(architecture.config, 3, tied=architecture.tied, optional=architecture.optional)
    head, bias = weights.get("head", weights["embed"]), weights.get("head.bias", np.float32(0))
    for layers, sampling, seed in (((0, 1), GREEDY, 1), ((1,), Sampling(temperature=1.3), 2), ((0,), Sampling(), 3)):
        found = llm.start(prompt, sampling, max_tokens=12, seed=seed, stop=(), search=SearchOptions(dola_layers=layers))
        assert list(found) == contrasts.plain_dola(
            llm, prompt, sampling, layers=layers, head=head, bias=bias, count=12, seed=seed
        )


@pytest.mark.parametrize("length", [1, 30, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance(family, length):
    llm, prompt = random_llm(family, "f32"), prompt_of(length)
    for scale, negative, sampling, seed in (
        (1.5, None, GREEDY, 1),
        (4.0, prompt_of(70, 5), Sampling(temperature=1.2, top_k=9), 2),
        (-1.0, prompt_of(3, 5), Sampling(repetition_penalty=1.4), 3),
        (0.0, prompt, Sampling(), 4),
    ):
        search = SearchOptions(guidance_scale=scale, negative_prompt=negative)
        found = llm.start(prompt, sampling, max_tokens=12, seed=seed, stop=(), search=search)
        assert list(found) == contrasts.plain_guidance(
            llm, prompt, sampling, scale=scale, negative=negative, count=12, seed=seed
        )


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5, 6, 12, 40, 41, 44, 80])
@pytest.mark.parametrize("tied", [True, False])
def test_layers_of_dola(n_layers, tied):
    for which in ("low", "high"):
        found = dola.layers_of(which, n_layers, tied=tied)
        assert found == contrasts.dola_layers(which, n_layers, tied) or (which, n_layers, tied) == ("low", 3, True)
        assert 0 <= min(found) <= max(found) < n_layers


def test_a_long_negative_prompt_is_read_in_pieces(monkeypatch):
    llm, prompt, negative = random_llm("qwen", "f32"), prompt_of(9), prompt_of(200, 3)
    options = {"guidance_scale": 1.5, "negative_prompt": negative, "temperature": 0, "max_tokens": 12}
    expected = llm.generate(prompt, **options)
    monkeypatch.setattr(guidance, "CHUNK", 64)
    assert random_llm("qwen", "f32").generate(prompt, **options) == expected
    used = llm._engine.cache.used
    assert llm.generate([*prompt, 4], **options)  # the negative prompt is known now
    assert llm._engine.cache.used <= used + 2 * llm._engine.cache.page_bytes[0]


def test_where_dola_leaves_only_what_is_forbidden():
    """The next token is then drawn from the model's own prediction."""
    llm, prompt = random_llm("qwen", "f32"), prompt_of(9)
    logits = llm.logits(prompt)[-1]
    left = np.flatnonzero(contrasts.dola_scores(logits, [logits]) > -np.inf).tolist()
    text = llm.generate(prompt, dola_layers=[0], temperature=0, suppress_tokens=left, max_tokens=1)
    logits[left] = -np.inf
    assert text == [int(logits.argmax())]


# ---- texts like all others


def alone(name, prompt, **options):
    generation = start(random_llm("gemma", "q8"), name, prompt, **options)
    generation.wait()
    return generation.tokens, generation.finish_reason, generation.logprobs


def requests(count):
    for i in range(count):
        yield (
            [*SEARCHES][i % 4],
            prompt_of((7, 90, 1, 64, 130)[i % 5], i % 6),
            {"max_tokens": 5 + 7 * (i % 4), "seed": i},
        )


@pytest.mark.parametrize(("most", "pages"), [(16, None), (3, None), (16, 8), (16, 14)])
@pytest.mark.parametrize("threads", [1, 3])
def test_together_as_alone(most, pages, threads):
    """With plain texts and beams among them; where there are few pages, texts are preempted."""
    llm, kinds = random_llm("gemma", "q8", threads=threads), list(requests(20))
    expected = [alone(name, prompt, **options) for name, prompt, options in kinds]
    places(llm, most)
    engine = llm._engine
    if pages:
        engine.kv_bytes = engine.cache.limit = engine._bytes_for(pages)
    texts = [start(llm, name, prompt, **options) for name, prompt, options in kinds]
    texts += [llm.start(prompt_of(9, i), Sampling(), max_tokens=30, seed=i, stop=()) for i in range(4)]
    random.Random(1).shuffle(order := texts.copy())
    llm._scheduler.run(order)
    assert [(t.tokens, t.finish_reason, t.logprobs) for t in texts[:20]] == expected
    del texts, order
    gc.collect()
    while engine.prefixes.evict():
        pass
    assert engine.cache.used == 0


@pytest.mark.parametrize("name", SEARCHES)
def test_streams_and_ends(name):
    llm, prompt = random_llm("gemma", "q8"), prompt_of(40)
    tokens, reason, _ = alone(name, prompt, max_tokens=30)
    assert (len(tokens), reason) == (30, "length")
    stream = start(llm, name, prompt, max_tokens=30)
    assert [next(stream) for _ in range(3)] == tokens[:3]
    stream.close()
    assert stream.finish_reason == "cancelled"
    stop = tokens[-1]
    ended = start(llm, name, prompt, max_tokens=30, stop=[stop])
    assert list(ended) == tokens[: tokens.index(stop)]
    watched = start(llm, name, prompt, max_tokens=30, watch=lambda token: token == stop)
    assert list(watched) == tokens[: tokens.index(stop) + 1]
    assert list(start(llm, name, prompt, max_tokens=0)) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_logprobs_are_the_models(name):
    llm, prompt = random_llm("gemma", "f32"), prompt_of(40)
    text = start(llm, name, prompt, logprobs=3, echo=True)
    tokens = list(text)
    rows = llm.logits(prompt + tokens[:-1])[len(prompt) - 1 :]
    for token, row, found in zip(tokens, rows, text.logprobs, strict=True):
        expected = contrasts.log_softmax(row)
        assert found.token == token
        assert abs(found.logprob - expected[token]) < 1e-5
        assert [t for t, _ in found.top] == np.argsort(-expected, kind="stable")[:3].tolist()
    assert len(text.prompt_logprobs) == len(prompt)


@pytest.mark.parametrize("name", SEARCHES)
def test_processors(name):
    """They change scores, or for contrastive search logits, and what they raise ends this text alone."""
    llm, prompt = random_llm("gemma", "q8"), prompt_of(12)
    seen = []

    def only_9(ids, scores):
        seen.append(list(ids))
        out = np.full_like(scores, -np.inf)
        out[9] = 0
        return out

    assert list(start(llm, name, prompt, max_tokens=3, processors=[only_9])) == [9, 9, 9]
    assert seen[:3] == [prompt, [*prompt, 9], [*prompt, 9, 9]]

    def fail(ids, scores):
        raise KeyError("mine")

    bad, good = start(llm, name, prompt, processors=[fail]), start(llm, name, prompt)
    llm._scheduler.run([bad, good])
    with pytest.raises(KeyError, match="mine"):
        bad.raise_error()
    assert (good.tokens, good.finish_reason, good.logprobs) == alone(name, prompt)


@pytest.mark.parametrize("name", SEARCHES)
def test_not_finite(name):
    llm = random_llm("qwen", "f32")
    architecture = ARCHITECTURES["qwen"]
    weights = writers.random_weights(architecture.config, 3, optional=architecture.optional)
    weights["layers.1.ffn.w2"][:] = 1e38
    tensors = writers.core_tensors(architecture.config, weights, "f32")
    broken = type(llm)(llm_stored(architecture.config, tensors), llm._tokenizer, threads=1, context=None, path=llm.path)
    with pytest.raises(NumericError, match="layer 2"):
        start(broken, name, prompt_of(20)).wait()


def llm_stored(config, tensors):
    from fastllm.weights.store import Stored

    return Stored(config, tensors, bos=1, stop=(), chat_stop=())


@pytest.mark.parametrize("name", ["contrastive", "dola", "guidance", "negative"])
def test_interrupted_anywhere(name, monkeypatch):
    """Ctrl-C at any line of a search: the text goes on, and is the same."""
    monkeypatch.setitem(SEARCHES, name, (SEARCHES[name][0], Sampling(temperature=0, top_k=4)))
    prompt, rng = prompt_of(90), random.Random(name)
    expected, interrupted = alone(name, prompt, max_tokens=25)[0], 0
    files = {module.__file__ for module in (contrastive, dola, guidance)}

    def local(frame, event, arg):
        if event == "line" and rng.random() < 0.03:
            raise KeyboardInterrupt
        return local

    def trace(frame, event, arg):
        return local if frame.f_code.co_filename in files and frame.f_code.co_name != "close" else None

    for _ in range(4):
        text = start(random_llm("gemma", "q8"), name, prompt, max_tokens=25)
        while text.finish_reason is None:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                text.wait()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.settrace(before)
        assert text.tokens == expected
    assert interrupted > 20


def test_threads_write_searches():
    llm, kinds = random_llm("gemma", "q8", threads=2), list(requests(12))
    expected = [alone(name, prompt, **options)[0] for name, prompt, options in kinds]
    found = {}

    def write(i):
        name, prompt, options = kinds[i]
        found[i] = list(start(llm, name, prompt, **options))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(12)] == expected


def test_the_context_bounds_the_longer_prompt():
    llm = random_llm("qwen", "f32")
    negative = prompt_of(llm.context - 4)
    options = {"guidance_scale": 2.0, "temperature": 0, "max_tokens": None, "ignore_eos": True}
    assert len(llm.generate([5, 6], negative_prompt=negative, **options)) == 5
    with pytest.raises(ContextError, match="negative_prompt has 257 tokens, the context 256"):
        llm.generate([5, 6], negative_prompt=[5] * 257, **options)
