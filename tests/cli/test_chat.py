"""fastllm chat where no person types: one question, all of stdin, lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastllm
from fastllm import LLM
from helpers.commands import TINY, one_sentence
from helpers.commands import fastllm as command
from helpers.terminals import THOUGHTS, talker, user, written

pytest.importorskip("jinja2")

FEW = ("-t", "0", "-n", "6", "-s", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("talker"), context=400)


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return fastllm.load(model)


def test_one_answer(model: Path, llm: LLM) -> None:
    """To a question, to all that comes through a pipe, to both; as LLM.chat writes it."""
    assert command("chat", str(model), "so?", *FEW)[0] == written(llm, [user("so?")]) + "\n"
    assert command("chat", str(model), *FEW, stdin="a\nb\n\n/bye\n")[0] == written(llm, [user("a\nb\n\n/bye")]) + "\n"
    both = [{"role": "system", "content": "Be brief."}, user("Sum up:\n\na\nb")]
    assert (
        command("chat", str(model), "Sum up:", *FEW, "-y", "Be brief.", stdin="a\nb\n")[0] == written(llm, both) + "\n"
    )
    sampled = written(llm, [user("so?")], temperature=1.5, top_p=0.8, seed=9, max_tokens=20)
    out, err = command("chat", str(model), "so?", "-t", "1.5", "-p", "0.8", "-s", "9", "-n", "20")
    assert (out, err) == (sampled + "\n", "")


def test_no_message(model: Path) -> None:
    assert "there is no message" in one_sentence(command("chat", str(model), stdin=" \n", code=2)[1])
    assert "there is no message" in one_sentence(command("chat", str(model), "", stdin="", code=2)[1])
    closed = [sys.executable, "-c", "import os, sys; os.close(0); os.execv(sys.executable, sys.argv[1:])"]
    words = [sys.executable, "-m", "fastllm", "chat", str(model)]
    for more, code in ((), 2), (("hi",), 0), (("--jsonl",), 0):
        done = subprocess.run([*closed, *words, *more, *FEW], capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_lines_of_json(model: Path, llm: LLM) -> None:
    """Each line is a conversation of its own."""
    three = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    own = [{"role": "system", "content": "Mine."}, user("a")]
    lines = [json.dumps(line) for line in ("so?", user("so?"), three, own)]
    out, err = command(
        "chat", str(model), "--jsonl", *FEW, "-y", "Yours.", stdin="\n".join([*lines[:2], "", *lines[2:]])
    )
    yours = {"role": "system", "content": "Yours."}
    answers = [json.loads(line) for line in out.splitlines()]
    expected = [[yours, user("so?")], [yours, user("so?")], [yours, *three], own]
    assert [answer["content"] for answer in answers] == [written(llm, messages) for messages in expected]
    assert err == ""
    for answer in answers:
        assert answer["role"] == "assistant"
        assert answer["finish_reason"] == "length"
        assert answer["generated_tokens"] == 6
        assert answer["seed"] == 5
    assert answers[0]["prompt_tokens"] == len(llm.apply_chat_template(expected[0]))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("1", "neither a text"),
        ("[]", "neither a text"),
        ('["a"]', "neither a text"),
        ('{"content": "a"}', "role"),
        ('{"role": "boss", "content": "a"}', "'boss'"),
        ('{"role": "assistant", "content": "a"}', "nothing answers"),
        (json.dumps("a" * 500), "context of 400"),
    ],
)
def test_a_bad_line_is_named(model: Path, line: str, cause: str) -> None:
    out, err = command("chat", str(model), "--jsonl", *FEW, stdin=f'"fine"\n\n{line}\n"fine"\n', code=2)
    assert "line 3: " in one_sentence(err)
    assert cause in err
    assert len(out.splitlines()) == 1


def test_options_that_do_not_fit(model: Path) -> None:
    for words, cause in (
        ((str(model), "so?", "--jsonl"), "--jsonl"),
        ((str(model), "so?", "-n", "-2"), "max-tokens must be"),
        ((str(TINY), "so?", "--no-think"), "enable_thinking"),
        ((str(model), "a" * 500), "context of 400"),
        ((str(model), "so?", "--max-thinking-tokens", "-1"), "max-thinking-tokens must be 0 or more, not -1"),
        ((str(TINY), "so?", "--max-thinking-tokens", "1"), "does not think"),
    ):
        assert cause in one_sentence(command("chat", *words, code=2)[1])


def test_no_think(model: Path, llm: LLM) -> None:
    expected = written(llm, [user("so?")], chat_template_kwargs={"enable_thinking": False})
    assert command("chat", str(model), "so?", *FEW, "--no-think")[0] == expected + "\n"
    assert expected != written(llm, [user("so?")])


def test_thinking(tmp_path: Path) -> None:
    """Through a pipe the answer comes without it; in JSON it has a place of its own, also in later turns."""
    model = talker(tmp_path, thinks=True)
    llm = fastllm.load(model)
    options = {"presence_penalty": 50, "logit_bias": {llm.tokenizer.token_id("</think>"): 0.1}, "max_tokens": 40}
    reply = llm.chat([user("so?")], temperature=0, seed=5, **options)
    assert reply["content"]
    assert reply["reasoning"].isalpha()
    assert command("chat", str(model), "so?", *THOUGHTS) == (reply["content"] + "\n", "")
    answer = json.loads(command("chat", str(model), "--jsonl", *THOUGHTS, stdin='"so?"')[0])
    assert {name: answer[name] for name in reply} == dict(reply)
    later = [user("so?"), reply, user("and?")]
    answer = json.loads(command("chat", str(model), "--jsonl", *THOUGHTS, stdin=json.dumps(later))[0])
    assert answer["content"] == written(llm, later, **options)
    assert answer["content"] != written(llm, [later[0], {**reply, "reasoning": None}, later[2]], **options)
    answer = json.loads(command("chat", str(model), "--jsonl", "--no-think", *THOUGHTS, stdin='"so?"')[0])
    assert "reasoning" not in answer


def test_thinking_is_bounded(tmp_path: Path) -> None:
    model = talker(tmp_path, thinks=True)
    reply = fastllm.load(model).chat([user("so?")], temperature=0, seed=5, max_tokens=9, max_thinking_tokens=4)
    assert len(reply["reasoning"]) == 4
    few = ("-t", "0", "-s", "5", "--max-thinking-tokens", "4")
    answer = json.loads(command("chat", str(model), "--jsonl", *few, "-n", "9", stdin='"so?"')[0])
    assert (answer["reasoning"], answer["content"]) == (reply["reasoning"], reply["content"])
    about = json.loads(command("run", str(model), "so?", "--chat", "--json", *few, "--max-tokens", "9")[0])
    assert (about["reasoning"], about["text"]) == (reply["reasoning"], reply["content"])


def test_llama_2_has_no_template() -> None:
    out, _ = command("chat", str(TINY), "so?", "-t", "0", "-n", "3")
    llm = fastllm.load(TINY)
    assert out == written(llm, [user("so?")], max_tokens=3) + "\n"
