"""Python threads that compute at once: teams take turns, in order, and no turn is lost."""

import threading

import pytest

from fastllm import CheckpointError, _core
from fastllm.machine import thread_count
from helpers.architectures import ARCHITECTURES, random_llm
from helpers.calls import run

pytestmark = pytest.mark.skipif(not _core.has_threads(), reason="built without OpenMP")

TEAM = max(2, thread_count()[0])  # as many threads as there are cores: two such teams cannot run at once


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_each_gets_its_share():
    counts, done = [0] * 4, threading.Event()

    def work(i):
        while not done.is_set():
            _core.int8_peak(1000, TEAM)
            counts[i] += 1
            if counts[i] == 100:
                done.set()

    in_threads(4, work)
    assert min(counts) > 50  # not all are equal: a thread may start late


def test_threads_of_all_kinds_write_what_they_write_alone():
    llm = random_llm(next(iter(ARCHITECTURES)), "q8", threads=2)
    llm._engine._threads = lambda count: count % 4 + 1
    options = {"max_tokens": 20, "seed": 3}
    prompts = [list(range(3, 5 + i)) for i in range(6)]
    alone = [llm.generate(prompt, **options) for prompt in prompts]
    found = [[] for _ in prompts]

    def work(i):
        for _ in range(5):
            found[i].append(llm.generate(prompts[i], **options))

    in_threads(len(prompts), work)
    assert found == [[text] * 5 for text in alone]


INTERRUPTED = """
import os, signal, sys, threading, time
from fastllm import CheckpointError, _core

signal.alarm(100)
events, team = [], int(sys.argv[1])

def long():
    _core.int8_peak(rounds, team)
    events.append("long")

def short():
    _core.int8_peak(1, team)
    events.append("short")

rounds, start = 1 << 10, 0.0
while True:  # what takes a second or so
    start = time.perf_counter()
    _core.int8_peak(rounds, team)
    if time.perf_counter() - start > 0.6:
        break
    rounds *= 2
first, last = threading.Thread(target=long), threading.Thread(target=short)
first.start()
time.sleep(0.1)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
threading.Timer(0.05, last.start).start()  # waits behind the one that gives up
try:
    _core.int8_peak(1, team)
    events.append("not interrupted")
except KeyboardInterrupt:
    events.append("interrupted")
first.join()
last.join()
short()
assert events == ["interrupted", "long", "short", "short"], events
"""


def test_ctrl_c_while_waiting():
    ran = run(INTERRUPTED, TEAM)
    assert ran.returncode == 0, ran.stderr


def test_an_error_gives_the_turn_back():
    with pytest.raises(CheckpointError):
        _core.pack("f32", 16, 2, "f32", b"\xff" * 128, threads=TEAM)  # NaN
    in_threads(2, lambda i: _core.int8_peak(1, TEAM))
