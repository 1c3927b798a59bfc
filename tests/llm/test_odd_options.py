"""Options as people write them by mistake: each is one sentence, or does what it says; none is taken in silence."""

import asyncio

import numpy as np
import pytest

import fastllm
from fastllm import OptionError
from helpers.data import BUILT_IN

PROMPT = "Once upon a time"
SEARCHES = [
    {},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"guidance_scale": 1.5},
    {"num_beams": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"lookup": True},
]


@pytest.fixture(scope="module")
def llm():
    return fastllm.load(BUILT_IN, threads=1)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_the_end_of_the_context(llm, options):
    """Prompts of all lengths near the context, and texts that go on to its end."""
    room = 1 if "penalty_alpha" not in options else 0  # contrastive search tries the last token too
    for left in (0, 1, 2, 5):
        prompt = llm.tokenize("and " * 500)[: llm.context - left]
        text = llm.generate(prompt, max_tokens=-1, ignore_eos=True, seed=1, **options)
        assert (len(text.tokens), text.finish_reason) == (left + room, "length")
    text = llm.generate(PROMPT, max_tokens=None, ignore_eos=True, seed=1, **options)
    assert len(text.tokens) == llm.context - len(llm.tokenize(PROMPT)) + room


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize("most", [0, 1, 2])
def test_short_texts_for_asyncio(llm, options, most):
    """The last token is told of, also where it is the first."""
    expected = llm.generate(PROMPT, max_tokens=most, seed=1, **options)

    async def often():
        for _ in range(60):
            text = await asyncio.wait_for(llm.agenerate(PROMPT, max_tokens=most, seed=1, **options), 60)
            assert text.tokens == expected.tokens

    asyncio.run(often())


@pytest.mark.parametrize("least", [2**63, 2**64, 10**30])
def test_min_tokens_beyond_all(llm, least):
    text = llm.generate(PROMPT, min_tokens=least, max_tokens=20, seed=1)
    assert len(text.tokens) == 20


@pytest.mark.parametrize("name", ["stream", "ignore_eos", "lookup", "echo", "special"])
@pytest.mark.parametrize("value", [1, 0, "false", "", None, float("nan"), [], np.array([]), np.array([True, False])])
def test_flags(llm, name, value):
    with pytest.raises(OptionError, match=f"^{name} must be True or False"):
        llm.generate(PROMPT, **{name: value})


def test_flags_of_numpy(llm):
    assert len(llm.generate(PROMPT, ignore_eos=np.bool_(True), max_tokens=3, seed=1).tokens) == 3


ODD = [
    ("bad_words", np.array(3)),
    ("bad_words", ["\ud800"]),
    ("stop", np.array(3.5)),
    ("logits_processor", np.array(3)),
    ("logits_processor", ["a" * 5000]),
    ("draft", "a" * 5000),
    ("mirostat_tau", np.array([1, 2])),
    ("sampler_order", np.zeros((2, 2))),
    ("dry_sequence_breakers", ["\ud800"]),
    ("dry_sequence_breakers", ["a" * 101]),
    ("suppress_tokens", np.array([[1, 2], [3, 4]])),
    ("force_words", np.array(3)),
]


@pytest.mark.parametrize(("name", "value"), ODD, ids=[f"{name} {str(value)[:9]!r}" for name, value in ODD])
def test_odd_values(llm, name, value):
    more = {"num_beams": 3} if name == "force_words" else {"dry_multiplier": 1.0}
    with pytest.raises(OptionError, match=name) as refused:
        llm.generate(PROMPT, max_tokens=4, **{name: value}, **more)
    assert len(str(refused.value)) < 250
    assert "\n" not in str(refused.value)
