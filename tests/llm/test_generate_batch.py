"""generate of a list of prompts, under its older name too."""

import pytest

from fastllm import ContextError, OptionError
from helpers.architectures import random_llm


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
    for wrong in ({"seed": [1]}, {"temperature": -1}, {"stop": [""]}, {"max_tokens": -2}):
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
