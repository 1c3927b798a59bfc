"""Options of fastllm run: each gives what LLM.generate gives with the option of that name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import cli
from fastllm.cli.lines import unescaped
from helpers.commands import TINY, one_sentence
from helpers.data import BUILT_IN

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> fastllm.LLM:
    return fastllm.load(BUILT_IN)


def run(*words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    assert cli.main(["run", str(BUILT_IN), PROMPT, *words]) == code
    found = capsys.readouterr()
    return found.out, found.err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["-t", "0"], {"temperature": 0.0}),
        (["-p", "0.5"], {"top_p": 0.5}),
        (["--top-k", "3"], {"top_k": 3}),
        (["--top-k", "-1"], {"top_k": -1}),
        (["--min-p", "0.2"], {"min_p": 0.2}),
        (["--typical-p", "0.4"], {"typical_p": 0.4}),
        (["--repetition-penalty", "1.5"], {"repetition_penalty": 1.5}),
        (["--presence-penalty", "-2"], {"presence_penalty": -2.0}),
        (["--frequency-penalty", "1.5"], {"frequency_penalty": 1.5}),
        (["--max-tokens", "3"], {"max_tokens": 3}),
        (["--max-tokens", "-1"], {"max_tokens": -1}),
        (["--ignore-eos", "--max-tokens", "300"], {"ignore_eos": True, "max_tokens": 300}),
        (["--min-tokens", "250"], {"min_tokens": 250}),
        (["--stop", ".", "--stop", "\\n"], {"stop": [".", "\n"]}),
        (["--logit-bias", "5=-inf", "--logit-bias", " a=-100"], {"logit_bias": {5: float("-inf"), " a": -100.0}}),
        (["--lookup"], {"lookup": True}),
        (["--penalty-alpha", "0.6", "--top-k", "4"], {"penalty_alpha": 0.6, "top_k": 4}),
        (["--dola-layers", "high"], {"dola_layers": "high"}),
        (["--dola-layers", "0,2"], {"dola_layers": [0, 2]}),
        (["--guidance-scale", "1.5"], {"guidance_scale": 1.5}),
        (
            ["--guidance-scale", "2", "--negative-prompt", "A dog\\n"],
            {"guidance_scale": 2, "negative_prompt": "A dog\n"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_those_of_generate(
    words: list[str], options: dict[str, Any], llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    if bias := options.get("logit_bias"):
        (a,) = [i for i in range(llm.config.vocab_size) if llm.tokenizer.stream().pieces[i] == b" a"]
        options = {"logit_bias": {a if token == " a" else token: number for token, number in bias.items()}}
    text = llm.generate(PROMPT, seed=7, **options)
    about = json.loads(run(*words, "-s", "7", "--json", capsys=capsys)[0])
    assert about["tokens"] == text.tokens
    assert about["text"] == text
    assert about["finish_reason"] == text.finish_reason
    assert run(*words, "-s", "7", capsys=capsys)[0] == f"{PROMPT}{text}\n"


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            "--no-repeat-ngram-size 3 --bad-word dog --bad-word cat",
            {"no_repeat_ngram_size": 3, "bad_words": ["dog", "cat"]},
        ),
        ("--sequence-bias he=-5 --sequence-bias a=b=2", {"sequence_bias": {"he": -5, "a=b": 2}}),
        (
            "--dry-multiplier 0.8 --dry-base 1.5 --dry-penalty-last-n 50 --dry-sequence-breaker \\n",
            {"dry_multiplier": 0.8, "dry_base": 1.5, "dry_penalty_last_n": 50, "dry_sequence_breakers": ["\n"]},
        ),
        ("--suppress-tokens 5,7 --begin-suppress-tokens 9", {"suppress_tokens": [5, 7], "begin_suppress_tokens": [9]}),
        ("--forced-eos-token-id 2 --max-tokens 9", {"forced_eos_token_id": 2, "max_tokens": 9}),
        ("--exponential-decay-length-penalty 5,1.5", {"exponential_decay_length_penalty": (5, 1.5)}),
        ("--sampler-order top_k,temperature --top-k 9", {"sampler_order": ["top_k", "temperature"], "top_k": 9}),
        ("--watermark 77", {"watermark": {"hashing_key": 77}}),
        ("--mirostat-tau 4 --mirostat-eta 0.2", {"mirostat_tau": 4, "mirostat_eta": 0.2}),
        ("--xtc-probability 0.5 --dynatemp-range 0.3", {"xtc_probability": 0.5, "dynatemp_range": 0.3}),
        ("--top-h 0.5 --eta-cutoff 0.01 --penalty-window 9", {"top_h": 0.5, "eta_cutoff": 0.01, "penalty_window": 9}),
    ],
)
def test_steering(words: str, options: dict[str, Any], llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option is generate's."""
    text = llm.generate(PROMPT, **{"seed": 7, "max_tokens": 20} | options)
    about = json.loads(run("--max-tokens", "20", *words.split(" "), "-s", "7", "--json", capsys=capsys)[0])
    assert about["tokens"] == text.tokens


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("--suppress-tokens x", "--suppress-tokens takes token ids, such as 5,7, not 'x'"),
        ("--exponential-decay-length-penalty 5", "--exponential-decay-length-penalty must be a start and a factor"),
        ("--sequence-bias dog", "--sequence-bias takes TEXT=X"),
        ("--sampler-order heat", "--sampler-order has 'heat': it takes temperature, "),
        ("--mirostat-tau 4 --top-k 5", "--mirostat-tau takes the place of top_k: leave that out, or 0"),
        ("--watermark 0.5", "--watermark takes a whole number, not '0.5'"),
        ("--dola-layers 1,x", "--dola-layers takes low, high or layers, such as 0,2,4, not '1,x'"),
        ("--dola-layers 0,99", "--dola-layers has layer 99: it takes those before the last"),
        ("--penalty-alpha 0.6", "--penalty-alpha needs top_k"),
        ("--penalty-alpha 0.6 --top-k 4 -t 1", "--penalty-alpha goes with temperature 0 only"),
        ("--negative-prompt dog", "--negative-prompt needs guidance_scale"),
        ("--no-repeat-ngram-size -1", "--no-repeat-ngram-size must be a whole number from 0"),
    ],
)
def test_steering_that_is_none(words: str, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(*words.split(" "), capsys=capsys, code=2)
    assert out == ""
    assert cause in one_sentence(err)


def test_a_long_prompt_is_whole_and_256_tokens_follow(llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Without -n the prompt's length counts for nothing; with it, it is cut, and that is said."""
    prompt = "Once upon a time there was a dog. " * 12
    count = len(llm.tokenize(prompt))
    assert 101 < count < llm.context - 256
    words = ["run", str(BUILT_IN), prompt, "-s", "1", "--json", "--ignore-eos"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    about = json.loads(out)
    assert err == ""
    assert about["prompt_tokens"] == count
    assert about["generated_tokens"] == 256
    assert cli.main([*words, "-n", "100"]) == 0
    out, err = capsys.readouterr()
    about = json.loads(out)
    assert about["prompt"] == llm.detokenize(llm.tokenize(prompt)[:101])
    assert about["generated_tokens"] == 0
    assert f"-n 100 counts the prompt too, and cuts its {count} tokens to 101" in one_sentence(err)


def test_a_prompt_that_does_not_fit_tells_both_numbers(llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(llm.tokenize(PROMPT))
    out, err = run("--context", str(count - 1), capsys=capsys, code=2)
    assert out == ""
    assert re.findall(r"\d+", one_sentence(err)) == [str(count), str(count - 1)]


def test_several_texts(llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Text i has the seed + i, and is what that seed gives alone."""
    words = ("-s", "5", "--max-tokens", "10")
    texts = llm.generate(PROMPT, n=3, seed=5, max_tokens=10)
    assert [text.seed for text in texts] == [5, 6, 7]
    out, err = run("--n", "3", *words, capsys=capsys)
    assert out == "".join(f"--- {i + 1} of 3, seed {5 + i} ---\n{PROMPT}{text}\n" for i, text in enumerate(texts))
    assert "generated 30 tokens" in one_line(err)
    lines = [json.loads(line) for line in run("--n", "3", *words, "--json", capsys=capsys)[0].splitlines()]
    assert [line["text"] for line in lines] == texts
    assert [line["seed"] for line in lines] == [5, 6, 7]
    alone = json.loads(run("-s", "6", "--max-tokens", "10", "--json", capsys=capsys)[0])
    assert alone["tokens"] == lines[1]["tokens"]


def one_line(err: str) -> str:
    assert len(err.splitlines()) == 1
    return err


def test_logprobs(llm: fastllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    text = llm.generate(PROMPT, seed=5, max_tokens=4, logprobs=2)
    words = ("-s", "5", "--max-tokens", "4", "--logprobs", "2")
    about = json.loads(run(*words, "--json", capsys=capsys)[0])
    assert len(about["logprobs"]) == len(text.tokens) == 4
    for found, expected in zip(about["logprobs"], text.logprobs or (), strict=True):
        assert (found["id"], found["logprob"]) == expected[:2]
        assert [(top["id"], top["logprob"]) for top in found["top"]] == list(expected.top)
    assert "".join(found["token"] for found in about["logprobs"]) == text
    out, err = run(*words, capsys=capsys)
    assert out == f"{PROMPT}{text}\n"
    rows = err.splitlines()[:-1]
    for row, expected in zip(rows, text.logprobs or (), strict=True):
        numbers = [expected.logprob, *(logprob for _, logprob in expected.top)]
        assert re.findall(r"-?\d+\.\d{4}(?= ')", row) == [f"{number:.4f}" for number in numbers]
    _, err = run("--n", "2", *words, capsys=capsys)
    assert len(err.splitlines()) == 2 * 4 + 1


def test_special_tokens_in_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    """With --special they are the tokens that they name, else text; the prompt is shown as it was written."""
    llm = fastllm.load(TINY)
    special = llm.tokenizer.special
    assert special
    prompt = f"a{special[-1]}b"
    for words, count in ((["--special"], len(llm.tokenize(prompt, special=True))), ([], len(llm.tokenize(prompt)))):
        assert cli.main(["run", str(TINY), prompt, "--max-tokens", "0", "--json", *words]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["prompt_tokens"] == count
        assert not words or about["prompt"] == prompt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\n", "\n"),
        ("a\\tb\\r", "a\tb\r"),
        ("\\\\n", "\\n"),
        ("\\x41\\u00e9", "A\u00e9"),
        ("\\q\\x4", "\\q\\x4"),
        ("C:\\dir", "C:\\dir"),
        ("\u00e9\\n", "\u00e9\n"),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    assert unescaped(text) == expected


@given(st.text())
def test_what_is_escaped_comes_back(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    assert unescaped(escaped) == text
