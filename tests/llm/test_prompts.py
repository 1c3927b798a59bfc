"""What generate takes as a prompt and as numbers: texts, ids and lists of both, Python's and numpy's; and what not."""

import array
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import OptionError
from fastllm.llm.arguments import prompts_in, seeds, token_ids, whole
from helpers.calls import refusal

PROMPT = "the ocean once"
OPTIONS = {"max_tokens": 5, "seed": 1}
MESSAGES = [{"role": "user", "content": "the ocean"}]


def test_a_prompt_in_every_form(llm):
    ids = llm.tokenize(PROMPT)
    forms = [
        ids,
        tuple(ids),
        np.array(ids),
        np.array(ids, np.uint16),
        array.array("q", ids),
        [np.int32(i) for i in ids],
    ]
    assert [llm.generate(form, **OPTIONS) for form in forms] == [llm.generate(PROMPT, **OPTIONS)] * len(forms)
    assert llm.generate(range(5, 9), **OPTIONS) == llm.generate([5, 6, 7, 8], **OPTIONS)


def test_prompts_in_every_form(llm):
    texts = [PROMPT, "a"]
    ids = [llm.tokenize(text) for text in texts]
    expected = [llm.generate(text, **OPTIONS) for text in texts]
    forms = [texts, tuple(texts), (text for text in texts), np.array(texts), dict.fromkeys(texts).keys(), ids]
    forms += [[PROMPT, ids[1]], [np.array(i) for i in ids], iter(ids)]
    for prompts in forms:
        assert llm.generate(prompts, **OPTIONS) == expected
    assert llm.generate(["12", "13"], **OPTIONS) == [llm.generate(text, **OPTIONS) for text in ("12", "13")]
    assert llm.generate([PROMPT], **OPTIONS) == expected[:1]
    assert llm.generate([], **OPTIONS) == llm.generate_batch(iter([])) == []


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (b"the", r"prompt .*b'the' is bytes, which decode\(\) makes a text"),
        (bytearray(b"the"), "prompt .* is bytes"),
        (None, "prompt .*None"),
        (5, "prompt .*5"),
        (1.5, "prompt .*1.5"),
        (Path("story.txt"), "prompt .* is a path; pass the text"),
        (MESSAGES[0], "prompt .* messages of a conversation go to chat"),
        (MESSAGES, "prompt 0 .* messages of a conversation go to chat"),
        ([5, "a"], "prompt .*item 1 is 'a'"),
        (["a", 5], "prompt 1 .*5"),
        (["a", None], "prompt 1 .*None"),
        (["a", b"b"], "prompt 1 .*bytes"),
        (["a", []], "prompt 1 is empty"),
        ([["12", "13"]], r"prompt 0 .*item 0 is the string '12', which int\(\) makes a token id"),
        ([1.7, 260.2], "prompt .*item 0 is 1.7"),
        ([True, False], "prompt .*item 0 is True"),
        ([5, True], "prompt .*item 1 is True"),
        (np.array([[5, 6]]), r"prompt .*item 0 is \[5, 6\]; ids have one dimension"),
        (np.array([5.0]), "prompt .*item 0 is 5.0"),
        (np.array([True]), "prompt .*item 0 is True"),
        (np.array(5), "prompt .*5"),
        (np.array([], int), "prompt is empty"),
        ([[[5]]], r"prompt 0 .*item 0 is \[5\]"),
        ([-1], "prompt .*-1 is no token id: the vocabulary has 300"),
        ([1 << 70], f"prompt .*{1 << 70} is no token id"),
        ([[5], [300]], "prompt 1 .*300 is no token id"),
        ([[5], [5] * 200], "prompt 1 has 200 tokens, the context 160"),
    ],
    ids=str,
)
def test_what_is_no_prompt(llm, prompt, why):
    with pytest.raises(OptionError if "context" not in why else fastllm.ContextError, match=why) as error:
        llm.generate(prompt, max_tokens=2)
    assert "\n" not in str(error.value)
    number = re.match(r"prompt (\d)", str(error.value))
    assert error.value.text == (int(number[1]) if number else None)


def test_an_error_is_short(llm):
    assert len(refusal(lambda: llm.generate(b"x" * 10000), OptionError)) < 200
    assert len(refusal(lambda: llm.generate([1.5] * 10000), OptionError)) < 200


def test_other_methods_take_the_same_ids(llm):
    ids = np.array(llm.tokenize(PROMPT))
    assert (llm.logits(ids) == llm.logits(ids.tolist())).all()
    assert (llm.hidden_states(ids, layer=np.int64(1)) == llm.hidden_states(ids.tolist(), layer=1)).all()
    assert (llm.attentions(ids, np.uint8(1)) == llm.attentions(ids.tolist(), 1)).all()
    assert llm.detokenize(ids) == PROMPT
    assert (llm.embed(text for text in ["a", PROMPT]) == llm.embed(["a", PROMPT])).all()
    for call, name in [
        (lambda: llm.logits([1.5]), "tokens"),
        (lambda: llm.detokenize(504), "tokens"),
        (lambda: llm.detokenize("504"), "tokens"),
        (lambda: llm.detokenize([300]), "tokens"),
        (lambda: llm.tokenize(b"the"), "text"),
        (lambda: llm.tokenize(None), "text"),
        (lambda: llm.embed(None), "texts"),
        (lambda: llm.embed("the"), "texts"),
        (lambda: llm.hidden_states([1], 1.0), "layer"),
    ]:
        assert name in refusal(call, OptionError)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy(llm):
    plain = llm.generate(PROMPT, n=2, max_tokens=7, seed=3, min_tokens=1, logprobs=2, stop=[9])
    numbers = {"n": 2, "max_tokens": 7, "seed": 3, "min_tokens": 1, "logprobs": 2}
    for kind in (np.int64, np.uint8):
        assert llm.generate(PROMPT, stop=[kind(9)], **{k: kind(v) for k, v in numbers.items()}) == plain
    assert llm.generate([PROMPT, "a"], seed=np.array([3, 4]), max_tokens=7) == [
        llm.generate(PROMPT, seed=3, max_tokens=7),
        llm.generate("a", seed=4, max_tokens=7),
    ]


def test_whole():
    assert [whole("n", value, 1, 5) for value in (1, 5, np.int8(3), np.array(2))] == [1, 5, 3, 2]
    assert whole("n", 1 << 80, 0) == 1 << 80
    for value in (0, 6, -1, 1 << 80, np.int64(6)):
        assert refusal(lambda value=value: whole("n", value, 1, 5), OptionError) == (
            f"n must be between 1 and 5, not {value!r}"
        )
    for value in (3.0, "3", None, np.float32(3), [3], b"3", 3j, np.array([3, 4])):
        assert refusal(lambda value=value: whole("n", value, 1, 5), OptionError) == (
            f"n must be a whole number, between 1 and 5, not {value!r}"
        )
    assert "not True" in refusal(lambda: whole("n", True, 0, 5), OptionError)


def test_seeds_of_prompts():
    assert seeds(None, 2, alone=False) == [None, None]
    assert seeds(np.uint64((1 << 64) - 1), 2, alone=False) == [(1 << 64) - 1] * 2
    assert seeds((1, None), 2, alone=False) == [1, None]
    assert seeds(range(3), 3, alone=False) == [0, 1, 2]
    for seed, count, alone, why in [
        ([1], 2, False, "seed has 1 numbers for 2 prompts"),
        ([1], 1, True, "there is one prompt"),
        ([1, -1], 2, False, r"seed\[1\] must be between"),
        ([1, 2.5], 2, False, r"seed\[1\] must be a whole number"),
        ("12", 2, False, "seed must be a whole number"),
        (np.array([1.5, 2]), 2, False, r"seed\[0\] must be a whole number"),
    ]:
        with pytest.raises(OptionError, match=why):
            seeds(seed, count, alone=alone)


# ---- anything at all -------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(ANYTHING)
def test_any_object_is_prompts_or_an_error(value):
    """Whatever is passed becomes texts and ids, or an OptionError that names the prompt."""
    try:
        found, alone = prompts_in(value)
        assert not alone or len(found) == 1
        for one in found:
            if not isinstance(one, str):
                ids = token_ids(one, "prompt")
                assert [type(i) for i in ids] == [int] * len(one)
                assert ids == list(one)
    except OptionError as error:
        said = str(error)
    else:
        said = "prompt"
    assert said.startswith("prompt")
    assert "\n" not in said
