"""Speculative decoding: the text is that of plain decoding, whatever is guessed."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import OptionError
from fastllm.decoding import Sampling
from fastllm.engine import Generation
from fastllm.engine.costs import MOST, Costs
from fastllm.engine.guesses import PromptLookup
from helpers import writers
from helpers.architectures import ARCHITECTURES, random_llm

PROMPT = [1, 40, 41, 42, 43, 44, 45, 46, 40, 41, 42]

SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "temperature": Sampling(temperature=1.3, top_p=1.0),
    "top_p": Sampling(temperature=0.8, top_p=0.7),
    "top_k": Sampling(temperature=2.0, top_k=5),
    "penalties": Sampling(
        temperature=0.9, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={44: 2.0}
    ),
    "history": Sampling(
        temperature=0.9,
        no_repeat_ngram_size=4,
        dry_multiplier=0.5,
        dry_sequence_breakers=[[45]],
        repetition_penalty=1.1,
        penalty_window=12,
        bad_words=[[44, 45]],
        sequence_bias={(40, 41): 3.0},
        watermark={"context_width": 2},
    ),
    "chance": Sampling(temperature=1.1, top_p=0.95, xtc_probability=0.5, xtc_threshold=0.05, dynatemp_range=0.4),
    "mirostat": Sampling(mirostat_tau=4.0, mirostat_eta=0.3),
}


class Scripted:
    """A proposer that knows the text and spoils some of its guesses, so that they are right and wrong in every way."""

    def __init__(self, text, seed):
        self.text, self.rng = text, np.random.default_rng(seed)

    def begin(self, prompt):
        pass

    def propose(self, tokens, most, others=0):
        assert list(tokens) == self.text[: len(tokens)]
        assert 0 <= most <= MOST
        guesses = self.text[len(tokens) : len(tokens) + min(most, int(self.rng.integers(0, MOST + 1)))]
        return [t if self.rng.random() < 0.8 else (t + 1) % 300 for t in guesses]

    def end(self, tokens):
        assert list(tokens) == self.text[: len(tokens)]


class Free(Costs):
    """Costs by which more rows are free, so that every guess is tried."""

    def best(self, chances, each=0.0, others=0):
        return max(n for n in (0, 1, 3, 7, 15) if n <= len(chances))


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def model(request, tmp_path_factory):
    return load(tmp_path_factory.mktemp("model"), 0, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A smaller model with the same vocabulary."""
    return load(tmp_path_factory.mktemp("draft"), 0, 1, dim=24, max_seq=96)


def load(folder, seed, threads=1, *, dim=40, max_seq=160, vocab=300):
    cfg = writers.config(dim, 57, 4, 2, vocab, max_seq=max_seq)
    path = folder / "model.bin"
    path.write_bytes(writers.v0(cfg, writers.random_weights(cfg, seed, tied=False)))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(vocab)))
    return fastllm.load(path, threads=threads)


def plain(llm, sampling, prompt=PROMPT, **options):
    generation = llm.start(prompt, sampling, **{"max_tokens": 100, "seed": 5, "stop": ()} | options)
    return list(generation), generation.finish_reason


def guessed(llm, sampling, proposer, prompt=PROMPT, **options):
    """The text that a model writes with the guesses of a given proposer."""
    generation = llm.start(prompt, sampling, **{"max_tokens": 100, "seed": 5, "stop": ()} | options)
    generation.proposer = proposer
    tokens = list(generation)
    assert tokens == generation.tokens
    return tokens, generation.finish_reason, generation


# ---- the same text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("seed", range(4))
def test_any_guesses_give_the_same_text(model, name, seed):
    sampling = SAMPLINGS[name]
    tokens, reason = plain(model, sampling, seed=seed)
    script = Scripted(PROMPT + tokens, seed)
    ours, ended, generation = guessed(model, sampling, script, seed=seed)
    assert (ours, ended) == (tokens, reason)
    assert 0 < generation.accepted < generation.proposed


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 3, 7, 16, 17, 50, None])
def test_max_tokens_and_the_end_of_the_context(model, max_tokens):
    sampling = SAMPLINGS["temperature"]
    tokens, reason = plain(model, sampling, max_tokens=max_tokens)
    assert len(tokens) == (model.context - len(PROMPT) + 1 if max_tokens is None else max_tokens)
    for seed in range(5):
        script = Scripted(PROMPT + tokens, seed)
        assert guessed(model, sampling, script, max_tokens=max_tokens)[:2] == (tokens, reason)


def test_a_prompt_as_long_as_the_context(model):
    prompt = list(range(3, 3 + model.context))
    tokens, _ = plain(model, SAMPLINGS["greedy"], prompt, max_tokens=None)
    assert len(tokens) == 1
    assert guessed(model, SAMPLINGS["greedy"], Scripted(prompt + tokens, 0), prompt, max_tokens=None)[0] == tokens


@pytest.mark.parametrize("name", ["greedy", "temperature", "penalties"])
def test_stop_tokens(model, name):
    """A stop token ends the text even if it was guessed and other guesses follow it."""
    free, _ = plain(model, SAMPLINGS[name])
    for at in (0, 1, 5, 20, 60):
        stop = (free[at],)
        tokens, reason = plain(model, SAMPLINGS[name], stop=stop)
        assert reason == "stop"
        for seed in range(3):
            script = Scripted(PROMPT + free, seed)
            assert guessed(model, SAMPLINGS[name], script, stop=stop)[:2] == (tokens, reason)


@pytest.mark.parametrize("seed", range(3))
def test_stop_strings_and_what_is_left_in_the_cache(model, seed):
    sampling = SAMPLINGS["temperature"]
    free, _ = plain(model, sampling, seed=seed)
    whole = model.detokenize(free)
    stop = [whole[30:33]]
    expected = whole[: whole.index(stop[0])]

    def write(proposer):
        options = sampling._asdict() | {"max_tokens": 100, "seed": seed, "ignore_eos": True}
        stream = model.generate(PROMPT, stop=stop, stream=True, **options)
        stream.generation.proposer = proposer
        return "".join(stream), stream.generation

    text, _ = write(None)
    assert text.removeprefix(" ") == expected.removeprefix(" ")
    for spoiled in range(4):
        ours, generation = write(Scripted(PROMPT + free, spoiled))
        assert ours == text
        # The next prompt reuses keys and values of the text that was cut short.
        longer = PROMPT + generation.tokens + [7]
        after = model.start(longer, sampling, max_tokens=20, seed=1, stop=())
        assert list(after) == list(load_again(model).start(longer, sampling, max_tokens=20, seed=1, stop=()))
        assert after.cached > len(PROMPT)


def load_again(llm):
    """The same model with an empty cache."""
    return fastllm.load(llm.path, threads=llm.threads)


def test_a_text_closed_between_guesses(model):
    sampling = SAMPLINGS["greedy"]
    tokens, _ = plain(model, sampling)
    for count in range(1, 12):
        generation = model.start(PROMPT, sampling, max_tokens=100, seed=0, stop=())
        generation.proposer = Scripted(PROMPT + tokens, count)
        assert list(itertools.islice(generation, count)) == tokens[:count]
        generation.close()
        assert plain(model, sampling)[0] == tokens


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.config.causal and a.config.head])
@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_every_architecture(name, dtype):
    """Also for experts, windows and soft caps, for which several rows take other paths through the core."""
    llm = random_llm(name, dtype)
    sampling = Sampling(temperature=1.2, top_p=0.95)
    prompt = [3, 7, 9, 11, 3, 7]
    tokens, _ = plain(llm, sampling, prompt, max_tokens=90)
    for seed in range(2):
        script = Scripted(prompt + tokens, seed)
        script.propose = lambda t, most, others, s=script: [g % 61 for g in Scripted.propose(s, t, most)]
        assert guessed(llm, sampling, script, prompt, max_tokens=90)[0] == tokens


# ---- prompt lookup ---------------------------------------------------------------------------------------------------


def in_common(tokens, place):
    """How many tokens before `place` equal the tokens before the text's end."""
    count = 0
    while count < place and tokens[place - 1 - count] == tokens[-1 - count]:
        count += 1
    return count


@given(st.lists(st.integers(0, 2), min_size=1, max_size=33), st.lists(st.integers(1, 5), max_size=12))
def test_lookup_finds_the_longest_place(tokens, steps):
    """The lookup finds the place that comparing every place finds; the text grows by pieces of any length."""
    lookup, at = PromptLookup(Costs()), 0
    for step in [*steps, len(tokens)]:
        if at == len(tokens):
            break
        at = min(at + step, len(tokens))
        text = tokens[:at]
        lookup.follow(text)
        lengths = [in_common(text, place) for place in range(1, at)]
        longest = max(lengths, default=0)
        assert min(lookup.length, 16) == (min(longest, 16) if longest >= 2 else 0)
        if lookup.length:
            # The guesses are the tokens after a place with the most tokens in common; past the text's end they repeat.
            guesses = lookup.continuation(text, 20)
            assert len(guesses) == 20
            written = text + guesses
            places = [p for p, n in enumerate(lengths, 1) if n >= min(longest, 16)]
            assert any(all(written[at + i] == written[p + i] for i in range(20)) for p in places)


def test_lookup_takes_the_latest_of_equals():
    lookup = PromptLookup(Costs())
    text = [5, 6, 1, 9, 5, 6, 2, 8, 5, 6]
    lookup.follow(text)
    assert lookup.continuation(text, 3) == [2, 8, 5]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_lookup_gives_the_same_text(model, name, monkeypatch):
    monkeypatch.setattr(model._engine, "costs", Free())
    tokens, reason = plain(model, SAMPLINGS[name])
    generation = model.start(PROMPT, SAMPLINGS[name], max_tokens=100, seed=5, stop=(), lookup=True)
    assert (list(generation), generation.finish_reason) == (tokens, reason)
    assert 0 <= generation.accepted <= generation.proposed


def test_lookup_of_a_text_that_repeats_itself(model, monkeypatch):
    """A bias that allows only two tokens makes the model repeat itself, so that nearly all tokens are guessed."""
    monkeypatch.setattr(model._engine, "costs", Free())
    sampling = Sampling(temperature=0, logit_bias={9: 1e6})
    generation = model.start(PROMPT, sampling, max_tokens=100, seed=5, stop=(), lookup=True)
    assert list(generation) == plain(model, sampling)[0] == [9] * 100
    assert generation.accepted >= 90


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 1.5, "top_p": 1, "seed": 3}])
def test_generate_with_lookup(model, options):
    options = {"max_tokens": 120, "seed": 2} | options
    prompt = "the ocean once the ocean once the ocean"
    assert model.generate(prompt, lookup=True, **options) == model.generate(prompt, **options)


# ---- a draft model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("itself", [True, False])
def test_a_draft_gives_the_same_text(model, small, name, itself, monkeypatch):
    """The draft's context is shorter than the text; past its end the draft guesses nothing."""
    monkeypatch.setattr(model._engine, "costs", Free())
    tokens, reason = plain(model, SAMPLINGS[name], max_tokens=None)
    draft = model if itself else small
    for _ in range(2):  # the second time the draft's cache holds the first text
        generation = model.start(PROMPT, SAMPLINGS[name], max_tokens=None, seed=5, stop=(), draft=draft)
        assert (list(generation), generation.finish_reason) == (tokens, reason)
        assert generation.proposed > 0
    if itself and name == "greedy":
        assert generation.accepted == generation.proposed


def test_a_draft_with_a_long_prompt(model, small):
    """A prompt that is longer than the draft's context."""
    prompt = [1, *range(3, 120)]
    tokens, _ = plain(model, SAMPLINGS["greedy"], prompt, max_tokens=20)
    generation = model.start(prompt, SAMPLINGS["greedy"], max_tokens=20, seed=5, stop=(), draft=small)
    assert list(generation) == tokens
    assert generation.proposed == 0


def test_a_draft_as_dear_as_its_model_is_not_asked(model):
    """A draft as large as its model is never asked, not even to read the prompt.

    Before any forward was timed, the cost of a guess is estimated by the weights that the draft reads.
    """
    generation = model.start(PROMPT, SAMPLINGS["greedy"], max_tokens=40, seed=5, stop=(), draft=model)
    draft = generation.proposer
    assert len(list(generation)) == 40
    assert (generation.proposed, draft._each) == (0, 0.0)


def test_generate_with_a_draft(model, small):
    options = {"max_tokens": 60, "temperature": 0.9, "seed": 8}
    assert model.generate("the ocean", draft=small, **options) == model.generate("the ocean", **options)


def test_a_draft_must_share_the_vocabulary(model, tmp_path):
    other = load(tmp_path, 0, vocab=280)
    with pytest.raises(OptionError, match=r"vocabulary of 280, .* 300"):
        model.generate("the", draft=other)
    words = writers.tokenizer_words(300)
    words[290], words[291] = words[291], words[290]
    (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(words))
    (tmp_path / "model.bin").write_bytes(model.path.read_bytes())
    with pytest.raises(OptionError, match="other tokens"):
        model.generate("the", draft=fastllm.load(tmp_path / "model.bin"))
    with pytest.raises(OptionError, match="not from both"):
        model.generate("the", draft=model, lookup=True)


def test_an_encoder_is_no_draft():
    decoder, encoder = (random_llm(name, "f32") for name in ("gpt2", "bert"))
    with pytest.raises(OptionError, match="writes no text"):
        decoder.start([1], Sampling(), max_tokens=5, seed=0, draft=encoder)


# ---- how many guesses ------------------------------------------------------------------------------------------------


def costs(**seconds):
    out = Costs()
    for rows, value in seconds.items():
        out.note(int(rows[1:]), value)
    return out


def test_before_anything_is_known_a_token_goes_alone():
    assert Costs().best([1.0] * 15) == 0


def test_as_many_guesses_as_pay():
    """The best number of guesses has the highest rate: (1 + p1 + p1 p2 + ...) tokens per second of a forward."""
    flat = {"r1": 1.0, "r2": 1.0, "r4": 1.0, "r8": 1.0, "r16": 1.0}
    assert costs(**flat).best([0.9] * 15) == 15
    assert costs(**flat).best([0.9] * 14) == 7  # rows are tried in powers of two: 8, the token itself and 7 guesses
    assert costs(**flat).best([0.01] * 15) == 0  # guesses that are nearly always wrong
    # Twice the rows at twice the cost gain nothing, even if every guess is right.
    assert costs(r1=1.0, r2=2.0, r4=4.0, r8=8.0, r16=16.0).best([1.0] * 15) == 0
    # (1 + .5) / 1.1 = 1.36; (1 + .5 + .25 + .125) / 1.5 = 1.25
    assert costs(r1=1.0, r2=1.1, r4=1.5, r8=3.0, r16=6.0).best([0.5] * 15) == 1
    # A draft that takes as long as the model: 2 tokens in 1 + 1 seconds gain nothing.
    assert costs(**flat).best([1.0], each=1.0) == 0
    assert costs(**flat).best([1.0] * 3, each=0.5) == 3


def test_what_was_never_tried_is_tried():
    assert costs(r1=1.0).best([0.9] * 15) == 15
    # A measured cost counts as at most twice that of half as many rows, and older measurements fade.
    assert costs(r1=1.0, r2=1000.0, r4=1.0, r8=1.0, r16=1.0).best([0.9] * 15) == 15
    known = costs(r1=1.0, r2=1000.0, r4=1000.0, r8=1000.0, r16=1000.0)
    assert known.best([0.9] * 15) == 0
    for _ in range(2000):
        known.note(1, 1.0)
    assert known.best([0.9] * 15) > 0


def test_no_finish_before_the_text(model):
    generation = model.start(PROMPT, Sampling(), max_tokens=0, seed=0, lookup=True)
    assert isinstance(generation, Generation)
    assert (list(generation), generation.finish_reason) == ([], "length")
