"""The SIGBUS handler beside those of other libraries: each gets the faults of its own memory."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.calls import run

# First a file of ours is truncated while it is mapped, then one that fastllm has not mapped: that SIGBUS is not ours.
FOREIGN = """
import faulthandler, mmap, os, sys, tempfile
import fastllm
when, path = sys.argv[1:]
if when == "before":
    faulthandler.enable()
llm = fastllm.load(path, threads=1)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
if when == "after":
    faulthandler.enable()
llm.generate("Once", max_tokens=1)
next(words)
os.truncate(path, 1 << 12)
try:
    list(words)
except fastllm.CheckpointError as error:
    print(error, flush=True)
with tempfile.TemporaryFile() as file:
    file.truncate(1 << 16)
    view = mmap.mmap(file.fileno(), 1 << 16)
    file.truncate(0)
    view[5000]
print("not reached")
"""


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_other_crashes_are_reported_as_ever(stored, when):
    env = os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"}
    env.pop("PYTHONFAULTHANDLER", None)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, when, stored], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert done.stdout == f"{stored} was truncated while it was in use\n"
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == (when != "never"), done.stderr


HANDLERS = """
import os, signal, sys
import fastllm
when, path = sys.argv[1:]
number = signal.SIGBUS
def install():
    signal.signal(number, lambda *_: print("theirs", flush=True))
if when == "before":
    install()
llm = fastllm.load(path, threads=1)
if when == "after":
    install()
if when == "ignored":
    signal.signal(number, signal.SIG_IGN)
llm.generate("Once", max_tokens=1)
for _ in range(2):
    os.kill(os.getpid(), number)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
next(words)
os.truncate(path, 1 << 12)
try:
    list(words)
except fastllm.CheckpointError:
    print("ours")
"""


@pytest.mark.parametrize("when", ["before", "after", "ignored"])
def test_other_handlers_are_called(stored, when):
    done = run(HANDLERS, when, stored)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if when == "ignored" else "theirs\ntheirs\n") + "ours\n"


def test_a_child_has_the_handler_too(stored):
    code = """
import os, sys, fastllm
llm = fastllm.load(sys.argv[1], threads=1)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
next(words)
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.truncate(sys.argv[1], 1 << 12)
try:
    list(words)
except fastllm.CheckpointError:
    os._exit(7)
"""
    assert run(code, stored).returncode == 7
