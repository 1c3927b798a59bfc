"""The command line, run in a process of its own as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.data import DATA

TINY = DATA / "llama2c_gqa_tied" / "model_v0.bin"


def fastllm(*args: str, code: int = 0, cwd: Path | None = None, stdin: str = "", **env: str) -> tuple[str, str]:
    """Runs the command line, asserts its exit code, and returns what it wrote to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", *args],
        input=stdin.encode(),
        capture_output=True,
        cwd=cwd,
        env=os.environ | env,
        timeout=120,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err
    assert "Traceback" not in err
    return out, err


def one_sentence(err: str) -> str:
    """Asserts that an error is a single line that begins with fastllm, and returns it."""
    assert re.fullmatch(r"fastllm[^\n]*\n", err), err
    return err


# `fastllm convert` that says "packing" before each tensor and then waits, so that a test can interrupt it.
SLOW = """
import sys, time
from fastllm import cli
from fastllm.weights import convert
pack = convert.pack
def slow(*args, **options):
    sys.stdout.write("packing\\n")
    sys.stdout.flush()
    time.sleep(0.2)
    pack(*args, **options)
convert.pack = slow
raise SystemExit(cli.main(["convert", *sys.argv[1:]]))
"""
