"""A loaded LLM: logits, threads, the lifetimes of its parts, tokenizers, and what it takes to import it."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError, TokenizerError, _core
from fastllm.decoding import Sampling
from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.weights import store
from fastllm.weights.packing import assemble
from helpers import writers
from helpers.calls import run
from helpers.writers import SMALL

PROMPT = "the ocean once"


# ---- logits ----------------------------------------------------------------------------------------------------------


def test_logits(llm):
    tokens = list(range(2, 150))
    logits = llm.logits(tokens)
    assert logits.shape == (148, SMALL.vocab_size)
    assert logits.dtype == np.float32
    assert (llm.logits(tokens) == logits).all()
    llm.generate(tokens[:20], max_tokens=5)  # the cache now holds this text, which must change nothing
    assert (llm.logits(np.array(tokens)) == logits).all()
    for size in (1, 64, 65):
        assert (llm.logits(tokens[:size]) == logits[:size]).all()


def test_what_a_model_tells(llm, write_model):
    assert llm.isa in [name for name, supported in _core.isas() if supported]
    assert llm.dtypes == ["f32"]
    assert llm.threads == 1
    weights = writers.random_weights(SMALL)
    padded = {name: _core.matrix_bytes("f32", *w.shape) if w.ndim == 2 else w.nbytes for name, w in weights.items()}
    freqs = 4 * SMALL.head_dim // 2
    assert llm.file_bytes == sum(padded.values()) + freqs
    assert llm.bytes_per_token == llm.file_bytes - padded["embed"]
    tied = fastllm.load(write_model(tied=True), threads=1)
    assert tied.bytes_per_token == tied.file_bytes == llm.file_bytes - padded["head"]


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_several_texts_at_once(llm):
    """Threads that share a model write what each would write alone."""
    requests = [(PROMPT if i % 3 else [1, 5, i], {"seed": i, "max_tokens": 25 + i}) for i in range(12)]
    serial = [llm.generate(prompt, **options) for prompt, options in requests]
    tokens = list(range(100))
    logits = llm.logits(tokens)
    with ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(llm.generate, prompt, **options) for prompt, options in requests]
        rows = [pool.submit(llm.logits, tokens) for _ in range(4)]
        assert [text.result() for text in texts] == serial
        assert all((row.result() == logits).all() for row in rows)


def test_interleaved_streams(llm):
    """Two streams that take turns in one thread, and one that is left half way."""
    options = {"max_tokens": 30, "seed": 1}
    alone = [llm.generate(prompt, **options) for prompt in ("the ocean", "once")]
    left = llm.generate("the ocean", stream=True, **options)
    next(left)
    streams = [llm.generate(prompt, stream=True, **options) for prompt in ("the ocean", "once")]
    texts = ["", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    left.close()
    assert list(left) == []
    assert all(whole.startswith(text) and text for whole, text in zip(alone, texts, strict=True))
    assert [llm.generate(prompt, **options) for prompt in ("the ocean", "once")] == alone


def test_a_sequence_belongs_to_one_forward():
    model = writers.core_model(SMALL, writers.random_weights(SMALL), "f32")
    sequence = _core.KVCache(model).sequence()
    with pytest.raises(OptionError, match="in use"):
        model.forward([(sequence, [1], 0), (sequence, [2], 0)])
    assert sequence.length == 0
    with pytest.raises(OptionError, match="no room"):
        model.forward([(sequence, [1], 1)])
    with pytest.raises(OptionError, match="cannot be cut"):
        sequence.truncate(1)


def test_the_gil_is_released():
    """While a forward runs, another Python thread must be able to count."""
    cfg = writers.config(64, 128, 4, 4, 64, n_layers=2, max_seq=512)
    model = writers.core_model(cfg, writers.random_weights(cfg), "f32", isa="scalar")
    cache, tokens = _core.KVCache(model), [1] * 500
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = time.perf_counter()
        model.forward([(cache.sequence(), tokens, 0)])
        end = time.perf_counter()
    finally:
        done.set()
        thread.join()
    inside = [t for t in ticks if start < t < end]
    assert end - start > 0.02  # long enough: the interpreter switches threads every 5 ms
    assert len(inside) >= 3
    # The other thread counted during the forward, not only before and after it.
    assert inside[0] < (start + end) / 2 < inside[-1]


# ---- lifetimes -------------------------------------------------------------------------------------------------------

CYCLES = """
import gc, sys
import fastllm
from fastllm import _core
llm = fastllm.load(sys.argv[1], threads=1)
stream = llm.generate([1], stream=True, max_tokens=50, seed=1)
next(stream)
stream.itself = stream
del stream, llm
gc.collect()
llm = fastllm.load(sys.argv[1], threads=1)
cache = _core.KVCache(llm._model)
sequence = cache.sequence()
llm._model.forward([(sequence, [1, 2], 0)])
cycle = [sequence]
cycle.append(cycle)
del sequence, cycle, cache
gc.collect()
print("fine")
"""


def test_garbage_cycles(write_model):
    """The garbage collector may clear a sequence's references before it frees it; its pages must still be returned."""
    done = run(CYCLES, write_model())
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


OTHER_CACHE = """
import sys
import fastllm
from fastllm import _core
small, large = (fastllm.load(path, threads=1)._model for path in sys.argv[1:])
sequence = _core.KVCache(small).sequence()
try:
    large.forward([(sequence, [1] * 60, 0)])
except fastllm.OptionError as error:
    print("refused")
"""


def test_a_sequence_of_another_model(write_model):
    """A sequence of another model is refused: its pages have another size, and the forward would write past them."""
    large = writers.config(256, 64, 4, 4, 300, n_layers=40, max_seq=64)
    done = run(OTHER_CACHE, write_model(), write_model(large, seed=1))
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


def test_weights_outlive_their_names():
    """A model keeps its weights alive, and a sequence keeps its pool of pages alive."""
    cfg, tokens = SMALL, list(range(80))
    model = writers.core_model(cfg, writers.random_weights(cfg), "f32")
    expected = writers.logits(model, tokens, cfg.vocab_size)
    sequence = _core.KVCache(model).sequence()
    gc.collect()
    assert (writers.append(model, sequence, tokens, cfg.vocab_size) == expected).all()


# ---- without a tokenizer, without numpy ------------------------------------------------------------------------------


def test_without_a_tokenizer(write_model, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    path = write_model(tokenizer=False)
    llm = fastllm.load(path, threads=1)
    assert llm.logits([1, 2]).shape == (2, 300)
    assert len(list(llm.start([1, 2], Sampling(), max_tokens=5, seed=1, stop=()))) == 5
    for call in (
        lambda: llm.generate("the"),
        lambda: llm.tokenize("the"),
        lambda: llm.detokenize([5]),
        lambda: llm.tokenizer,
    ):
        with pytest.raises(TokenizerError) as error:
            call()
        for folder in (path.parent, empty):
            assert f"{folder} has no tokenizer.bin, tok300.bin, tokenizer.model" in str(error.value)


def test_a_named_tokenizer_must_fit(write_model, tmp_path):
    path, other = write_model(), tmp_path / "other.bin"
    other.write_bytes(writers.tokenizer_bin(writers.tokenizer_words(290)))
    with pytest.raises(TokenizerError, match=r"other\.bin has 290 words, the model 300"):
        fastllm.load(path, tokenizer=other)
    with pytest.raises(TokenizerError, match="nothing does not exist"):
        fastllm.load(path, tokenizer=tmp_path / "nothing")


def test_norms_that_are_no_numbers(tmp_path):
    weights = writers.random_weights(SMALL)
    weights["final_norm"][:] = np.nan
    path = tmp_path / "model.bin"
    path.write_bytes(writers.v0(SMALL, weights))
    with pytest.raises(CheckpointError, match="final_norm has a value that is not finite"):
        fastllm.load(path, threads=1)


def test_a_light_import(write_model):
    """Neither importing the package nor a text from token ids imports numpy or sentencepiece."""
    code = """
import sys
import fastllm
heavy = {"numpy", "sentencepiece", "tokenizers", "fastllm._core"}
print(sorted(heavy & set(sys.modules)))
llm = fastllm.load(sys.argv[1])
assert llm.generate([1], max_tokens=3, temperature=0)
print(sorted(heavy & set(sys.modules)))
"""
    done = run(code, write_model())
    assert done.stdout.splitlines() == ["[]", "['fastllm._core']"], done.stderr


def test_names_of_the_package():
    assert all(hasattr(fastllm, name) for name in fastllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastllm.nothing


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_weights_are_held_once(write_model, tmp_path):
    """A checkpoint is closed once it is packed. A converted one stays mapped and is not copied."""
    path = write_model()
    llm = fastllm.load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    checkpoint = open_checkpoint(path)
    converted = tmp_path / "model.safetensors"
    store.save(converted, assemble(recipe(checkpoint), dtype=None, threads=1))
    mapped = fastllm.load(converted)
    assert str(converted) in Path("/proc/self/maps").read_text()
    assert (mapped.logits([1, 2, 3]) == llm.logits([1, 2, 3])).all()
