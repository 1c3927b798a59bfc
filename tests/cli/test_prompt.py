"""The prompt of fastllm run: words, options, files and pipes, and what an inherited stdin does."""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import cli
from fastllm.cli import prompt
from fastllm.errors import OptionError
from helpers.commands import TINY, fastllm, one_sentence
from helpers.data import BUILT_IN

# The command line with a shorter patience, in seconds.
_PATIENCE = 1
_HASTY = f"""
import sys
from fastllm import cli
from fastllm.cli import prompt
prompt._PATIENCE = {_PATIENCE}
raise SystemExit(cli.main(sys.argv[1:]))
"""
STORY = ("--max-tokens", "8", "-s", "3")
PROMPT = "Once upon a time"


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"text": [], "prompt": None, "file": None} | given)


@pytest.fixture(scope="module")
def expected() -> str:
    """The built-in model's text on PROMPT."""
    out, _ = fastllm("run", "-i", PROMPT, *STORY)
    assert out.startswith(PROMPT)
    return out


def test_every_way_to_give_a_prompt_is_the_same(expected: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    model = str(BUILT_IN)  # its own temperature is 0.6 only where it is not named
    words = ("-t", "0.6", *STORY)
    assert fastllm("run", model, PROMPT, *words)[0] == expected
    assert fastllm("run", model, *PROMPT.split(), *words)[0] == expected
    assert fastllm("run", model, "-i", PROMPT, *words)[0] == expected
    assert fastllm("run", "--file", "prompt.txt", *STORY, cwd=tmp_path)[0] == expected
    for end in ("", "\n", "\r\n"):
        assert fastllm("run", *STORY, stdin=PROMPT + end)[0] == expected
    assert fastllm("run", "-i", "-", *STORY, stdin=PROMPT)[0] == expected
    assert fastllm("run", "--file", "-", *STORY, stdin="\ufeff" + PROMPT)[0] == expected
    assert fastllm("run", model, "-", *words, stdin=PROMPT)[0] == expected
    # A prompt that is given is the prompt, whatever stdin holds.
    assert fastllm("run", "-i", PROMPT, *STORY, stdin="something else")[0] == expected


def test_no_prompt_is_a_story_from_nothing() -> None:
    out, _ = fastllm("run", *STORY, stdin="")
    assert fastllm("run", "-i", "", *STORY)[0] == out
    assert fastllm("run", "--file", os.devnull, *STORY)[0] == out


@pytest.mark.parametrize("inherited", ["null", "closed", "ended", "silent", "socket"])
def test_an_inherited_stdin_is_no_prompt(inherited: str) -> None:
    """Of cron (/dev/null), of a daemon (closed), of a process that never writes: no text hangs, and none is lost."""
    command = [sys.executable, "-c", _HASTY, "run", *STORY]
    ours, theirs = socket.socketpair()
    stdin = {"null": subprocess.DEVNULL, "closed": subprocess.DEVNULL, "socket": theirs}.get(inherited, subprocess.PIPE)
    if inherited == "closed":
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    start = time.monotonic()
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if inherited == "ended":
            assert process.stdin is not None
            process.stdin.close()
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
        assert process.wait(60) == 0
    ours.close()
    theirs.close()
    assert out == fastllm("run", *STORY)[0]
    waits = inherited in ("silent", "socket")
    assert ("nothing came through stdin within 1 s" in err) == waits
    assert not waits or time.monotonic() - start >= _PATIENCE


def test_a_pipe_that_is_slow_is_waited_for(expected: str) -> None:
    """Once something has come, all of it is read; with -i - from the beginning on."""
    for words, pauses in (((), (0, _PATIENCE + 1)), (("-i", "-"), (_PATIENCE + 1, 0))):
        with subprocess.Popen(
            [sys.executable, "-c", _HASTY, "run", *words, *STORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for pause, part in zip(pauses, (PROMPT[:6], PROMPT[6:]), strict=True):
                time.sleep(pause)
                process.stdin.write(part.encode())
                process.stdin.flush()
            process.stdin.close()
            assert process.stdout.read().decode() == expected


def test_a_file_may_be_a_pipe(expected: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m fastllm run --file <(printf '{PROMPT}') {' '.join(STORY)}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode() == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([str(TINY), "a", "-i", "b"], "the prompt is given by TEXT and by -i/--prompt"),
        ([str(TINY), "a", "--file", "b"], "by TEXT and by --file"),
        (["-i", "a", "--file", "b"], "by -i/--prompt and by --file"),
        (["--file", "missing.txt"], "missing.txt cannot be read: No such file"),
        (["--file", "."], ". cannot be read: Is a directory"),
        (["--file", "latin.txt"], "latin.txt is not UTF-8: byte 3 is 0xe9"),
        (["Once upon a time"], "'Once upon a time' is no model: MODEL comes before TEXT"),
        (["Once"], "Once does not exist"),
        ([str(TINY), "--chat"], "--chat needs a message"),
    ],
)
def test_prompts_that_cannot_be(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert said in one_sentence(fastllm("run", *words, code=2, cwd=tmp_path)[1])


@pytest.mark.parametrize("words", [[], ["-i", "-"], ["--file", "-"]])
def test_stdin_that_cannot_be_read(words: list[str], tmp_path: Path) -> None:
    for stdin, said in ((b"caf\xe9", "stdin is not UTF-8: byte 3 is 0xe9"), (None, "stdin cannot be read: ")):
        (tmp_path / "stdin").write_bytes(stdin or b"")
        with open(tmp_path / "stdin", "rb" if stdin else "ab") as file:  # of a file to be written nothing can be read
            done = subprocess.run(
                [sys.executable, "-m", "fastllm", "run", *words, *STORY], stdin=file, capture_output=True, check=False
            )
        assert done.returncode == 2
        assert said in one_sentence(done.stderr.decode())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_loses_one_line_end(text: str) -> None:
    for mark, end in ((b"", "\n"), (b"\xef\xbb\xbf", "\r\n")):
        assert prompt._decoded(mark + (text + end).encode(), "it") == text.removesuffix("\r" if end == "\n" else "")


@given(st.binary())
def test_bytes_are_utf_8_or_refused(blob: bytes) -> None:
    try:
        found = prompt._decoded(blob, "it")
    except OptionError as error:
        assert str(error).startswith("it is not UTF-8: byte ")  # noqa: PT017
        with pytest.raises(UnicodeDecodeError):
            blob.decode()
    else:
        bare = blob.removeprefix(b"\xef\xbb\xbf")
        assert found.encode() == (bare[:-2] if bare.endswith(b"\r\n") else bare.removesuffix(b"\n"))


def test_words_are_joined() -> None:
    assert prompt.prompt_of(options(text=["a", "b c", ""])) == "a b c "
    assert prompt.prompt_of(options(text=[""])) == ""
    assert prompt.prompt_of(options(prompt="")) == ""


def test_without_a_real_stdin_there_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("not read"))
    assert prompt.prompt_of(options()) is None


def test_json_has_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(BUILT_IN), PROMPT, "--json", *STORY]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == PROMPT
