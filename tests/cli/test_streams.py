"""Standard streams that are closed, full, broken, or cannot show a text: no traceback, and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import TINY, one_sentence

COMMANDS = {
    "run": f"run {TINY} a --max-tokens 3 -s 1",
    "info": "info",
    "help": "run --help",
    "embed": f"embed {TINY} a",
}


def shell(command: str, **env: str) -> tuple[int, str, str]:
    """Runs a line of sh, in which $F is fastllm; stdin is /dev/null. Returns exit code, stdout and stderr."""
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | {"F": f"{sys.executable} -m fastllm"} | env,
        timeout=120,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return done.returncode, out, err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_closed_stdin_is_empty(name: str) -> None:
    code, out, _ = shell(f"$F {COMMANDS[name]} <&-")
    assert (code, out) == shell(f"$F {COMMANDS[name]}")[:2]
    assert code == 0
    assert out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_closed_stdout_is_an_error(name: str) -> None:
    """Even where the lowest free number is stdout's, so that the model's file would get it."""
    code, out, err = shell(f"$F {COMMANDS[name]} >&-")
    assert (code, out) == (2, "")
    assert one_sentence(err) == "fastllm: the output: Bad file descriptor\n"
    assert shell(f"$F {COMMANDS[name]} <&- >&-") == (code, out, err)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_closed_stderr_changes_nothing(name: str) -> None:
    code, out, err = shell(f"$F {COMMANDS[name]} 2>&-")
    assert (code, out, err) == (0, shell(f"$F {COMMANDS[name]}")[1], "")
    assert shell("$F fly 2>&-") == (2, "", "")
    assert shell(f"$F {COMMANDS[name]} <&- >&- 2>&-") == (2, "", "")


def test_stdin_that_cannot_be_read(tmp_path: Path) -> None:
    for command in (f"embed {TINY}", f"run {TINY} -i -"):
        code, out, err = shell(f"$F {command} 0>{tmp_path}/file")
        assert (code, out, one_sentence(err)) == (2, "", "fastllm: stdin cannot be read: Bad file descriptor\n")


def test_a_command_without_output_needs_no_stdout(tmp_path: Path) -> None:
    code, _, err = shell(f"$F convert {TINY} {tmp_path}/out.safetensors >&- <&-")
    assert code == 0
    assert "bytes" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_full_disk_is_said(name: str) -> None:
    code, _, err = shell(f"$F {COMMANDS[name]} >/dev/full")
    assert code == 2
    assert "No space left" in one_sentence(err)
    assert shell(f"$F {COMMANDS[name]} >/dev/full 2>/dev/full")[0] == 2
    assert shell("$F fly 2>/dev/full")[0] == 2


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_reader_that_has_gone(name: str) -> None:
    """The writer ends as if by SIGPIPE."""
    code, out, err = shell(f"$F {COMMANDS[name]} | true")
    assert (code, out) == (141, "")
    assert "fastllm:" not in err


def test_the_first_lines_of_an_output_are_kept() -> None:
    code, out, _ = shell("$F run -s 1 | head -c 5")
    assert code == 141
    assert len(out) == 5


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_replaced(encoding: str) -> None:
    assert shell("$F run -i '\u0416' --max-tokens 0", PYTHONIOENCODING=encoding)[:2] == (0, "?\n")


@pytest.mark.parametrize("env", [{"LANG": "C"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}], ids=str)
def test_without_a_language_text_is_utf_8(env: dict[str, str]) -> None:
    assert shell("$F run -i '\u0416' --max-tokens 0", **env)[:2] == (0, "\u0416\n")


def test_arguments_that_are_no_utf_8() -> None:
    for words in (f"run {TINY} $'a\\xff'", f"run {TINY} -i $'a\\xff'"):
        code, _, err = shell(f"$F {words}")
        assert code == 2
        assert "is not UTF-8" in one_sentence(err)
    code, _, err = shell("$F run $'a\\xff'")
    assert code == 2
    assert "does not exist" in one_sentence(err)
