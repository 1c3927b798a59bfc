"""fastllm run --chat: one answer, the one that LLM.chat gives."""

from __future__ import annotations

import json

import pytest

import fastllm
from fastllm import cli
from helpers.commands import TINY
from helpers.commands import fastllm as command


def test_one_answer_is_that_of_chat(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer alone is printed; without --max-tokens it is as long as the context lets it be."""
    llm = fastllm.load(TINY)
    for words, options in ((["-t", "0"], {"temperature": 0.0}), (["--max-tokens", "5"], {"max_tokens": 5})):
        answer = llm.chat("hi there", seed=3, **{"max_tokens": None, **options})
        line = ["run", str(TINY), "hi", "there", "--chat", "-s", "3", *words]
        assert cli.main(line) == 0
        assert capsys.readouterr().out == f"{answer['content']}\n"
        assert cli.main([*line, "--json"]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["prompt"] == "hi there"
        assert about["text"] == answer["content"]
        assert about["tokens"] == answer["content"].tokens
        assert about["seed"] == 3


def test_the_message_may_come_through_a_pipe() -> None:
    words = ("run", str(TINY), "--chat", "-t", "0", "--max-tokens", "5")
    assert command(*words, stdin="hi there\n")[0] == command(*words, "-i", "hi there")[0]
