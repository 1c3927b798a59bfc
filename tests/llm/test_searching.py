"""Options of contrastive search, DoLa and guidance: what generate, chat and agenerate make of them, and bad input."""

import asyncio

import numpy as np
import pytest

import fastllm
from fastllm import OptionError
from fastllm.decoding.search import SearchOptions
from helpers.architectures import random_llm

PROMPT = "the ocean once"
CONTRASTIVE = {"penalty_alpha": 0.6, "top_k": 4}
OPTIONS = [
    CONTRASTIVE,
    {"dola_layers": "low", "temperature": 0.8},
    {"dola_layers": np.array([0, 1])},
    {"guidance_scale": 1.5},
    {"guidance_scale": 2, "negative_prompt": "once"},
]

BAD = [
    ({"penalty_alpha": 0.6}, "penalty_alpha needs top_k"),
    ({"penalty_alpha": 0.6, "top_k": 1}, "top_k between 2 and 1,000, not 1"),
    ({"penalty_alpha": 0.6, "top_k": 0}, "top_k between 2 and 1,000, not 0"),
    ({"penalty_alpha": 0.6, "top_k": 1001}, "top_k between 2 and 1,000, not 1001"),
    ({**CONTRASTIVE, "temperature": 1}, "penalty_alpha goes with temperature 0 only, not 1"),
    ({**CONTRASTIVE, "penalty_alpha": 1.1}, "penalty_alpha must be a number between 0 and 1, not 1.1"),
    ({**CONTRASTIVE, "penalty_alpha": -0.1}, "penalty_alpha must be a number between 0 and 1"),
    ({**CONTRASTIVE, "penalty_alpha": float("nan")}, "penalty_alpha must be a number between 0 and 1, not nan"),
    ({**CONTRASTIVE, "penalty_alpha": "0.6"}, "penalty_alpha must be a number between 0 and 1, not '0.6'"),
    ({**CONTRASTIVE, "penalty_alpha": True}, "penalty_alpha must be a number between 0 and 1, not True"),
    ({"dola_layers": "middle"}, 'dola_layers must be "low", "high" or a list of layers, not \'middle\''),
    ({"dola_layers": 1}, 'dola_layers must be "low", "high" or a list of layers, not 1'),
    ({"dola_layers": {0: 1}}, 'dola_layers must be "low", "high" or a list of layers'),
    ({"dola_layers": []}, "dola_layers is an empty list"),
    ({"dola_layers": [0, 1.0]}, "dola_layers has 1.0, which is no layer"),
    ({"dola_layers": [-1]}, "dola_layers has -1, which is no layer"),
    ({"dola_layers": [True]}, "dola_layers has True, which is no layer"),
    ({"dola_layers": [0, 2]}, "dola_layers has layer 2: it takes those before the last, 0 to 1"),
    ({"dola_layers": [1 << 70]}, "which is no layer"),
    ({"guidance_scale": float("inf")}, "guidance_scale must be a number"),
    ({"guidance_scale": "2"}, "guidance_scale must be a number"),
    ({"negative_prompt": "the"}, "negative_prompt needs guidance_scale"),
    ({"dola_layers": "low", "negative_prompt": "the"}, "negative_prompt needs guidance_scale"),
    ({"guidance_scale": 2, "negative_prompt": []}, "negative_prompt is empty"),
    ({"guidance_scale": 2, "negative_prompt": 7}, "negative_prompt is neither a text nor token ids: 7"),
    ({"guidance_scale": 2, "negative_prompt": ["the", "a"]}, "negative_prompt is neither a text nor token ids"),
    ({"guidance_scale": 2, "negative_prompt": [300]}, "negative_prompt has a token that the model has not"),
    ({"guidance_scale": 2, "negative_prompt": [5] * 161}, "negative_prompt has 161 tokens, the context 160"),
    ({"guidance_scale": 2, **CONTRASTIVE}, "penalty_alpha does not go with guidance_scale"),
    ({"guidance_scale": 2, "dola_layers": "low"}, "dola_layers does not go with guidance_scale"),
    ({**CONTRASTIVE, "lookup": True}, "lookup does not go with penalty_alpha"),
    ({"guidance_scale": 2, "lookup": True}, "lookup does not go with guidance_scale"),
    ({"dola_layers": "low", "num_beams": 3}, "num_beams does not go with dola_layers"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_options(llm, options, said):
    with pytest.raises(fastllm.FastLLMError) as caught:
        llm.generate(PROMPT, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(fastllm.FastLLMError) as again:  # before anything runs, and of several prompts too
        llm.generate([PROMPT, PROMPT], stream=False, n=2, **options)
    assert said in str(again.value)
    assert not llm._scheduler._steps.places.waiting


def test_a_draft_does_not_go_with_a_search(llm):
    with pytest.raises(OptionError, match="draft does not go with guidance_scale"):
        llm.generate(PROMPT, guidance_scale=2, draft=llm)


def test_an_encoder_has_no_searches():
    encoder = random_llm("amplify", "f32")
    for options in (CONTRASTIVE, {"dola_layers": [0]}, {"guidance_scale": 2, "negative_prompt": [5]}):
        with pytest.raises(OptionError, match="is an encoder"):
            encoder.generate([5, 6], **options)


@pytest.mark.parametrize("off", [{"guidance_scale": 1}, {"penalty_alpha": 0}, {"dola_layers": None}])
def test_off(llm, off):
    """So they are where they change nothing, and then go with everything."""
    assert llm.generate(PROMPT, seed=1, lookup=True, **off) == llm.generate(PROMPT, seed=1)
    assert SearchOptions(**off).name is None


@pytest.mark.parametrize("options", OPTIONS)
def test_ways_to_write(llm, options):
    """Whole, in pieces, many at once, and for asyncio: the same texts."""
    prompts = [PROMPT, "the", [1, 5, 9]]
    texts = [llm.generate(p, max_tokens=30, seed=3, **options) for p in prompts]
    assert llm.generate(prompts, max_tokens=30, seed=3, **options) == texts
    assert "".join(llm.generate(PROMPT, max_tokens=30, seed=3, stream=True, **options)) == texts[0]
    several = llm.generate(PROMPT, max_tokens=30, seed=3, n=3, **options)
    assert several[0] == texts[0]
    assert (len(set(several)) == 1) == (options is CONTRASTIVE)
    assert asyncio.run(llm.agenerate(prompts, max_tokens=30, seed=3, **options)) == texts
    stop = texts[0][5:8]
    assert llm.generate(PROMPT, max_tokens=30, seed=3, stop=stop, **options) == texts[0][: texts[0].index(stop)]


def test_contrastive_search_is_greedy(llm):
    texts = {llm.generate(PROMPT, max_tokens=30, seed=seed, **CONTRASTIVE) for seed in range(3)}
    assert texts == {llm.generate(PROMPT, max_tokens=30, temperature=0, **CONTRASTIVE)}


def test_a_negative_prompt_is_read_as_a_prompt_is(llm):
    ids = llm.tokenize("once")
    options = {"guidance_scale": 2, "max_tokens": 30, "seed": 1}
    assert llm.generate(PROMPT, negative_prompt="once", **options) == llm.generate(
        PROMPT, negative_prompt=np.array(ids), **options
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_grammars(llm, options):
    """A search follows a grammar, and ends where it is complete."""
    pytest.importorskip("llguidance")
    choices = ["the ocean", "once the ocean", "a"]
    texts = [llm.generate(PROMPT, choice=choices, max_tokens=40, seed=seed, **options) for seed in range(3)]
    assert all(text in choices and text.finish_reason == "stop" for text in texts)
    found = llm.generate(PROMPT, regex="[aeiou]{12}", max_tokens=40, seed=1, **options)
    assert (len(found), found.strip("aeiou")) == (12, "")
