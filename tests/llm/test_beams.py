"""Beams as options of generate: texts, stops, how many there are, and what does not go together."""

import asyncio
import json
import re

import pytest

import fastllm
from fastllm import OptionError, Text
from helpers import writers
from helpers.architectures import random_llm
from helpers.data import BUILT_IN

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def stories():
    return fastllm.load(BUILT_IN)


def test_the_course(stories):
    """Five beams, drawn, of which no three tokens in a row occur twice: another text for another seed."""
    options = {"num_beams": 5, "temperature": 1.1, "top_p": 0.9, "no_repeat_ngram_size": 3, "max_tokens": 60}
    texts = {stories.generate(PROMPT, seed=seed, **options) for seed in range(4)}
    assert len(texts) > 1
    for text in texts:
        ids = stories.tokenize(PROMPT) + text.tokens
        grams = list(zip(ids, ids[1:], ids[2:], strict=False))
        assert len(set(grams)) == len(grams)
        assert stories.generate(PROMPT, seed=text.seed, **options) == text


def test_beams_are_not_drawn_unless_a_temperature_is_given(stories):
    texts = {stories.generate(PROMPT, num_beams=3, max_tokens=20, seed=seed) for seed in range(3)}
    assert len(texts) == 1
    assert texts == {stories.generate(PROMPT, num_beams=3, max_tokens=20, temperature=0)}


def test_texts_are_the_best_and_have_a_score(stories):
    texts = stories.generate(PROMPT, num_beams=4, num_return_sequences=4, max_tokens=15, logprobs=0)
    assert [type(text) for text in texts] == [Text] * 4
    assert len(set(texts)) == 4
    assert sorted((text.score for text in texts), reverse=True) == [text.score for text in texts]
    for text in texts:
        assert text == stories.detokenize(stories.tokenize(PROMPT) + text.tokens)[len(PROMPT) :]
        assert text.score == pytest.approx(sum(one.logprob for one in text.logprobs) / len(text.tokens), abs=1e-4)
        assert (text.finish_reason, text.prompt_tokens) == ("length", len(stories.tokenize(PROMPT)))
    assert stories.generate(PROMPT, num_beams=4, max_tokens=15) == texts[0]
    assert stories.generate(PROMPT, max_tokens=5, seed=1).score is None


def test_num_return_sequences_is_n(stories):
    options = {"max_tokens": 8, "seed": 5}
    for more in ({}, {"num_beams": 3}):
        three = stories.generate(PROMPT, n=3, **more, **options)
        assert stories.generate(PROMPT, num_return_sequences=3, **more, **options) == three
        assert stories.generate(PROMPT, n=3, num_return_sequences=3, **more, **options) == three
        assert stories.generate(PROMPT, num_return_sequences=1, **more, **options) == [three[0]]
        assert stories.generate([PROMPT] * 2, n=3, **more, **options) == three * 2
    with pytest.raises(OptionError, match="n is 2 and num_return_sequences 3"):
        stories.generate(PROMPT, n=2, num_return_sequences=3)


def test_a_stop_ends_a_beam(stories):
    """A text that a stop ends is done; of its score the stop is a part."""
    free = stories.generate(PROMPT, num_beams=3, max_tokens=30)
    for stop, ended in (
        (". ", lambda text: ". " in text),
        ([".", ","], lambda text: bool({".", ","} & set(text))),
        (re.compile("h[a-z]use "), lambda text: "house " in text),
        (lambda text: text.endswith(" lived"), lambda text: " lived" in text),
    ):
        texts = stories.generate(PROMPT, num_beams=3, max_tokens=30, stop=stop, num_return_sequences=3)
        assert texts[0].finish_reason == "stop"
        for text in texts:
            whole = stories.detokenize(stories.tokenize(PROMPT) + text.tokens)[len(PROMPT) :]
            assert (text.finish_reason == "stop") == ended(whole)
            assert whole.startswith(text)
            assert not ended(stories.detokenize(stories.tokenize(PROMPT) + text.tokens[:-1])[len(PROMPT) :])
    token = free.tokens[4]
    by_id = stories.generate(PROMPT, num_beams=3, max_tokens=30, stop=token)
    assert token not in by_id.tokens


def test_min_tokens_and_ignore_eos(stories):
    ends = {"stop": list(range(0, 1024, 3)), "num_beams": 3, "max_tokens": 20}
    assert len(stories.generate(PROMPT, **ends).tokens) < 12
    assert len(stories.generate(PROMPT, min_tokens=12, **ends).tokens) >= 12
    long = stories.generate(PROMPT, num_beams=2, max_tokens=200, ignore_eos=True)
    assert len(long.tokens) == 200


def test_forced_words_are_in_the_text(stories):
    for words in (["dragon"], ["dragon", "moon"], [["cat", "dog"]], ["cat", ["sun", "moon"]]):
        text = stories.generate(PROMPT, num_beams=6, max_tokens=40, force_words=words)
        for ways in words:
            assert any(way in text for way in ([ways] if isinstance(ways, str) else ways))


def test_groups_differ(stories):
    options = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 50.0, "max_tokens": 12, "n": 6}
    texts = stories.generate(PROMPT, **options)
    plain = stories.generate(PROMPT, num_beams=6, max_tokens=12, n=6)
    assert len({text.tokens[0] for text in texts}) > len({text.tokens[0] for text in plain})


def test_coroutines(stories):
    async def several():
        one = stories.agenerate(PROMPT, num_beams=3, max_tokens=12)
        three = stories.agenerate([PROMPT, "A cat"], num_beams=3, max_tokens=12, num_return_sequences=3)
        return await asyncio.gather(one, three)

    one, three = asyncio.run(several())
    assert one == three[0] == stories.generate(PROMPT, num_beams=3, max_tokens=12)
    assert len(three) == 6
    assert three[3:] == stories.generate("A cat", num_beams=3, max_tokens=12, n=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": True}, "stream does not go with num_beams: the best text is known only at the end"),
        ({"lookup": True}, "lookup does not go with num_beams: a beam is not guessed"),
        ({"num_return_sequences": 4}, "num_beams is 3, which does not give 4 texts"),
        ({"n": 4}, "num_beams is 3, which does not give 4 texts"),
        ({"mirostat_tau": 5.0}, "mirostat_tau does not go with num_beams"),
        ({"xtc_probability": 0.5}, "xtc_probability does not go with num_beams"),
        (
            {"num_beam_groups": 3, "diversity_penalty": 1.0, "temperature": 0.5},
            "num_beam_groups goes with temperature 0",
        ),
        ({"force_words": ["a"], "temperature": 0.5}, "force_words goes with temperature 0 only"),
        ({"force_words": [[5000]]}, "force_words has 5000, which is no token id: the vocabulary has 1,024"),
        ({"force_words": [[1]]}, "force_words has token 1, which ends the text"),
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups must divide num_beams"),
    ],
)
def test_what_does_not_go_together_is_refused(stories, options, message):
    with pytest.raises(OptionError) as error:
        stories.generate(PROMPT, **{"num_beams": 3, "max_tokens": 5, **options})
    assert str(error.value).startswith(message)
    if "stream" in options:
        with pytest.raises(OptionError, match="stream does not go with num_beams"):
            stories.agenerate(PROMPT, num_beams=3, stream=True)


def test_a_draft_is_refused():
    llm = random_llm("qwen", "q8")
    with pytest.raises(OptionError, match="draft does not go with num_beams"):
        llm.generate([1, 2], num_beams=2, draft=llm)


def test_errors_of_some_prompts_leave_the_others(stories):
    def breaks(ids, _):
        if len(ids) > 12:
            raise ValueError("too long")

    with pytest.raises(ValueError, match="too long") as error:
        stories.generate(["A", "A cat sat on the mat and it was a good day"], num_beams=2, max_tokens=4,
                         logits_processor=breaks, num_return_sequences=2)  # fmt: skip
    assert error.value.text == 1
    assert [type(text) for text in error.value.texts] == [Text, Text, type(None)]


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A model of random weights whose vocabulary has all bytes, and that ends a text with token 1."""
    folder, cfg = tmp_path_factory.mktemp("wild"), writers.SMALL
    (folder / "model.bin").write_bytes(writers.v0(cfg, writers.random_weights(cfg)))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words()))
    return fastllm.load(folder / "model.bin", threads=1)


@pytest.mark.parametrize("beams", [{}, {"temperature": 1.3, "top_p": 0.9}])
def test_each_beam_follows_the_grammar(wild, beams):
    pytest.importorskip("llguidance")
    options = {"num_beams": 4, "max_tokens": 40, "seed": 1, **beams}
    for text in wild.generate("a", regex="(one|two){2,4}( [a-f]+)?x", n=2, **options):
        assert re.fullmatch("(one|two){2,4}( [a-f]+)?x", text) or text.finish_reason == "length"
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
    for text in wild.generate("a", json_schema=schema | {"additionalProperties": False}, n=2, **options):
        assert text.finish_reason == "length" or set(json.loads(text)) == {"a"}


def test_beams_are_choices(wild):
    """In the order of their scores; of one choice there may be several ways to write it in tokens."""
    pytest.importorskip("llguidance")
    choice = ["yes", "no", "not at all"]
    texts = wild.generate("a", choice=choice, num_beams=8, n=6, max_tokens=20, length_penalty=0, early_stopping="never")
    assert set(texts) <= set(choice)
    assert len({tuple(text.tokens) for text in texts}) == 6
    assert [text.score for text in texts] == sorted((text.score for text in texts), reverse=True)
    assert {text.finish_reason for text in texts} == {"stop"}


@pytest.mark.parametrize("n", [1, 3])
def test_no_token_at_all(llm, n):
    texts = llm.generate(PROMPT, num_beams=4, num_return_sequences=n, max_tokens=0, logprobs=1)
    assert [(text, text.finish_reason, text.tokens, text.logprobs) for text in texts] == [("", "length", [], [])] * n
    assert llm.generate(PROMPT, num_beams=4, max_tokens=0) == ""
