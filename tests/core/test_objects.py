"""Objects of _core keep what C points into alive, and two threads cannot use one sampler at once."""

import contextlib
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastllm import OptionError, _core
from fastllm.decoding import Sampling
from helpers import writers
from helpers.liars import Changes
from helpers.writers import SMALL, logits_after


def test_constructors_run_once(model):
    """A second __init__ does not replace memory that is in use, and an object cannot be made without arguments."""
    cache = _core.KVCache(model)
    sequence = cache.sequence()
    model.forward([(sequence, [1, 2], 0)])
    matrix, sampler = _core.pack("f32", 16, 32, "f32", bytes(16 * 32 * 4)), _core.Sampler(9, Sampling(), seed=1)
    for thing, arguments in (
        (cache, (model,)),
        (sequence, (_core.KVCache(model),)),
        (matrix, ("f32", 1, 1, bytes(2048))),
        (sampler, (1 << 20, Sampling())),
        (model, (SMALL, {})),
    ):
        with contextlib.suppress(TypeError):
            thing.__init__(*arguments)  # object's own, which has nothing to do
        with pytest.raises(TypeError):
            type(thing).__new__(type(thing))
    assert matrix.shape == (16, 32)
    assert sequence.length == 2
    model.forward([(sequence, [3], 1)], rows := model.logits())
    assert bytes(rows) == logits_after(model, [1, 2, 3])


def test_a_model_keeps_its_tensors():
    """The caller may change the dict that it gave."""
    tensors = writers.core_tensors(SMALL, writers.random_weights(SMALL), "f32")
    model = _core.Model(SMALL, tensors)
    expected = logits_after(model, [1, 2, 3])
    tensors.clear()
    gc.collect()
    assert logits_after(model, [1, 2, 3]) == expected


def test_buffers_that_are_dropped_during_a_forward():
    """Another thread drops the dict's buffers while C writes to them."""
    cfg = writers.config(64, 128, 4, 4, 64, n_layers=4, max_seq=512)
    model = writers.core_model(cfg, writers.random_weights(cfg), "f32", isa="scalar")
    cache, hidden, entered = _core.KVCache(model), {}, threading.Event()

    def empty():
        entered.wait()
        hidden.clear()
        gc.collect()

    with ThreadPoolExecutor(1) as pool:
        hidden.update({i: _core.Buffer(500 * 64 * 4) for i in range(6)})
        done = pool.submit(empty)
        token = Changes(1, entered, threading.Event.set)
        model.forward([(cache.sequence(), [1] * 499 + [token], 0)], hidden=hidden)
        done.result()
    assert hidden == {}


def test_a_sampler_in_two_threads():
    """A draw is complete or refused: both threads together draw the tokens that one alone draws, each once."""
    vocab, count = 20_000, 400
    options = Sampling(temperature=1e4, typical_p=0.9, presence_penalty=0.1)
    logits = _core.Buffer(vocab * 4)
    alone = _core.Sampler(vocab, options, seed=3)
    expected = [alone.draw(logits) for _ in range(count)]
    shared, drawn, refused, lock = _core.Sampler(vocab, options, seed=3), [], [], threading.Lock()

    def draw():
        while len(drawn) < count:
            try:
                token = shared.draw(logits)
            except OptionError as error:
                assert "in use" in str(error)  # noqa: PT017
                refused.append(1)
                continue
            with lock:
                drawn.append(token)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(draw) for _ in range(3)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    more = [alone.draw(logits) for _ in range(len(drawn) - count)]
    assert sorted(drawn) == sorted(expected + more)
