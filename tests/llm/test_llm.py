"""load, generate, logits: what a user of the package sees."""

import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, ContextError, OptionError, TokenizerError, _core
from fastllm.decoding import Sampling
from fastllm.engine import Batch
from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.weights import store
from fastllm.weights.packing import assemble
from helpers import writers
from helpers.calls import run
from helpers.writers import SMALL

PROMPT = "the ocean once"


# ---- generate --------------------------------------------------------------------------------------------------------


def test_text_and_ids_are_the_same_prompt(llm):
    ids = llm.tokenize(PROMPT)
    assert ids[0] == llm.bos == 1
    assert llm.tokenize(PROMPT, bos=False) == ids[1:]
    assert llm.detokenize(ids) == PROMPT
    texts = {llm.generate(p, max_tokens=30, seed=1) for p in (PROMPT, ids, tuple(ids), np.array(ids))}
    assert len(texts) == 1
    assert texts.pop()


def test_run_c_s_texts_end_at_bos(llm):
    """And turns of a chat at EOS too, which its tokenizer knows as an end of texts."""
    assert llm.stop == (1,)
    assert set(llm.chat_stop) == {1, 2} > set(llm.tokenizer.ends) == {2}


@pytest.mark.parametrize("seed", range(5))
def test_stream_is_the_whole(llm, seed):
    options = {"max_tokens": 60, "temperature": 1.5, "top_p": 1, "seed": seed}
    whole = llm.generate(PROMPT, **options)
    stream = llm.generate(PROMPT, stream=True, **options)
    pieces = list(stream)
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    assert all(pieces)
    assert stream.finish_reason == stream.generation.finish_reason
    assert llm.detokenize([*llm.tokenize(PROMPT), *stream.generation.tokens]) == PROMPT + whole


def test_the_text_of_greedy_tokens_is_the_argmax_of_logits(llm):
    """generate against logits: the two share only the forward."""
    ids = llm.tokenize(PROMPT)
    for _ in range(20):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    start = len(llm.tokenize(PROMPT))
    assert list(llm.start(PROMPT, Sampling(temperature=0), max_tokens=20, seed=0, stop=())) == ids[start:]


def test_max_tokens(llm):
    def tokens(count, **options):
        return list(llm.start([1, 5, 9], Sampling(), max_tokens=count, seed=2, stop=(), **options))

    assert tokens(0) == []
    assert tokens(7) == tokens(40)[:7]
    assert llm.generate(PROMPT, max_tokens=0) == ""
    stream = llm.generate(PROMPT, max_tokens=3, stream=True, seed=1)
    assert stream.finish_reason is None
    "".join(stream)
    assert (stream.finish_reason, len(stream.generation.tokens)) == ("length", 3)


def test_stop_tokens(llm):
    """A stop token ends the text and is no part of it."""
    sampling = Sampling(temperature=1.5, top_p=1)
    free = llm.start([1, 5], sampling, max_tokens=50, seed=3, stop=())
    tokens = list(free)
    assert free.finish_reason == "length"
    stop = tokens[20]
    stopped = llm.start([1, 5], sampling, max_tokens=50, seed=3, stop=(stop,))
    assert list(stopped) == tokens[: tokens.index(stop)]
    assert stopped.finish_reason == "stop"
    # The model's own, without being asked: llama2.c ends a text at BOS.
    always = llm.generate([1, 5], logit_bias={1: 1e4}, temperature=0, stream=True)
    assert list(always) == []
    assert always.finish_reason == "stop"


# ---- stop strings ----------------------------------------------------------------------------------------------------


def written(llm, monkeypatch, tokens, stop):
    """The pieces of a stream whose model writes just these tokens."""
    options = {"max_tokens": len(tokens), "temperature": 0, "stop": stop, "stream": True}
    stream = llm.generate([1], **options)
    monkeypatch.setattr(type(stream.generation), "__iter__", lambda _: iter(tokens))
    return stream, list(stream)


def test_stop_strings_end_the_text(llm):
    options = {"max_tokens": 60, "seed": 5, "temperature": 1.2}
    free = llm.generate(PROMPT, stream=True, **options)
    whole = "".join(free)
    for begin, end in ((10, 11), (10, 14), (3, 25), (0, 4)):
        stop = whole[begin:end]
        for stops in (stop, [stop], ["never \u2603 said", stop]):
            stream = llm.generate(PROMPT, stop=stops, stream=True, **options)
            assert "".join(stream) == whole[: whole.index(stop)]
            assert stream.finish_reason == "stop"
    stream = llm.generate(PROMPT, stop="never \u2603 said", stream=True, **options)
    assert "".join(stream) == whole
    assert stream.finish_reason == free.finish_reason


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [
        ("<end>", ["a", "b", "<x", "c"]),  # what may begin a stop string waits until it does not
        ("b<x", ["a"]),
        ("<xc", ["a", "b"]),
        (["zzz", "x"], ["a", "b", "<"]),
        (["c", "b<xcc"], ["a", "b<x"]),  # the longer one was still possible when the shorter one came
        ("ab<xc!", ["ab<xc"]),  # at the end of the text nothing waits any more
    ],
)
def test_stop_strings_across_tokens(llm, monkeypatch, stop, pieces):
    stream, found = written(llm, monkeypatch, [3 + ord(character) for character in "ab<xc"], stop)
    assert found == pieces
    assert (stream.finish_reason == "stop") == ("".join(pieces) != "ab<xc")


def test_a_stop_string_is_the_first_of_several(llm, monkeypatch):
    """Of two that come with one token, the one that begins first cuts the text."""
    words = [text for text, _ in writers.tokenizer_words()]
    _, found = written(llm, monkeypatch, [words.index(" a"), words.index(" the")], ["he", "t"])
    assert "".join(found) == "a "


# ---- limits and options ----------------------------------------------------------------------------------------------


def test_the_context_is_the_limit(write_model):
    path = write_model(writers.config(40, 57, 4, 2, 300, max_seq=70))
    llm = fastllm.load(path, threads=1)
    assert llm.context == llm.config.max_seq == 70
    for size in (1, 69, 70):
        generation = llm.start([5] * size, Sampling(), max_tokens=None, seed=1, stop=())
        # The last token is drawn from the last position and need not fit itself.
        assert len(list(generation)) == 71 - size
        assert generation.finish_reason == "length"
        assert len(llm.logits([5] * size)) == size
    for call in (lambda: llm.generate([5] * 71), lambda: llm.logits([5] * 71)):
        with pytest.raises(ContextError, match=r"71 .*70"):
            call()
    short = fastllm.load(path, threads=1, context=10)
    assert short.context == 10
    assert len(list(short.start([5] * 4, Sampling(), max_tokens=99, seed=1, stop=()))) == 7
    with pytest.raises(ContextError):
        short.generate([5] * 11)
    # A shorter context changes no number.
    assert (short.logits([5, 6, 7]) == llm.logits([5, 6, 7])).all()
    for context in (0, -1, 71):
        with pytest.raises(OptionError, match="context must be between 1"):
            fastllm.load(path, context=context)


def test_seeds(llm):
    def text(seed):
        return llm.generate(PROMPT, max_tokens=40, temperature=1.5, seed=seed)

    assert text(11) == text(11)
    assert len({text(seed) for seed in (0, 1, 2, (1 << 64) - 1)}) == 4
    assert len({text(None) for _ in range(3)}) == 3  # a new one each time


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": None},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": 1 << 31},
        {"min_p": 2},
        {"typical_p": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": 1e9},
        {"logit_bias": {300: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"the": 1.0}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": {5: float("inf")}},
        {"logit_bias": {5: 1e39}},
        {"logit_bias": {5: "much"}},
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 1.5},
        {"seed": "lucky"},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": "all"},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [3]},
    ],
    ids=str,
)
def test_options_that_are_none(llm, options):
    name = next(iter(options)).replace("_", ".")
    with pytest.raises(OptionError, match=name) as error:
        llm.generate(PROMPT, **options)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", [[], [300], [-1], [1, 1 << 40]])
def test_prompts_that_are_none(llm, prompt):
    with pytest.raises(OptionError):
        llm.generate(prompt)
    with pytest.raises(OptionError):
        llm.logits(prompt)


def test_an_empty_text_begins_at_bos(llm):
    assert llm.generate("", max_tokens=9, seed=1) == llm.generate([1], max_tokens=9, seed=1)


@pytest.mark.parametrize(
    "options", [{"dtype": "int3"}, {"dtype": 8}, {"threads": 0}, {"threads": 1.5}, {"threads": "all"}], ids=str
)
def test_load_options_that_are_none(write_model, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        fastllm.load(write_model(), **options)


def test_an_instruction_set_that_is_none(write_model, monkeypatch):
    monkeypatch.setenv("FASTLLM_ISA", "mmx")
    with pytest.raises(OptionError, match=r"'mmx' is no instruction set.*scalar"):
        fastllm.load(write_model())


def test_a_bias_that_overflows_once_divided(llm):
    """Allowed by the options, infinite at this temperature: the token it is for, or an error."""
    try:
        text = llm.generate([1], logit_bias={70: 3.4e38}, temperature=0.5, top_p=1, max_tokens=3, seed=1)
    except OptionError:
        return
    assert text == "CCC"


# ---- logits ----------------------------------------------------------------------------------------------------------


def test_logits(llm):
    tokens = list(range(2, 150))
    logits = llm.logits(tokens)
    assert logits.shape == (148, SMALL.vocab_size)
    assert logits.dtype == np.float32
    assert (llm.logits(tokens) == logits).all()
    llm.generate(tokens[:20], max_tokens=5)  # what the cache holds by now changes nothing
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
    """What threads of one model write is what each would have written alone."""
    jobs = [(PROMPT if i % 3 else [1, 5, i], {"seed": i, "max_tokens": 25 + i}) for i in range(12)]
    serial = [llm.generate(prompt, **options) for prompt, options in jobs]
    tokens = list(range(100))
    logits = llm.logits(tokens)
    with ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(llm.generate, prompt, **options) for prompt, options in jobs]
        rows = [pool.submit(llm.logits, tokens) for _ in range(4)]
        assert [text.result() for text in texts] == serial
        assert all((row.result() == logits).all() for row in rows)


def test_interleaved_streams(llm):
    """Two texts that take turns in one thread, and one that is left half way."""
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
    """Another thread counts while a forward runs: with the GIL held it would not get a turn until the end."""
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
    assert end - start > 0.02  # long enough to tell: the interpreter switches threads every 5 ms
    assert len(inside) >= 3
    # Turns were taken all along, not at the ends only.
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
    """The collector may clear a sequence's links before it frees it: its blocks must still find their way back."""
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
    """Its blocks have another size: the forward would write past them."""
    large = writers.config(256, 64, 4, 4, 300, n_layers=40, max_seq=64)
    done = run(OTHER_CACHE, write_model(), write_model(large, seed=1))
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


def test_weights_outlive_their_names():
    """A model keeps its weights, a sequence its pool."""
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
    """Neither the import nor a text from token ids waits for numpy or sentencepiece."""
    code = """
import sys
import fastllm
heavy = {"numpy", "sentencepiece", "tokenizers", "fastllm._core"}
print(sorted(heavy & set(sys.modules)))
llm = fastllm.load(sys.argv[1])
assert llm.generate([1], max_tokens=3)
print(sorted(heavy & set(sys.modules)))
"""
    done = run(code, write_model())
    assert done.stdout.splitlines() == ["[]", "['fastllm._core']"], done.stderr


def test_names_of_the_package():
    assert set(fastllm.__all__) <= set(dir(fastllm)) | {"LLM", "load"}
    assert all(hasattr(fastllm, name) for name in fastllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastllm.nothing


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_weights_are_held_once(write_model, tmp_path):
    """A packed checkpoint is let go of; a converted one stays mapped and is not copied."""
    path = write_model()
    llm = fastllm.load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    checkpoint = open_checkpoint(path)
    converted = tmp_path / "model.safetensors"
    store.save(converted, assemble(recipe(checkpoint), dtype=None, threads=1))
    mapped = fastllm.load(converted)
    assert str(converted) in Path("/proc/self/maps").read_text()
    assert (mapped.logits([1, 2, 3]) == llm.logits([1, 2, 3])).all()


# ---- iterating over a Generation -------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "lookup", "draft"])
def start(request, llm):
    """Starts one and the same text, with and without guesses."""
    guesses = {"plain": {}, "lookup": {"lookup": True}, "draft": {"draft": llm}}[request.param]

    def generation(seed=3):
        return llm.start([1, 5, 9] * 6, Sampling(repetition_penalty=1.2), max_tokens=20, seed=seed, stop=(), **guesses)

    return generation


@pytest.mark.parametrize("breaks", [(0,), (1,), (5,), (19,), (20,), (2, 3, 8)])
def test_iterating_goes_on_where_it_stopped(start, breaks):
    whole = list(start())
    assert len(whole) == 20
    generation, parts = start(), []
    for count in breaks:
        parts += itertools.islice(generation, count)
        assert generation.tokens == parts
    parts += generation
    assert parts == generation.tokens == whole
    assert generation.finish_reason == "length"
    assert list(generation) == []


def test_iterators_of_one_generation_are_one(start):
    whole = list(start())
    generation = start()
    one = iter(generation)
    assert [next(one), next(iter(generation)), *itertools.islice(generation, 3)] == whole[:5]
    one.close()  # ends that iterator, not the text
    assert [*one, *generation] == whole[5:]
    pairs = start()
    assert list(zip(pairs, pairs, strict=True)) == list(zip(whole[::2], whole[1::2], strict=True))


def test_an_iterator_that_is_left_gives_its_sequence_back(llm):
    prompt = [1, *range(7, 60)]
    for token in llm.start(prompt, Sampling(), max_tokens=20, seed=1):
        assert token in range(300)
        break
    again = llm.start(prompt, Sampling(), max_tokens=20, seed=1)
    next(iter(again))
    assert again.cached == len(prompt) - 1


def test_a_text_has_one_writer(llm):
    def start():
        return llm.start([1, 2, 3], Sampling(), max_tokens=12, seed=5, stop=())

    whole, generation, batch = list(start()), start(), Batch(llm._engine)
    head = list(itertools.islice(generation, 4))
    batch.add(generation)  # a text that was begun may go on in a batch
    for other in (batch, Batch(llm._engine)):
        with pytest.raises(OptionError, match="already"):
            other.add(generation)
    with pytest.raises(OptionError, match="batch"):
        iter(generation)
    while len(generation.tokens) < 8:
        batch.step()
    batch.drop(generation)
    iterator = iter(generation)
    middle = [next(iterator)]
    with pytest.raises(OptionError, match="already"):
        batch.add(generation)
    del iterator
    batch.add(generation)
    batch.close()
    assert generation.tokens == whole[:9] == head + generation.tokens[4:8] + middle
    assert list(generation) == whole[9:]
    batch.add(generation)  # it has ended
    assert batch.step() == [(generation, None)]
    assert list(generation) == []


def test_two_threads_iterate_over_one_generation(llm):
    """One gets the text, the other an error, however they meet."""
    whole = list(llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()))
    for _ in range(10):
        generation, meeting = llm.start([1, 2], Sampling(), max_tokens=60, seed=5, stop=()), threading.Barrier(2)

        def write(generation=generation, meeting=meeting):
            meeting.wait()
            try:
                return list(generation)
            except OptionError:
                return None

        with ThreadPoolExecutor(2) as pool:
            texts = [future.result() for future in [pool.submit(write) for _ in range(2)]]
        # The second may also come after the end: then there is nothing left.
        assert sorted(texts, key=lambda text: text or []) in ([None, whole], [[], whole])
        assert generation.tokens == whole
