"""The prompt cache on disk with several processes: restarts, exits, interrupts, kills, forks."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from fastllm import _core
from fastllm.engine.disk import PromptCache
from helpers.prompts import KEY, KV, MODELS, computed, extend, make_model, save, take_up, text

CHILD = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
spec = importlib.util.spec_from_file_location("tests", sys.argv[2])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
getattr(tests, sys.argv[3])(Path(sys.argv[4]), *sys.argv[5:])
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def start(function, folder, *args):
    """Runs a function of this file in a process of its own."""
    arguments = map(str, (Path(__file__).parents[1], __file__, function.__name__, folder, *args))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def print_taken_up(folder, windows, kv):
    length, logits = take_up(folder, make_model(windows, kv), text(700))
    print(length, logits.hex())


@pytest.mark.parametrize("kv", KV)
def test_another_process_takes_it_up(folder, kv):
    model, tokens = make_model("windows", kv), text(700)
    save(folder, model, tokens)
    out, err = start(print_taken_up, folder, "windows", kv).communicate(timeout=120)
    assert (out, err) == (f"699 {computed(model, tokens).hex()}\n", "")


def save_without_close(folder):
    model, tokens = MODELS["full"], text(700)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, tokens, model)
    real = disk._folder.write
    disk._folder.write = lambda *args: time.sleep(0.02) or real(*args)
    disk.save(tokens, sequence)


def test_the_end_of_a_program_waits_for_the_writer(folder):
    child = start(save_without_close, folder)
    assert child.communicate(timeout=120) == ("", "")
    assert child.returncode == 0
    assert take_up(folder, MODELS["full"], text(700))[0] == 699


def save_slowly(folder):
    model, tokens = MODELS["full"], text(700)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, tokens, model)
    real = disk._folder.write
    disk._folder.write = lambda *args: time.sleep(0.5) or real(*args)
    disk.save(tokens, sequence)
    try:
        print("saving", flush=True)
        disk.close()
    except KeyboardInterrupt:
        print("interrupted", flush=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_an_interrupt_drops_what_is_not_written(folder):
    child = start(save_slowly, folder)
    assert child.stdout.readline() == "saving\n"
    time.sleep(0.3)  # it waits in close by now
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60) == ("interrupted\n", "")
    assert time.monotonic() - begin < 3  # all would take 5 seconds
    assert len(list(folder.glob("*.cached"))) < 8


def save_again_and_again(folder):
    print("saving", flush=True)
    while True:
        for seed in range(3):
            save(folder, MODELS["windows"], text(700, seed))
        for path in folder.glob("*"):
            path.unlink(missing_ok=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a file that is being read")
def test_killed_processes_leave_what_can_be_used(folder):
    """Two processes write and remove the same files, and are killed while this one takes prompts up."""
    model, prompts = MODELS["windows"], [text(700, seed) for seed in range(3)]
    expected = [computed(model, prompt) for prompt in prompts]
    lengths = set()
    for delay in (0.02, 0.1, 0.2):
        children = [start(save_again_and_again, folder) for _ in range(2)]
        for child in children:
            assert child.stdout.readline() == "saving\n"
        end = time.monotonic() + delay
        while time.monotonic() < end:
            for prompt, logits in zip(prompts, expected, strict=True):
                length, found = take_up(folder, model, prompt)
                assert found == logits
                lengths.add(length)
        for child in children:
            child.kill()
            child.communicate()
        for prompt, logits in zip(prompts, expected, strict=True):
            assert take_up(folder, model, prompt)[1] == logits
    save(folder, model, prompts[0])
    assert take_up(folder, model, prompts[0])[0] == 699


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_while_pages_wait(folder, slow):
    """The writer does not go over into the child, which can save and close all the same."""
    model, tokens = MODELS["full"], text(700)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    go = slow(disk)
    extend(sequence, tokens, model)
    disk.save(tokens, sequence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
        child = os.fork()
    if child == 0:
        code = 1
        try:
            go()
            disk.save(tokens, sequence)
            disk.close()
            code = 0 if disk.load(tokens, cache.sequence()).length == 699 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    go()
    disk.close()
