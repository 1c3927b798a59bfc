"""LLM.generate: prompts, stops, seeds, limits, and options that are refused."""

import numpy as np
import pytest

import fastllm
from fastllm import ContextError, OptionError
from fastllm.decoding import Sampling
from helpers import writers

PROMPT = "the ocean once"

# ---- generate --------------------------------------------------------------------------------------------------------


def test_text_and_ids_are_the_same_prompt(llm):
    ids = llm.tokenize(PROMPT)
    assert ids[0] == llm.bos == 1
    assert llm.tokenize(PROMPT, bos=False) == ids[1:]
    assert llm.detokenize(ids) == PROMPT
    texts = {llm.generate(p, max_tokens=30, seed=1) for p in (PROMPT, ids, tuple(ids), np.array(ids))}
    assert len(texts) == 1
    assert texts.pop()


def test_run_c_s_texts_end_at_bos(llm):
    """run.c's texts end at BOS. Turns of a chat also end at EOS, which the tokenizer lists as an end."""
    assert llm.stop == (1,)
    assert set(llm.chat_stop) == {1, 2} > set(llm.tokenizer.ends) == {2}


@pytest.mark.parametrize("seed", range(5))
def test_stream_is_the_whole(llm, seed):
    options = {"max_tokens": 60, "temperature": 1.5, "top_p": 1, "seed": seed}
    whole = llm.generate(PROMPT, **options)
    stream = llm.generate(PROMPT, stream=True, **options)
    pieces = list(stream)
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    assert all(pieces)
    assert stream.finish_reason == stream.generation.finish_reason
    assert llm.detokenize([*llm.tokenize(PROMPT), *stream.generation.tokens]) == PROMPT + whole


def test_the_text_of_greedy_tokens_is_the_argmax_of_logits(llm):
    """Greedy tokens are the largest logits, which logits() computes by another way."""
    ids = llm.tokenize(PROMPT)
    for _ in range(20):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    start = len(llm.tokenize(PROMPT))
    assert list(llm.start(PROMPT, Sampling(temperature=0), max_tokens=20, seed=0, stop=())) == ids[start:]


def test_max_tokens(llm):
    def tokens(count, **options):
        return list(llm.start([1, 5, 9], Sampling(), max_tokens=count, seed=2, stop=(), **options))

    assert tokens(0) == []
    assert tokens(7) == tokens(40)[:7]
    assert llm.generate(PROMPT, max_tokens=0) == ""
    stream = llm.generate(PROMPT, max_tokens=3, stream=True, seed=1)
    assert stream.finish_reason is None
    "".join(stream)
    assert (stream.finish_reason, len(stream.generation.tokens)) == ("length", 3)


def test_stop_tokens(llm):
    """A stop token ends the text and is not part of it."""
    sampling = Sampling(temperature=1.5, top_p=1)
    free = llm.start([1, 5], sampling, max_tokens=50, seed=3, stop=())
    tokens = list(free)
    assert free.finish_reason == "length"
    stop = tokens[20]
    stopped = llm.start([1, 5], sampling, max_tokens=50, seed=3, stop=(stop,))
    assert list(stopped) == tokens[: tokens.index(stop)]
    assert stopped.finish_reason == "stop"
    # The model's own stop token needs no option: llama2.c's is BOS.
    always = llm.generate([1, 5], logit_bias={1: 1e4}, temperature=0, stream=True)
    assert list(always) == []
    assert always.finish_reason == "stop"


# ---- stop strings ----------------------------------------------------------------------------------------------------


def saying(tokens):
    """A logits_processor that makes a model write these tokens after a prompt of one id."""

    def force(ids, logits):
        logits[:] = -np.inf
        logits[tokens[len(ids) - 1]] = 0

    return force


def written(llm, tokens, stop):
    """The pieces of a stream whose model is made to write these tokens."""
    stream = llm.generate([1], max_tokens=len(tokens), stop=stop, stream=True, logits_processor=saying(tokens))
    return stream, list(stream)


def test_stop_strings_end_the_text(llm):
    options = {"max_tokens": 60, "seed": 5, "temperature": 1.2}
    free = llm.generate(PROMPT, stream=True, **options)
    whole = "".join(free)
    for begin, end in ((10, 11), (10, 14), (3, 25), (0, 4)):
        stop = whole[begin:end]
        for stops in (stop, [stop], ["never \u2603 said", stop]):
            stream = llm.generate(PROMPT, stop=stops, stream=True, **options)
            assert "".join(stream) == whole[: whole.index(stop)]
            assert stream.finish_reason == "stop"
    stream = llm.generate(PROMPT, stop="never \u2603 said", stream=True, **options)
    assert "".join(stream) == whole
    assert stream.finish_reason == free.finish_reason


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [
        ("<end>", ["a", "b", "<x", "c"]),  # text that may begin a stop string is held back until it cannot
        ("b<x", ["a"]),
        ("<xc", ["a", "b"]),
        (["zzz", "x"], ["a", "b", "<"]),
        (["c", "b<xcc"], ["a", "b<x"]),  # the shorter one ends the text although the longer one was possible
        ("ab<xc!", ["ab<xc"]),  # the end of the text releases what was held back
    ],
)
def test_stop_strings_across_tokens(llm, stop, pieces):
    stream, found = written(llm, [3 + ord(character) for character in "ab<xc"], stop)
    assert found == pieces
    assert (stream.finish_reason == "stop") == ("".join(pieces) != "ab<xc")


def test_a_stop_string_is_the_first_of_several(llm):
    """If one token completes two stop strings, the text is cut at the one that begins first."""
    words = [text for text, _ in writers.tokenizer_words()]
    _, found = written(llm, [words.index(" a"), words.index(" the")], ["he", "t"])
    assert "".join(found) == "a "


# ---- limits and options ----------------------------------------------------------------------------------------------


def test_the_context_is_the_limit(write_model):
    path = write_model(writers.config(40, 57, 4, 2, 300, max_seq=70))
    llm = fastllm.load(path, threads=1)
    assert llm.context == llm.config.max_seq == 70
    for size in (1, 69, 70):
        generation = llm.start([5] * size, Sampling(), max_tokens=None, seed=1, stop=())
        # The last token is drawn from the last position, and needs no position of its own.
        assert len(list(generation)) == 71 - size
        assert generation.finish_reason == "length"
        assert len(llm.logits([5] * size)) == size
    for call in (lambda: llm.generate([5] * 71), lambda: llm.logits([5] * 71)):
        with pytest.raises(ContextError, match=r"71 .*70"):
            call()
    short = fastllm.load(path, threads=1, context=10)
    assert short.context == 10
    assert len(list(short.start([5] * 4, Sampling(), max_tokens=99, seed=1, stop=()))) == 7
    with pytest.raises(ContextError):
        short.generate([5] * 11)
    # A shorter context changes no logits.
    assert (short.logits([5, 6, 7]) == llm.logits([5, 6, 7])).all()
    for context in (0, -1, 71):
        with pytest.raises(OptionError, match="context must be between 1"):
            fastllm.load(path, context=context)


def test_seeds(llm):
    def text(seed):
        return llm.generate(PROMPT, max_tokens=40, temperature=1.5, seed=seed)

    assert text(11) == text(11)
    assert len({text(seed) for seed in (0, 1, 2, (1 << 64) - 1)}) == 4
    assert len({text(None) for _ in range(3)}) == 3  # without a seed, each text is another


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_k": 1 << 31},
        {"min_p": 2},
        {"typical_p": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": 1e9},
        {"logit_bias": {300: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"the": 1.0}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": {5: float("inf")}},
        {"logit_bias": {5: 1e39}},
        {"logit_bias": {5: "much"}},
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 1.5},
        {"seed": "lucky"},
        {"max_tokens": -2},
        {"max_tokens": 1.5},
        {"max_tokens": "all"},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [300]},
        {"stop": [3.5]},
        {"stop": b"a"},
        {"min_tokens": -1},
        {"min_tokens": None},
        {"logprobs": -1},
        {"logprobs": 301},
        {"logprobs": True},
        {"echo": True},
        {"logits_processor": 3},
        {"logits_processor": [print, 3]},
        {"draft": "small"},
        {"n": 0},
        {"n": 1.0},
        {"n": None},
        {"seed": [1]},
    ],
    ids=str,
)
def test_options_that_are_none(llm, options):
    name = next(iter(options)).replace("_", ".")
    with pytest.raises(OptionError, match=name) as error:
        llm.generate(PROMPT, **options)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_an_empty_text_begins_at_bos(llm):
    assert llm.generate("", max_tokens=9, seed=1) == llm.generate([1], max_tokens=9, seed=1)


@pytest.mark.parametrize(
    "options", [{"dtype": "int3"}, {"dtype": 8}, {"threads": 0}, {"threads": 1.5}, {"threads": "all"}], ids=str
)
def test_load_options_that_are_none(write_model, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        fastllm.load(write_model(), **options)


def test_an_instruction_set_that_is_none(write_model, monkeypatch):
    monkeypatch.setenv("FASTLLM_ISA", "mmx")
    with pytest.raises(OptionError, match=r"'mmx' is no instruction set.*scalar"):
        fastllm.load(write_model())


def test_a_bias_that_overflows_once_divided(llm):
    """A valid bias that overflows once it is divided by the temperature gives its token, or an error."""
    try:
        text = llm.generate([1], logit_bias={70: 3.4e38}, temperature=0.5, top_p=1, max_tokens=3, seed=1)
    except OptionError:
        return
    assert text == "CCC"
