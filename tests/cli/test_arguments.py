"""Words of a command line: options anywhere, values, texts that look like options, and mistakes."""

from __future__ import annotations

import io
import itertools
import re
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastllm import cli
from fastllm.cli.program import _parser
from helpers.commands import TINY, fastllm, one_sentence

MODEL = str(TINY)


def parsed(*words: str) -> dict[str, object]:
    """What a command line means, without running it."""
    found = vars(_parser().parse_args(words))
    return {name: value for name, value in found.items() if name != "command"}


OPTIONS = [["--normalize"], ["--pooling", "cls"], ["--threads=2"], ["--prompt", "-x"]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(6), 6))[::7])
def test_options_may_stand_anywhere(order: tuple[int, ...]) -> None:
    """Options before, between and after a model and a text mean the same."""
    words: list[list[str]] = [*OPTIONS, ["MODEL"], ["a text"]]
    texts = [words[i] for i in order if i >= 4]
    found = parsed("embed", *itertools.chain(*(words[i] for i in order)))
    assert [found["model"], *found["texts"]] == [word for (word,) in texts]
    assert found | {"model": 0, "texts": 0} == parsed("embed", "m", *itertools.chain(*OPTIONS)) | {
        "model": 0,
        "texts": 0,
    }


def test_options_may_stand_anywhere_in_a_process() -> None:
    """The same vectors come from every order; a mistake is found in every order."""
    first, _ = fastllm("embed", MODEL, "hello", "--normalize", "--pooling", "last")
    assert first != fastllm("embed", MODEL, "hello")[0]
    for words in (
        ("--normalize", MODEL, "--pooling=last", "hello"),
        (MODEL, "--pooling", "last", "hello", "--normalize"),
    ):
        assert fastllm("embed", *words)[0] == first
    for words in (("--pooling", "nonsense", MODEL, "hello"), (MODEL, "--pooling", "nonsense", "hello")):
        assert one_sentence(fastllm("embed", *words, code=2)[1]).startswith("fastllm: --pooling must be ")
    run = fastllm("run", MODEL, "a", "--max-tokens", "5", "-s", "1")[0]
    assert fastllm("run", "-s", "1", MODEL, "--max-tokens", "5", "a")[0] == run


@given(st.lists(st.just("--") | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_all_after_two_dashes_is_text(texts: list[str]) -> None:
    assert parsed("embed", "m", "--json", "--", *texts)["texts"] == texts


@given(st.just("--") | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.booleans())
def test_any_text_is_a_value(text: str, joined: bool) -> None:
    """A value may begin with a dash; a joined one may even be an option's name."""
    assume(joined or not re.fullmatch("--?[a-z][a-z-]*", text))
    words = [f"--prompt={text}"] if joined else ["--prompt", text]
    assert parsed("run", *words)["prompt"] == text
    if text:
        assert parsed("run", "-i" + text)["prompt"] == text.removeprefix("=")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-5", "-.5", "- a list", "-", "a=b"], ["-5", "-.5", "- a list", "-", "a=b"]),
        (["a", "--", "-b", "--json"], ["a", "-b", "--json"]),
        (["--", "--=5", "--v"], ["--=5", "--v"]),
        (["--json", "a"], ["a"]),
        (["--thr", "2", "a"], ["a"]),  # a beginning that is one option's alone
        ([], []),
    ],
)
def test_texts(words: list[str], expected: list[str]) -> None:
    assert parsed("embed", "m", *words)["texts"] == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed", "m", "--normalise", "a"], "fastllm embed: unknown option --normalise (see"),
        (["embed", "--x=3", "m"], "unknown option --x=3 "),
        (["embed", "m", "-q"], "unknown option -q "),
        (["embed", "--nothing", "m"], "unknown option --nothing "),
        (["run", "m", "--t", "1"], "--t may mean --temperature or --top-p or "),
        (["run", "m", "-t"], "fastllm run: -t needs a value"),
        (["run", "m", "-t", "--json"], "-t needs a value"),
        (["run", "m", "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["run", "m", "-t", "warm"], "argument -t/--temperature: invalid float value: 'warm'"),
        (["run", "m", "--json=1"], "argument --json: ignored explicit argument '1'"),
        (["run", "m", "--kv-bytes", "much"], "argument --kv-bytes: must be a number of bytes, such as 512M"),
        (["convert", "m", "out", "more"], "fastllm convert: 'more' is one argument too many"),
        (["info", "more"], "'more' is one argument too many"),
        (["embed"], "fastllm embed: the following arguments are required: MODEL"),
        (["rerank", "m"], "the following arguments are required: QUERY"),
        (["--json", "run"], "fastllm: "),
    ],
)
def test_mistakes_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "1.5"], "fastllm: -p/--top-p must be "),
        (["--typical-p", "2"], "fastllm: --typical-p must be "),
        (["--repetition-penalty", "0"], "fastllm: --repetition-penalty must be "),
        (["--presence-penalty", "nan"], "fastllm: --presence-penalty must be "),
        (["--frequency-penalty", "1e9"], "fastllm: --frequency-penalty must be "),
        (["-s", "-1"], "fastllm: -s/--seed must be "),
        (["--threads", "0"], "fastllm: --threads must be "),
        (["--min-tokens", "-1"], "fastllm: --min-tokens must be "),
        (["--logprobs", "-1"], "fastllm: --logprobs must be "),
        (["--n", "0"], "fastllm: --n must be "),
        (["--stop", ""], "fastllm: --stop takes a text"),
        (["--logit-bias", "5"], "fastllm: --logit-bias takes ID=X, X a number or -inf, not '5'"),
        (["--logit-bias", "5=much"], "fastllm: --logit-bias takes ID=X, X a number or -inf, not '5=much'"),
        (
            ["--logit-bias", "two words of it=1"],
            "fastllm: --logit-bias takes a text of one token, and 'two words of it' is none",
        ),
        (["--chat", "--n", "2"], "fastllm: --n does not go with --chat"),
        (["--chat", "-n", "2"], "fastllm: -n does not go with --chat"),
        (["--chat", "--special"], "fastllm: --special does not go with --chat"),
    ],
)
def test_options_are_named_as_they_are_written(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", MODEL, "a", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert one_sentence(err).startswith(said)


def test_help_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    from fastllm.cli.program import _COMMANDS

    assert cli.main(["--help"]) == 0
    about = capsys.readouterr().out
    assert max(map(len, about.splitlines())) <= 100
    for name in itertools.chain(*_COMMANDS.values()):
        assert f"\n  {name} " in about
        assert cli.main([name, "--help"]) == 0
        one = capsys.readouterr().out
        assert one.startswith(f"usage: fastllm {name} ")
        assert "[OPTIONS]" in one.splitlines()[0]
    assert cli.main(["--version"]) == 0
    assert cli.main(["run", "--he"]) == 0


def test_help_has_the_width_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for width in ("60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        assert cli.main(["run", "--help"]) == 0
        longest = max(map(len, capsys.readouterr().out.splitlines()))
        assert longest <= int(width)
    assert longest > 80


def test_main_takes_the_process_s_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fastllm", "--version"])
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    assert cli.main() == 0
    assert out.getvalue().startswith("fastllm ")
