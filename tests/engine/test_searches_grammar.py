"""Searches follow a grammar: their texts are those of a callable that forbids what the grammar does."""

import re

import numpy as np
import pytest

import fastllm
from helpers.data import BUILT_IN

pytest.importorskip("llguidance")

SEARCHES = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 5},
    "dola": {"dola_layers": "high", "temperature": 0},
    "dola, drawn": {"dola_layers": "high", "temperature": 1.3, "seed": 3},
    "guidance": {"guidance_scale": 1.7, "temperature": 0},
    "guidance, drawn": {"guidance_scale": 1.7, "negative_prompt": "A sad dog", "temperature": 1.2, "seed": 4},
    "beams": {"num_beams": 4, "num_return_sequences": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 2},
}
ENDS = r"( [A-Za-z]{2,9}){2,5}\."  # a text that matches it whole can go on no more, and ends
GOES_ON = r"( [A-Za-z]{2,9})+"


def listed(texts):
    return texts if isinstance(texts, list) else [texts]


@pytest.fixture(scope="module")
def llm():
    return fastllm.load(BUILT_IN, threads=1)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("prompt", ["Once upon a time", "Tom had"])
def test_as_with_a_callable(llm, search, prompt):
    # Of beams a text that can go on no more has no token that ends it, which would count in its score.
    pattern = GOES_ON if "num_beams" in search else ENDS
    rules, start = llm.grammar(regex=pattern), len(llm.tokenize(prompt))

    def forbid(ids, logits):
        mask = rules.matcher(llm.stop).masks(ids[start:])[0]
        logits[np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(logits)] == 0] = -np.inf

    found = listed(llm.generate(prompt, regex=pattern, max_tokens=40, **search))
    expected = listed(llm.generate(prompt, logits_processor=forbid, max_tokens=40, **search))
    assert [text.tokens for text in found] == [text.tokens for text in expected]
    for text in found:
        assert re.fullmatch(pattern, text) or text.finish_reason == "length", text


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_the_end(llm, search):
    for text in listed(llm.generate("Tom had", regex=ENDS, max_tokens=60, **search)):
        assert re.fullmatch(ENDS, text)
        assert text.finish_reason == "stop"
