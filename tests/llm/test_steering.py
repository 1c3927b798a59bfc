"""Options that steer a text, from LLM.generate down: what they bring into texts and keep out of them."""

import pytest

import fastllm
from fastllm import OptionError
from fastllm.decoding import Watermark
from fastllm.llm.steering import Phrases
from fastllm.tokenizer import Tokenizer
from helpers.data import BUILT_IN

PROMPT = "Once upon a time, there was a little"


@pytest.fixture(scope="module")
def stories():
    return fastllm.load(BUILT_IN, threads=1)


def grams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def test_no_ngram_twice(stories):
    options = {"temperature": 0, "max_tokens": 150, "ignore_eos": True}
    plain = stories.generate(PROMPT, **options)
    ids = stories.tokenize(PROMPT)
    assert len(set(grams(ids + plain.tokens, 3))) < len(grams(ids + plain.tokens, 3))  # it repeats itself
    for n in (2, 3):
        text = stories.generate(PROMPT, no_repeat_ngram_size=n, **options)
        found = grams(ids + text.tokens, n)
        assert len(set(found)) == len(found)


def test_bad_words(stories):
    """Neither with a space before it nor without; also where a word takes several tokens."""
    options = {"temperature": 0, "max_tokens": 80}
    plain = stories.generate(PROMPT, **options)
    words = list(dict.fromkeys(word.strip(".,!?\"'") for word in plain.split()))[:6]
    text = stories.generate(PROMPT, bad_words=words, **options)
    assert text != plain
    assert not set(words) & {word.strip(".,!?\"'") for word in text.split()}
    assert stories.generate(PROMPT, bad_words=[], **options) == plain


def test_a_phrase_that_is_wanted(stories):
    options = {"temperature": 0.6, "max_tokens": 12, "seed": 1}
    plain = stories.generate(PROMPT, **options).tokens
    wanted = stories.tokenize("z", bos=False)[-1]
    text = stories.generate(PROMPT, sequence_bias={(*plain[1:4], wanted): 100.0}, **options)
    assert text.tokens[:5] == [*plain[:4], wanted] != plain[:5]


def test_the_last_token(stories):
    end = stories.stop[0]
    for most in (1, 2, 20):
        text = stories.generate(PROMPT, forced_eos_token_id=end, max_tokens=most, temperature=0)
        assert text.finish_reason == "stop"
        assert len(text.tokens) <= most
    plain = stories.generate(PROMPT, max_tokens=400, temperature=0)
    soon = stories.generate(PROMPT, max_tokens=400, temperature=0, exponential_decay_length_penalty=(20, 1.5))
    assert soon.finish_reason == "stop"
    assert len(soon.tokens) < len(plain.tokens)


def test_many_texts_are_each_alone(stories):
    """A text's options and state are its own in a batch, with guesses too."""
    options = {
        "dry_multiplier": 0.8,
        "penalty_window": 20,
        "repetition_penalty": 1.1,
        "bad_words": ["the"],
        "watermark": {"bias": 3.0},
        "xtc_probability": 0.3,
        "max_tokens": 40,
    }
    prompts = [PROMPT, "The dog", "Lily saw a big, red"]
    together = stories.generate(prompts, seed=[1, 2, 3], **options)
    for prompt, seed, text in zip(prompts, (1, 2, 3), together, strict=True):
        assert stories.generate(prompt, seed=seed, **options) == text
        assert stories.generate(prompt, seed=seed, lookup=True, **options) == text
        assert "".join(stories.generate(prompt, seed=seed, stream=True, **options)) == text


def test_a_watermarked_text(stories):
    mark = Watermark(hashing_key=12345, bias=4.0)
    options = {"max_tokens": 120, "ignore_eos": True, "seed": 3, "temperature": 1.0}
    size = stories.config.vocab_size
    assert mark.detect(stories.generate(PROMPT, watermark=mark, **options).tokens, size).found
    assert not mark.detect(stories.generate(PROMPT, **options).tokens, size).found


class Letters(Tokenizer):
    """Each piece is a token."""

    def __init__(self, pieces):
        self.pieces = [piece.encode() for piece in pieces]

    def stream(self, previous=None):
        return self

    def encode(self, text, *, special=False):
        return [self.pieces.index(letter.encode()) for letter in text]


def test_breakers_of_dry():
    """Every token with a breaker in it, and a token that begins one together with those that go on."""
    pieces = ["a", "b", ".", "a.", "ab", "b\n", "\n", "x", "bx", " "]
    phrases = Phrases(len(pieces), Letters(pieces))
    assert sorted(phrases._all_breakers(("\n",))) == [(5,), (6,)]
    assert sorted(phrases._all_breakers(("ab",))) == [(0, 1), (4,)]
    assert sorted(phrases._all_breakers(((3, 7), "x"))) == [(3, 7), (7,), (8,)]


def test_a_model_without_tokenizer(write_model):
    llm = fastllm.load(write_model(tokenizer=False), threads=1)
    assert llm.generate([1, 5], max_tokens=3, dry_multiplier=1, dry_sequence_breakers=[[5]], bad_words=[[7]], seed=1)
    for options in ({"bad_words": ["a"]}, {"dry_multiplier": 1.0}):
        with pytest.raises(fastllm.TokenizerError, match="phrases that are texts need a tokenizer"):
            llm.generate([1, 5], max_tokens=3, **options)


def test_what_generate_does_not_know(stories):
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        stories.generate(PROMPT, temprature=1)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"mirostat_tau": 5, "top_k": 3}, "mirostat_tau takes the place of top_k: leave that out, or 0"),
        ({"suppress_tokens": [10**6]}, "suppress_tokens has 1000000, which is no token id"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be a whole number from 0"),
        ({"watermark": True}, "watermark must be a Watermark or a dict of"),
        ({"sampler_order": ["top_q"]}, "sampler_order has 'top_q': it takes temperature, "),
        ({"exponential_decay_length_penalty": (5, 1.1), "ignore_eos": True}, "exponential_decay_length_penalty needs"),
    ],
    ids=repr,
)
def test_bad_input(stories, options, cause):
    with pytest.raises(OptionError, match=f"^{cause}"):
        stories.generate(PROMPT, max_tokens=3, **options)


def test_nothing_is_left(stories):
    with pytest.raises(OptionError, match="there is no token to draw"):
        stories.generate(PROMPT, suppress_tokens=range(stories.config.vocab_size), max_tokens=2)
