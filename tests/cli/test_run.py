"""fastllm run: its text, its figures, its guesses, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from helpers.commands import TINY, fastllm, one_sentence
from helpers.data import BUILT_IN, STORIES, needs_stories


@needs_stories
@pytest.mark.parametrize(
    "recorded", json.loads((STORIES / "meta.json").read_text())["outputs"] if STORIES.exists() else []
)
def test_llama2c_command_lines_give_run_c_text(recorded: dict[str, str]) -> None:
    """The arguments with which run.c's output was recorded give the same text."""
    import shlex

    words = shlex.split(recorded["cmd"])
    out, err = fastllm(*words, cwd=STORIES)
    assert out == (STORIES / recorded["file"]).read_text()
    assert "tokens/s" in err
    # The speed of memory is measured for an instant. If another program disturbs that, no share of it is shown.
    assert re.search(r"; weights [\d.]+ GB/s(, \d+% of the [\d.]+ that reading alone takes)?; ", err)


@needs_stories
def test_steps_count_the_prompt_and_max_tokens_do_not() -> None:
    words = ("run", "stories260K.bin", "-t", "0", "-i", "Once upon a time", "--json")
    prompt = json.loads(fastllm(*words, "--max-tokens", "0", cwd=STORIES)[0])
    assert prompt["text"] == ""
    assert prompt["generated_tokens"] == 0
    steps = json.loads(fastllm(*words, "-n", "20", cwd=STORIES)[0])
    assert steps["prompt_tokens"] - 1 + steps["generated_tokens"] == 20
    new = json.loads(fastllm(*words, "--max-tokens", "20", cwd=STORIES)[0])
    assert new["generated_tokens"] == 20
    assert new["text"].startswith(steps["text"])
    # -n N counts the prompt's tokens too, and shows no more than N of them, as llama2.c does.
    out, err = fastllm("run", "stories260K.bin", "-n", "1", "-i", "Once upon a time", cwd=STORIES)
    assert out == "Once\n"
    assert err.startswith("fastllm: -n 1 counts the prompt too, and cuts its 5 tokens to 2;")


@needs_stories
def test_json_says_what_was_written_and_how_fast() -> None:
    words = ("run", "stories260K.bin", "-n", "30", "-s", "7", "--threads", "1", "--json")
    out, err = fastllm(*words, cwd=STORIES)
    about = json.loads(out)
    assert err == ""
    assert about["finish_reason"] == "length"
    assert len(about["tokens"]) == about["generated_tokens"] == 30
    assert about["seed"] == 7
    assert about["threads"] == 1
    assert about["dtype"] == "f32"
    for name in ("prompt_tps", "decode_tps", "weight_gbps", "read_gbps"):
        assert about[name] > 0
    assert fastllm(*words[:-1], cwd=STORIES)[0] == about["prompt"] + about["text"] + "\n"


@pytest.mark.parametrize("sampling", [("-t", "0"), ("-t", "0.8")], ids=["greedy", "sampled"])
def test_guesses_change_nothing_but_the_speed(sampling: tuple[str, ...]) -> None:
    words = ("run", str(BUILT_IN), "-i", "Once upon a time", "-n", "150", "-s", "3", "--json", *sampling)
    plain = json.loads(fastllm(*words)[0])
    assert "proposed_tokens" not in plain
    for guesses in (("--lookup",), ("--draft", str(BUILT_IN)), ("--draft", str(BUILT_IN), "--kv", "q8")):
        kv = guesses[2:]
        about = json.loads(fastllm(*words, *guesses)[0])
        same = plain if not kv else json.loads(fastllm(*words, *kv)[0])
        assert about["tokens"] == same["tokens"]
        assert about["text"] == same["text"]
        assert 0 <= about["accepted_tokens"] <= about["proposed_tokens"]
    draft = json.loads(fastllm(*words, "--draft", str(BUILT_IN))[0])
    assert sampling[1] != "0" or draft["accepted_tokens"] == draft["proposed_tokens"]  # the draft is the model itself


@pytest.mark.parametrize(("used", "read", "said"), [(8.0, 10.0, "80% of the 10.0"), (9.0, 0.01, "")])
def test_a_share_is_said_where_it_means_something(used: float, read: float, said: str) -> None:
    """A share of memory's speed is shown only if it can be right: the machine may have been busy at the measurement."""
    from fastllm.cli.run import speed_line

    speed: dict[str, float | int | str | None] = dict.fromkeys(("prompt_tps", "decode_tps", "prompt_tokens"))
    speed |= {"generated_tokens": 1, "weight_gbps": used, "read_gbps": read}
    speed |= {"isa": "avx2", "threads": 1, "dtype": "q8", "precise": False}
    line = speed_line(speed, 1)
    assert f"weights {used} GB/s" in line
    assert ("%" in line) == bool(said)
    assert said in line


def test_guesses_in_a_line_for_people() -> None:
    words = ("run", str(BUILT_IN), "-n", "60", "-s", "3")
    plain = fastllm(*words)[0]
    out, err = fastllm(*words, "--lookup")
    assert out == plain
    assert re.search(r"guessed \d+, \d+ of them right", err)


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("run", ("--draft", str(TINY)), "needs the same"),
        ("run", ("--draft", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        ("chat", ("hi", "--draft", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        ("run", ("--draft", str(TINY.parent)), "3 files of weights and no config.json"),
        ("run", ("--lookup", "--draft", str(TINY)), "not allowed with"),
        ("chat", ("--lookup", "--draft", str(TINY)), "not allowed with"),
        ("run", ("--draft",), "--draft needs a value"),
        ("run", ("--lookup", "--max-tokens", "-2"), "--max-tokens must be -1 or more, not -2"),
        ("run", ("--lookup", "-n", "-1"), "-n must be 0 or more, not -1"),
    ],
)
def test_guesses_that_cannot_be(command: str, options: tuple[str, ...], says: str) -> None:
    assert says in one_sentence(fastllm(command, str(BUILT_IN), "hi", *options, code=2)[1])


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize("kv", ["q8", None])
def test_a_draft_keeps_keys_and_values_as_the_model_does(
    command: str, kv: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastllm import cli, llm

    given = []

    def load(path: object, **options: object) -> object:
        given.append(options["kv"])
        return real(path, **options)  # type: ignore[arg-type]

    real = llm.load
    monkeypatch.setattr(llm, "load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = [command, str(BUILT_IN), "--draft", str(BUILT_IN), *(["hi"] if command == "chat" else []), "-n", "2"]
    assert cli.main(words + (["--kv", kv] if kv else [])) in (0, 2)
    assert given == [kv, kv]


def test_built_in_model_tells_the_same_story_on_every_instruction_set() -> None:
    from fastllm import _core

    isas = [name for name, supported in _core.isas() if supported]
    stories = {fastllm("run", "-s", "5", FASTLLM_ISA=isa)[0] for isa in isas}
    assert len(stories) == 1
    story = stories.pop()
    assert len(story.split()) > 60  # a whole story
    assert story.rstrip()[-1] in '.!?"'  # which ends by itself
    assert fastllm("run", "-s", "6")[0] != story


def test_streams_while_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is written as it comes, every few characters."""
    from fastllm import cli

    class Out(io.StringIO):
        def flush(self) -> None:
            seen.append(len(self.getvalue()))

    seen: list[int] = []
    out = Out()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["run", str(TINY), "-t", "1", "-s", "1", "-n", "0"]) == 0
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    assert len(out.getvalue()) > 50
    assert max(steps) < 15


@needs_stories
def test_ctrl_c_keeps_what_was_written() -> None:
    # Greedy text of this model never has BOS, which would end it, so it runs until it is interrupted.
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, "run", "stories260K.bin", "-t", "0", "-n", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=STORIES,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = os.read(process.stdout.fileno(), 1 << 16)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        err = process.stderr.read().decode()
        assert process.wait(60) == 130
    text = (first + rest).decode()
    assert text.endswith("\n")
    assert text.strip()
    whole = (STORIES / "expected_greedy_200.txt").read_text()
    assert whole.startswith(text.rstrip("\n")[: len(whole) - 1])
    assert "Traceback" not in err
    assert "tokens/s" in err


# The command line with a pause after each token, in which a test can interrupt it.
_SLOW = """
import sys, time
from fastllm import cli
from fastllm.engine import engine
step = engine.Engine.forward
def slow(*args, **options):
    time.sleep(0.02)
    return step(*args, **options)
engine.Engine.forward = slow
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m fastllm run -s 1 | head -c 5",
        shell=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert len(done.stdout) == 5
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
