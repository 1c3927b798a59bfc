"""What generate returns, and its options: Text, n, lists, ends, log probabilities, callables, special tokens."""

import copy
import json
import pickle
import re

import numpy as np
import pytest

import fastllm
from fastllm import NumericError, OptionError
from fastllm.decoding import Sampling
from fastllm.llm import Text
from helpers import vocabularies, writers
from helpers.architectures import random_llm

PROMPT = "the ocean once"
WARM = {"temperature": 1.5, "top_p": 1.0}


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_a_text_is_a_str_with_facts(llm):
    text = llm.generate(PROMPT, max_tokens=12, seed=3, **WARM)
    generation = llm.start(PROMPT, Sampling(**WARM), max_tokens=12, seed=3)
    assert isinstance(text, str)
    assert text.tokens == list(generation)
    assert llm.detokenize([*llm.tokenize(PROMPT), *text.tokens]) == PROMPT + text
    assert (text.finish_reason, text.seed) == (generation.finish_reason, 3)
    assert text.prompt_tokens == len(llm.tokenize(PROMPT))
    assert (text.logprobs, text.prompt_logprobs, text.proposed_tokens, text.accepted_tokens) == (None, None, 0, 0)
    assert text.prompt_seconds > 0
    assert text.decode_seconds > 0
    longer = llm.generate([*llm.tokenize(PROMPT), *text.tokens, 7], max_tokens=1)
    assert longer.cached_tokens > 0
    assert type(text.upper()) is type(text + "") is type(text[:3]) is str


def test_a_text_copies_and_pickles_like_a_str(llm):
    text = llm.generate(PROMPT, max_tokens=5, seed=1, logprobs=2, echo=True)
    copies = [pickle.loads(pickle.dumps(text, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in [*copies, copy.copy(text), copy.deepcopy(text)]:
        assert (type(other), str(other), vars(other)) == (Text, str(text), vars(text))
    assert {text: 1}[str(text)] == 1
    assert json.loads(json.dumps([text])) == [str(text)]


def test_a_seed_that_was_drawn_gives_the_text_again(llm):
    text = llm.generate(PROMPT, max_tokens=20, **WARM)
    assert 0 <= text.seed < 1 << 64
    assert llm.generate(PROMPT, max_tokens=20, seed=text.seed, **WARM) == text


# ---- several texts ---------------------------------------------------------------------------------------------------


def test_n_texts_of_each_prompt(llm):
    options = {"max_tokens": 15, **WARM}
    prompts = [PROMPT, "a", [1, 5, 9]]
    texts = llm.generate(prompts, n=3, seed=[10, 20, 30], **options)
    assert [text.seed for text in texts] == [10, 11, 12, 20, 21, 22, 30, 31, 32]
    assert texts == [llm.generate(prompts[i // 3], seed=text.seed, **options) for i, text in enumerate(texts)]
    assert llm.generate(PROMPT, n=3, seed=10, **options) == texts[:3]
    assert llm.generate_batch(prompts, n=3, seed=[10, 20, 30], **options) == texts
    last = (1 << 64) - 1
    assert [text.seed for text in llm.generate(PROMPT, n=2, seed=last, max_tokens=1)] == [last, 0]
    first, second = llm.generate(PROMPT, n=2, max_tokens=1)
    assert second.seed == (first.seed + 1) % (1 << 64)


def test_several_texts_are_what_each_is_alone(llm):
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 300, n).tolist() for n in rng.integers(1, 140, 20)]
    options = {"max_tokens": 20, "seed": 7, "repetition_penalty": 1.3, "stop": ["e", 9], **WARM}
    assert llm.generate(prompts, **options) == [llm.generate(prompt, **options) for prompt in prompts]
    together = llm.generate(prompts, lookup=True, **options)
    assert together == [llm.generate(prompt, **options) for prompt in prompts]


def test_one_that_fails_leaves_the_others(llm):
    """The error has the texts of the other prompts, whatever failed."""
    prompts = [PROMPT, [1, 250], "a", [1, 251]]
    fine = [llm.generate(prompt, max_tokens=4, seed=2) for prompt in prompts]

    def process(ids, logits):
        if ids[1] in (250, 251):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        llm.generate(prompts, max_tokens=4, seed=2, logits_processor=process)
    assert error.value.texts == [fine[0], None, fine[2], None]
    with pytest.raises(KeyError, match="mine"):
        llm.generate(prompts[1], logits_processor=process)

    def forbid(ids, logits):
        logits[:] = np.nan if ids[1] == 250 else logits

    with pytest.raises(NumericError, match=r"prompt 1 \(and 1 more\): ") as error:
        llm.generate_batch(prompts, max_tokens=4, seed=2, n=2, logits_processor=forbid)
    assert error.value.text == 2
    assert [error.value.texts[i] for i in (0, 2, 3, 4, 6)] == [fine[0], None, None, fine[2], fine[3]]


def test_generate_batch_takes_lists(llm):
    for wrong in ("the", [5, 6], np.array([5, 6]), np.array([[5, 6]])):
        with pytest.raises(OptionError, match="generate_batch takes a list of prompts"):
            llm.generate_batch(wrong)
    with pytest.raises(OptionError, match="stream=True writes one text"):
        llm.generate_batch(["the"], stream=True)
    for call in (llm.generate, llm.generate_batch):
        with pytest.raises(TypeError, match="temprature"):
            call(["the"], temprature=1)


def test_without_a_tokenizer():
    llm = random_llm("qwen", "f32")
    ids = llm.generate([1, 2], max_tokens=9, seed=3)
    assert list(llm.start([1, 2], Sampling(), max_tokens=9, seed=3)) == ids
    assert list(llm.generate([1, 2], max_tokens=9, seed=3, stream=True)) == ids
    assert llm.generate([[1, 2]], n=2, max_tokens=9, seed=3)[0] == ids
    assert llm.generate([1, 2], max_tokens=9, seed=3, stop=[ids[4]]) == ids[: ids.index(ids[4])]
    for options in ({"stop": "a"}, {"stop": [re.compile("a")]}):
        with pytest.raises(fastllm.TokenizerError):
            llm.generate([1, 2], **options)


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_kinds_of_stops(llm):
    options = {"max_tokens": 40, "seed": 5, **WARM}
    whole = llm.generate(PROMPT, **options)
    for stop in (None, (), []):
        assert llm.generate(PROMPT, stop=stop, **options) == whole
    letter = whole[10]
    at = whole.index(letter)
    for stop in (letter, [letter], re.compile(re.escape(letter)), ["never \u2603", re.compile(re.escape(letter))]):
        text = llm.generate(PROMPT, stop=stop, **options)
        assert (text, text.finish_reason) == (whole[:at], "stop")
    token = whole.tokens[12]
    text = llm.generate(PROMPT, stop=np.int64(token), **options)
    assert (text.tokens, text.finish_reason) == (whole.tokens[: whole.tokens.index(token)], "stop")
    text = llm.generate(PROMPT, stop=lambda so_far: len(so_far) >= 9, **options)
    assert text.finish_reason == "stop"
    assert len(text) >= 9 > len(llm.detokenize(text.tokens[:-1]))
    assert whole.startswith(text)


def test_a_stop_that_raises_fails_its_text(llm):
    def broken(so_far):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        llm.generate(PROMPT, stop=broken, max_tokens=5, seed=1)
    stream = llm.generate(PROMPT, stop=broken, max_tokens=5, seed=1, stream=True)  # some seeds end it at once
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(stream)
    assert (list(stream), stream.finish_reason) == ([], "error")


def test_a_model_s_own_ends(llm):
    """Biases make the end, BOS in llama2.c's files, the likeliest token: it comes at once unless it is kept away."""
    options = {"temperature": 0, "logit_bias": {1: 1e4}, "max_tokens": 9}
    assert llm.generate(PROMPT, **options).finish_reason == "stop"
    ignoring = llm.generate(PROMPT, ignore_eos=True, **options)
    assert (ignoring.tokens, ignoring.finish_reason) == ([1] * 9, "length")
    assert llm.generate(PROMPT, ignore_eos=True, stop=1, **options).tokens == []
    for least in (0, 1, 4):
        text = llm.generate(PROMPT, min_tokens=least, stop=[1, 70], **options)
        assert (len(text.tokens), text.finish_reason) == (least, "stop")
        assert not {1, 70} & set(text.tokens)
    assert len(llm.generate(PROMPT, min_tokens=20, **options).tokens) == 9


@pytest.mark.parametrize("most", [None, -1, np.int64(-1), 1000])
def test_to_the_end_of_the_context(llm, most):
    text = llm.generate([1] * 150, max_tokens=most, ignore_eos=True)
    assert (len(text.tokens), text.finish_reason) == (llm.context - 150 + 1, "length")


def test_defaults_of_the_model(llm):
    """Options that are None take the model's defaults."""
    expected = llm.generate(PROMPT, seed=4, max_tokens=20, temperature=0.3, top_k=5)
    llm.defaults = Sampling(temperature=0.3, top_k=5)
    assert llm.generate(PROMPT, seed=4, max_tokens=20, temperature=None, top_p=None) == expected
    assert llm.generate(PROMPT, seed=4, max_tokens=20, temperature=5, top_k=0) != expected


# ---- log probabilities and callables ---------------------------------------------------------------------------------


def test_logprobs_of_tokens_and_prompt(llm):
    """Of the raw logits, whatever options change what is drawn."""
    text = llm.generate(PROMPT, max_tokens=8, seed=2, logprobs=3, echo=True, logit_bias={70: 5.0}, **WARM)
    ids = llm.tokenize(PROMPT)
    rows = log_softmax(llm.logits([*ids, *text.tokens]))
    assert [one.token for one in text.logprobs] == text.tokens
    assert text.prompt_logprobs[0] is None
    assert [one.token for one in text.prompt_logprobs[1:]] == ids[1:]
    for row, one in zip(rows[:-1], [*text.prompt_logprobs[1:], *text.logprobs], strict=True):
        assert one.logprob == pytest.approx(row[one.token], abs=1e-5)
        assert [token for token, _ in one.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(-np.sort(-row)[:3], abs=1e-5)
    plain = llm.generate(PROMPT, max_tokens=8, seed=2, logprobs=0, logit_bias={70: 5.0}, **WARM)
    assert plain == text == llm.generate(PROMPT, max_tokens=8, seed=2, logit_bias={70: 5.0}, **WARM)
    assert [(one.logprob, one.top) for one in plain.logprobs] == [(one.logprob, ()) for one in text.logprobs]
    assert plain.prompt_logprobs is None
    scored = llm.generate(PROMPT, max_tokens=0, logprobs=0, echo=True)
    assert [one and one.logprob for one in scored.prompt_logprobs] == [
        one and one.logprob for one in text.prompt_logprobs
    ]


def test_logits_processors(llm):
    """Callables see the ids so far and the raw logits; what they change or return is what is drawn from."""
    seen = []

    def look(ids, logits):
        seen.append((list(ids), logits.copy()))

    def shift(ids, logits):
        return np.roll(logits, 1)

    greedy = llm.generate(PROMPT, max_tokens=6, temperature=0)
    assert llm.generate(PROMPT, max_tokens=6, temperature=0, logits_processor=look) == greedy
    ids = llm.tokenize(PROMPT)
    assert [some for some, _ in seen] == [[*ids, *greedy.tokens[:i]] for i in range(6)]
    assert all((logits == llm.logits(some)[-1]).all() for some, logits in seen)
    shifted = llm.generate(PROMPT, max_tokens=4, temperature=0, logits_processor=[look, shift])
    for i, token in enumerate(shifted.tokens):
        assert token == (llm.logits([*ids, *shifted.tokens[:i]])[-1].argmax() + 1) % 300

    def only(ids, logits):
        logits[np.arange(300) != 70 + len(ids) % 2] = -np.inf

    text = llm.generate(PROMPT, max_tokens=5, seed=1, logits_processor=only)
    assert text.tokens == [70 + (len(ids) + i) % 2 for i in range(5)]


# ---- special tokens: fill in the middle ------------------------------------------------------------------------------

FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"]


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """A model whose tokenizer has the special tokens of Qwen2.5-Coder."""
    tokenizer = vocabularies.byte_level(vocabularies.gpt2_split())
    tokenizer.add_special_tokens(FIM)
    cfg = writers.config(40, 57, 4, 2, tokenizer.get_vocab_size(), max_seq=160)
    folder = writers.write_folder(tmp_path_factory.mktemp("coder") / "model", cfg, writers.random_weights(cfg))
    tokenizer.save(str(folder / "tokenizer.json"))
    return fastllm.load(folder, threads=1), tokenizer


def test_fill_in_the_middle(coder):
    llm, library = coder
    prompt = "<|fim_prefix|>def f(x):\n    return <|fim_suffix|>\n\nprint(f(3))<|fim_middle|>"
    options = {"max_tokens": 12, "seed": 1}
    ids = library.encode(prompt).ids
    assert [token for token in FIM[:3] if library.token_to_id(token) in ids] == FIM[:3]
    text = llm.generate(prompt, special=True, **options)
    assert text == llm.generate(ids, **options)
    assert text.prompt_tokens == len(ids)
    assert not set(map(library.token_to_id, FIM)) & set(llm.tokenize(prompt))
    assert llm.generate(prompt, **options) == llm.generate(llm.tokenize(prompt), **options)
    assert llm.generate([prompt], special=True, **options) == [text]


def test_bos_is_not_doubled(tmp_path):
    """A prompt with special tokens may begin with BOS itself, as chat templates write it."""
    cfg = writers.config(40, 57, 4, 2, 900, max_seq=160)
    folder = writers.write_folder(tmp_path / "model", cfg, writers.random_weights(cfg))
    library = vocabularies.llama_json(folder)
    llm = fastllm.load(folder, threads=1)
    once = library.encode("<s>the ocean", add_special_tokens=False).ids
    assert once.count(1) == 1
    options = {"max_tokens": 5, "seed": 1}
    assert llm.generate("<s>the ocean", special=True, **options) == llm.generate(once, **options)
    assert llm.generate("<s>the ocean", special=True, **options).prompt_tokens == len(once)
    assert llm.generate("the <s>ocean", special=True, **options).prompt_tokens == len(
        library.encode("the <s>ocean").ids
    )
