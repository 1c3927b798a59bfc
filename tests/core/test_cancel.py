"""Forwards that end early: by a flag that another thread sets, by Ctrl-C, by what handlers of signals raise."""

import functools
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastllm import _core
from fastllm.decoding import Sampling
from helpers import writers
from helpers.architectures import ARCHITECTURES
from helpers.writers import logits_after

TOKENS = [i % 26 for i in range(200)]


@functools.cache
def slow_model():
    """A model of 60 layers that are all the same: a token takes milliseconds."""
    cfg = writers.config(512, 2048, 8, 8, 27, n_layers=60, max_seq=1024)
    rng, matrices = np.random.default_rng(1), {}
    for _, shape, required in cfg.matrices():
        if required and shape not in matrices:
            matrices[shape] = writers.pack("q8", rng.standard_normal(shape, np.float32) / 64)
    tensors = {name: matrices[shape] for name, shape, required in cfg.matrices() if required}
    for name, n, required in cfg.vectors():
        if required or name.endswith((".attn_norm", ".ffn_norm")) or name == "final_norm":
            tensors[name] = _core.Vector(np.ones(n, np.float32).tobytes())
    return _core.Model(cfg, tensors, paced=False)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["grok", "gemma", "qwen_moe"])
def test_cancelled_at_any_time(name, threads):
    """A forward runs as if there were no flag, or says that it was cancelled; the next one is as if it never was."""
    cfg, optional, tied = ARCHITECTURES[name]
    cfg = cfg._replace(max_seq=300)
    weights = writers.random_weights(cfg, 3, tied=tied, optional=optional)
    model = writers.core_model(cfg, weights, "q8")
    cache, rows, cancel = _core.KVCache(model), model.logits(), _core.Cancel()
    expected = logits_after(model, TOKENS)
    start = time.perf_counter()
    logits_after(model, TOKENS)
    seconds = time.perf_counter() - start
    begin = cache.sequence()
    model.forward([(begin, TOKENS[:70], 0)])
    used, outcomes, rng = cache.used, [], np.random.default_rng(2)

    def set_later(delay):
        time.sleep(delay)
        cancel.set()

    with ThreadPoolExecutor(1) as pool:
        for _ in range(40):
            sequence = begin.fork()
            cancel.clear()
            done = pool.submit(set_later, rng.uniform(0, 1.2 * seconds))
            outcomes.append(model.forward([(sequence, TOKENS[70:], 1)], rows, threads=threads, cancel=cancel))
            done.result()
            assert sequence.length == (200 if outcomes[-1] else 70)
            if not outcomes[-1]:
                assert cache.used < used + 2 * sum(cache.page_bytes)  # at most a copy of the tail
                model.forward([(sequence, TOKENS[70:], 1)], rows, threads=threads)
            assert bytes(rows) == expected
    cancel.set()
    assert model.forward([(begin, [1], 0)], cancel=cancel) is False
    assert begin.length == 70


def test_a_cancelled_forward_ends_soon():
    model, cancel, late = slow_model(), _core.Cancel(), []
    cache = _core.KVCache(model)
    assert logits_after(model, TOKENS) == logits_after(model, TOKENS)

    def set_later():
        time.sleep(0.05)
        late.append(time.perf_counter())
        cancel.set()

    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            cancel.clear()
            done = pool.submit(set_later)
            assert model.forward([(cache.sequence(), TOKENS, 0)], threads=2, cancel=cancel) is False
            late[-1] = time.perf_counter() - late[-1]
            done.result()
    assert cache.used == 0
    assert min(late) < 0.05


class Alarm(Exception):  # noqa: N818
    """What a handler of a signal raises."""


@pytest.fixture
def alarm():
    """Sets a handler of SIGALRM, which then comes after some seconds."""

    def set_alarm(seconds, handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.getsignal(signal.SIGALRM)
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_handler_that_raises_ends_a_forward(alarm):
    model = slow_model()
    sequence = _core.KVCache(model).sequence()
    model.forward([(sequence, [1, 2], 0)])

    def ring(*_):
        raise Alarm

    late = []
    for _ in range(5):
        alarm(0.05, ring)
        start = time.perf_counter()
        with pytest.raises(Alarm):
            model.forward([(sequence, TOKENS, 0)], threads=2)
        late.append(time.perf_counter() - start - 0.05)
        assert sequence.length == 2
    assert min(late) < 0.1
    alarm(0.3, ring)
    sampler, rows, token, count = _core.Sampler(27, Sampling(), seed=1), model.logits(), 1, 0
    with pytest.raises(Alarm):  # noqa: PT012
        for _ in range(1000):
            token = model.step(sequence, token, sampler, rows)
            count += 1
    assert sequence.length - 2 in (count, count + 1)  # in a forward, or between two lines of Python


def test_a_handler_may_run_a_forward(alarm):
    """Of the same model, on as many threads: it does not wait for the cores of the forward that it interrupts."""
    model, inner = slow_model(), []
    expected, short = logits_after(model, TOKENS), logits_after(model, [1, 2, 3])
    cache, rows = _core.KVCache(model), model.logits()

    def ring(*_):
        own = model.logits()
        model.forward([(cache.sequence(), [1, 2, 3], 1)], own, threads=64)
        inner.append(bytes(own))

    alarm(0.05, ring)
    model.forward([(cache.sequence(), TOKENS, 1)], rows, threads=64)
    assert inner == [short]
    assert bytes(rows) == expected


_CTRL_C = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path[:0] = sys.argv[1:]
from core.test_cancel import TOKENS, _core, slow_model
model = slow_model()
sequence = _core.KVCache(model).sequence()
model.forward([(sequence, TOKENS, 0)], threads=2)
pressed = []
def press():
    time.sleep(0.05)
    pressed.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
for _ in range(5):
    threading.Thread(target=press).start()
    try:
        model.forward([(sequence, TOKENS, 0)], threads=2)
    except KeyboardInterrupt:
        pressed[-1] = time.perf_counter() - pressed[-1]
    assert sequence.length == len(TOKENS)
print(min(pressed))
"""


def test_ctrl_c():
    command = [sys.executable, "-c", _CTRL_C, str(Path(__file__).parents[1])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1
