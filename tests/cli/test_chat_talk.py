"""The commands of fastllm chat, a full context, and how answers are shown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import LLM, ContextError, OptionError
from fastllm.chat import Conversation
from fastllm.cli._answers import Answers
from fastllm.cli._talk import Talk, loaded
from fastllm.cli._terminal import Screen
from helpers.commands import one_sentence
from helpers.terminals import talker, user, written

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return fastllm.load(talker(tmp_path_factory.mktemp("talker"), context=400))


class Typed:
    """A reader whose messages are given beforehand."""

    def __init__(self, *messages: str) -> None:
        self._messages: Iterator[str] = iter(messages)

    def read(self, *, stopped: bool) -> str:
        for message in self._messages:
            return message
        raise EOFError


class Talking:
    """A talk with the model, message by message."""

    def __init__(self, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
        self.answers = Answers(llm, {"temperature": 0, "seed": 5, "max_tokens": 6})
        self.conversation = Conversation()
        self._talk, self._capsys = Talk(self.conversation, self.answers, Screen(thinking=True)), capsys

    def type(self, *messages: str) -> tuple[str, str]:
        """What is answered, and what is said."""
        self._talk.run(Typed(*messages))
        captured = self._capsys.readouterr()
        return captured.out, captured.err

    def asked(self) -> list[str]:
        return [message["content"] for message in self.conversation.messages if message["role"] == "user"]


@pytest.fixture
def talk(llm: LLM, capsys: pytest.CaptureFixture[str]) -> Talking:
    return Talking(llm, capsys)


def test_turns_are_what_the_api_writes(talk: Talking, llm: LLM) -> None:
    out, err = talk.type("/system Be brief.", "one", "two\nlines", "/system", "three")
    messages = talk.conversation.messages
    assert out == "".join(f"{message['content']}\n" for message in messages[1::2])
    assert err == "[the system prompt is set]\n[there is no system prompt]\n"
    system = {"role": "system", "content": "Be brief."}
    assert messages[1]["content"] == written(llm, [system, messages[0]])
    assert messages[3]["content"] == written(llm, [system, *messages[:3]])
    assert messages[5]["content"] == written(llm, messages[:5])
    assert talk.asked() == ["one", "two\nlines", "three"]


def test_retry_takes_the_next_seed(talk: Talking, llm: LLM) -> None:
    talk.type("/temp 2", "one", "two")
    before = talk.conversation.messages.copy()
    assert before[3]["content"] == written(llm, before[:3], temperature=2)
    _, err = talk.type("/retry")
    assert err == "[seed 6]\n"
    after = talk.conversation.messages
    assert after[:3] == before[:3]
    assert after[3]["content"] == written(llm, before[:3], temperature=2, seed=6) != before[3]["content"]
    assert len(after) == 4


def test_undo(talk: Talking, llm: LLM) -> None:
    _, err = talk.type("/undo", "/retry", "one", "two\n2", "/undo")
    assert err.splitlines() == [
        "fastllm: there is no message to remove",
        "fastllm: there is no message to answer again",
        "[removed: two 2]",
    ]
    assert talk.asked() == ["one"]


def test_settings(talk: Talking, llm: LLM) -> None:
    _, err = talk.type("/set top-p 0.5", "/set max_tokens 9", "/set seed 7", "/temp 1.5", "one")
    assert "top_p 0.5" in err
    expected = written(llm, [user("one")], top_p=0.5, max_tokens=9, seed=7, temperature=1.5)
    assert talk.conversation.messages[1]["content"] == expected


def test_rare_settings(talk: Talking, llm: LLM) -> None:
    """They are shown once they are not as they always are; mirostat takes the place of top_p."""
    _, err = talk.type("/set", "/set mirostat_tau 4", "/set seed 7", "one")
    first, second, *_ = err.splitlines()
    assert "mirostat" not in first
    assert "xtc" not in first + second
    assert "mirostat_tau 4" in second
    assert talk.conversation.messages[1]["content"] == written(llm, [user("one")], seed=7, mirostat_tau=4)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("/temp", "/temp a value"),
        ("/temp warm", "temperature must be a number, not 'warm'"),
        ("/temp NaN", "temperature"),
        ("/temp -1", "temperature must be a number between"),
        ("/temp true", "temperature"),
        ('/temp "1"', "temperature"),
        ("/set top_k 1.5", "top_k"),
        ("/set seed -1", "seed must be a whole number"),
        ("/set max_tokens x", "max_tokens"),
        ("/set speed 1", "no setting 'speed'"),
        ("/set logit_bias 1", "no setting 'logit_bias'"),
        ("/set bad_words 1", "no setting 'bad_words'"),
        ("/set top_k null", "top_k must be a number, not None"),
        ("/set xtc_probability 2", "xtc_probability must be a number between 0 and 1"),
        ("/set a b c", "/set takes a name and a value"),
        ("/nothing", "there is no command /nothing"),
        ("/", "there is no command /"),
        ("/ bye", "there is no command /"),
        ("/usr/bin has what?", "there is no command /usr/bin"),
        ("/save", "/save takes the name of a file"),
        ("/load", "/load takes the name of a file"),
        ("/load /nowhere/at-all.json", "does not exist"),
        ("/load ~nobody-of-that-name/x", "nobody-of-that-name"),
        ("/save a\0b", "/save takes the name of a file"),
        ("/save /nowhere/at-all.json", "/nowhere"),
        ("/load /", "/"),
        ("a" * 500, "context of 400"),
    ],
)
def test_mistakes_are_said_and_change_nothing(talk: Talking, text: str, cause: str) -> None:
    talk.type("one")
    before, settings = talk.conversation.messages.copy(), talk.answers.settings
    out, err = talk.type(text)
    assert out == ""
    assert cause in one_sentence(err)
    assert talk.conversation.messages == before
    assert talk.answers.settings == settings


def test_a_slash_that_is_text(talk: Talking) -> None:
    talk.type("//help", " /help", "no /help")
    assert talk.asked() == ["/help", "/help", "no /help"]


def test_bye_help_and_tokens(talk: Talking, llm: LLM) -> None:
    _, err = talk.type("one", "two", "/tokens", "/help", "/bye", "three")
    assert talk.asked() == ["one", "two"]
    used = len(llm.apply_chat_template(talk.conversation.messages, add_generation_prompt=False))
    assert f"[{used} of 400 tokens; " in err
    for name in ("system", "retry", "undo", "temp", "set", "tokens", "save", "load", "bye"):
        assert f"/{name}" in err


def test_half_a_surrogate_pair_is_saved(talk: Talking, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"messages": [{"role": "user", "content": "\\ud800"}]}')
    talk.type(f"/load {tmp_path}/a.json", f"/save {tmp_path}/b.json")
    assert json.loads((tmp_path / "b.json").read_text())["messages"] == [user("\ud800")]


def test_save_and_load(talk: Talking, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk é.json"
    talk.type("/system Be brief.", "one", "/temp 1.5", f"/save {path}", "two", "/retry")
    whole = talk.conversation.messages.copy()
    talk.type("three", f"/load {path}", "two", "/retry")
    assert talk.conversation.messages == whole
    other = Talking(llm, capsys)
    other.type(f"/load {path}", "two", "/retry")
    assert other.conversation.messages == whole
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner),
    max_leaves=8,
)


@given(
    st.binary(max_size=8)
    | values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"messages": values, "settings": values}).map(lambda value: json.dumps(value).encode())
)
def test_what_is_loaded_is_a_talk_or_refused(blob: bytes) -> None:
    try:
        messages, settings = loaded(blob, Path("x.json"))
    except OptionError:
        return
    assert all(isinstance(message["content"], str) and isinstance(message["role"], str) for message in messages)
    assert isinstance(settings, dict)


def test_a_bad_file_is_said(talk: Talking, tmp_path: Path) -> None:
    talk.type("one")
    before = talk.conversation.messages.copy()
    good = {"messages": [user("a"), {"role": "assistant", "content": "b"}]}
    for text in (
        "",
        "[" * 100_000,
        "[]",
        '{"messages": 1}',
        '{"messages": [1]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "boss", "content": ""}]}',
        json.dumps(good | {"settings": []}),
        json.dumps(good | {"settings": {"temperature": "hot"}}),
        json.dumps(good | {"settings": {"seed": 1.5}}),
        json.dumps(good | {"settings": {"max_tokens": True}}),
    ):
        (tmp_path / "bad.json").write_text(text)
        _, err = talk.type(f"/load {tmp_path}/bad.json")
        assert one_sentence(err), text
        assert talk.conversation.messages == before


# ---- a full context --------------------------------------------------------------------------------------------------


def test_the_oldest_turns_go(talk: Talking, llm: LLM) -> None:
    """The system prompt stays, and the answer is that to what is left."""
    talk.type("/system Be brief.")
    said = ""
    for i in range(12):
        _, err = talk.type(f"{i} " + "x" * 30)
        said += err
        messages = talk.conversation.messages
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert messages[-1]["content"] == written(llm, messages[:-1])
        assert len(llm.apply_chat_template(messages[:-1])) + 6 <= 400
        assert talk.asked()[-1].startswith(f"{i} ")
    assert "[the context of 400 tokens is full: the oldest turn is forgotten]" in said
    assert len(talk.asked()) > 3
    _, err = talk.type("y" * 330)
    assert "oldest turns are forgotten]" in err
    assert talk.asked() == ["y" * 330]


def test_a_message_that_is_too_long_forgets_nothing(llm: LLM) -> None:
    answers = Answers(llm, {})
    talk = Conversation([user("a"), {"role": "assistant", "content": "b"}, user("c" * 500)])
    before = talk.messages.copy()
    with pytest.raises(ContextError, match=r"the message makes a prompt of 5.. tokens, more than the context of 400"):
        answers.fit(talk)
    assert talk.messages == before


def test_an_answer_that_fills_the_context(talk: Talking) -> None:
    out, err = talk.type("/set max_tokens 100", "x" * 330)
    assert err.endswith("[the answer ends here because the context of 400 tokens is full]\n")
    assert 0 < len(out) < 100


# ---- thinking --------------------------------------------------------------------------------------------------------

PIECES = [("thinking", "Hm"), ("thinking", ".\x1b[31m"), ("text", "Hi"), ("text", "!\n")]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "env", "thinking", "shown"),
    [
        (True, {}, True, "\x1b[2mHm.\ufffd[31m\x1b[0m\n\nHi!\n\n"),
        (True, {"NO_COLOR": "1"}, True, "Hm.\ufffd[31m\n\nHi!\n\n"),
        (True, {"TERM": "dumb"}, True, "Hm.\ufffd[31m\n\nHi!\n\n"),
        (True, {}, False, "Hi!\n\n"),
        (False, {}, True, "Hi!\n\n"),
    ],
)
def test_thinking_is_dim_or_hidden(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, env: dict[str, str], thinking: bool, shown: str
) -> None:
    out = Tty() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"TERM": "xterm"} | env).items():
        monkeypatch.setenv(name, value)
    screen = Screen(thinking=thinking)
    for kind, piece in PIECES:
        screen.show(kind, piece)
    screen.end()
    assert out.getvalue() == shown


def test_a_stop_while_thinking_leaves_the_terminal_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Tty()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(thinking=True)
    screen.show("thinking", "Hm")
    screen.end()
    assert out.getvalue() == "\x1b[2mHm\x1b[0m\n"
