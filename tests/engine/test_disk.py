"""The prompt cache on disk: what it takes up is what was computed, and where it cannot, nothing else changes."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import CacheFullError, CacheWarning, _core
from fastllm.engine.disk import PromptCache
from fastllm.engine.folder import file_bytes
from helpers import writers

PAGE = _core.PAGE
WINDOWS = {"full": (), "windows": (20, 0, 150), "only windows": (100, 100)}
KV = ["f32", "f16", "q8"]
KEY = bytes(32)


def make_model(windows="full", kv="f16", seed=0):
    layers = len(WINDOWS[windows]) or 2
    config = writers.config(40, 57, 4, 2, 300, n_layers=layers, max_seq=2048, windows=WINDOWS[windows])
    return _core.Model(config, writers.core_tensors(config, writers.random_weights(config, seed), "q8"), kv_dtype=kv)


MODELS = {windows: make_model(windows) for windows in WINDOWS}


@pytest.fixture(params=WINDOWS)
def model(request):
    return MODELS[request.param]


def text(count, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(300) for _ in range(count)]


def extend(sequence, tokens, model):
    """Appends what the sequence has not of `tokens`, in forwards of 64, and returns the last logits."""
    logits = model.logits()
    while sequence.length < len(tokens):
        part = tokens[sequence.length : sequence.length + 64]
        model.forward([(sequence, part, int(sequence.length + len(part) == len(tokens)))], logits)
    return bytes(logits)


def computed(model, tokens):
    """The logits after `tokens`, computed from the first on."""
    return extend(_core.KVCache(model).sequence(), tokens, model)


def save(folder, model, tokens, **options):
    """Reads a prompt and stores it."""
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache, **options), cache.sequence()
    extend(sequence, tokens, model)
    disk.save(tokens, sequence)
    disk.close()


def take_up(folder, model, tokens, **options):
    """How many tokens a new cache takes up, and the logits after `tokens` that follow."""
    cache = _core.KVCache(model)
    pages, length = PromptCache(folder, KEY, cache, **options).load(tokens)
    sequence = cache.sequence(pages, length)
    assert sequence.length == length < len(tokens)
    return length, extend(sequence, tokens, model)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


# ---- prefixes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("count", [512, 575, 576, 577, 700])
def test_a_prompt_is_taken_up(folder, windows, kv, count):
    model, tokens = make_model(windows, kv), text(count)
    save(folder, model, tokens)
    length, logits = take_up(folder, model, tokens)
    assert length == count - 1
    assert logits == computed(model, tokens)


def test_a_longer_prompt_goes_on_where_the_stored_one_ends(folder, model):
    tokens = text(900)
    save(folder, model, tokens[:600])
    assert take_up(folder, model, tokens) == (600, computed(model, tokens))
    save(folder, model, tokens)
    assert take_up(folder, model, tokens) == (899, computed(model, tokens))
    assert take_up(folder, model, tokens[:610]) == (600, computed(model, tokens[:610]))


def test_a_short_prompt_is_not_stored(folder, model):
    save(folder, model, text(511))
    assert not list(folder.iterdir())


def common(one, other):
    """How many tokens two texts have in common from their beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(data=st.data(), windows=st.sampled_from(list(WINDOWS)))
@settings(max_examples=25)
def test_the_longest_common_beginning_is_taken_up(tmp_path_factory, data, windows):
    """Of any prompts that were stored in any order, in a tree of random branches."""
    folder, model = tmp_path_factory.mktemp("tree"), MODELS[windows]
    branch = st.tuples(st.integers(0, 4), st.integers(0, 900), st.integers(1, 400))
    prompts = [text(700)]
    for number, (base, at, count) in enumerate(data.draw(st.lists(branch, min_size=1, max_size=4))):
        prompts.append(prompts[base % len(prompts)][:at] + text(count, number + 1))
    *stored, asked = prompts
    for prompt in stored:
        save(folder, model, prompt)
    length, logits = take_up(folder, model, asked)
    assert logits == computed(model, asked)
    longest = 0
    for prompt in stored:
        shared = common(asked, prompt)
        if len(prompt) >= 512:
            longest = max(longest, shared if shared == len(prompt) else shared // PAGE * PAGE)
    longest = min(longest, len(asked) - 1)
    assert length == longest if windows == "full" else length <= longest
    shutil.rmtree(folder)


def test_another_model_is_not_taken_up(folder):
    model, tokens = MODELS["full"], text(600)
    save(folder, model, tokens)
    cache = _core.KVCache(model)
    assert PromptCache(folder, b"\1" * 32, cache).load(tokens) == ([], 0)


def test_pages_in_memory_are_not_read(folder, model, monkeypatch):
    tokens = text(1000)
    save(folder, model, tokens)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, tokens[:640], model)
    held = [sequence.page(i) for i in range(10)]
    read, real = [], disk._folder.read
    monkeypatch.setattr(disk._folder, "read", lambda name, room: read.append(name) or real(name, room))
    assert disk.load(tokens[:640], held) == (held, 639)
    assert disk.load(tokens[:500], held[:7]) == (held[:7], 448)
    assert not read
    pages, length = disk.load(tokens, held)
    assert length == 999
    assert len(set(read)) == len(read) <= 6 * len(cache.windows)
    assert extend(cache.sequence(pages, length), tokens, model) == computed(model, tokens)


def test_a_growing_prompt_can_be_saved_on_the_way(folder):
    """So that a windowed model's prompt can be taken up in the middle, where another one branches off."""
    model, tokens = MODELS["windows"], text(1200)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    for end in (512, 768, 1200):
        extend(sequence, tokens[:end], model)
        disk.save(tokens, sequence)
    disk.close()
    for end, length in ((520, 512), (800, 768), (1200, 1200)):
        asked = [*tokens[:end], *text(40, 1)]
        assert take_up(folder, model, asked) == (length, computed(model, asked))


def test_a_prompt_is_written_once(folder, model):
    tokens = text(700)
    save(folder, model, tokens)
    before = {path.name: os.stat(path).st_ino for path in folder.iterdir()}
    save(folder, model, tokens[:640])
    save(folder, model, tokens)
    assert {path.name: os.stat(path).st_ino for path in folder.iterdir()} == before


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_the_folder_stays_within_its_bound(folder, model):
    """The oldest prompts go first, and of a prompt the end goes first."""
    (page,) = {sum(_core.KVCache(model).page_bytes)}
    most = 30 * (page + 128 * len(_core.KVCache(model).page_bytes))
    prompts = [text(640, seed) for seed in range(5)]
    for prompt in prompts:
        save(folder, model, prompt, most_bytes=most)
        assert sum(os.stat(path).st_size for path in folder.iterdir()) <= most
    assert take_up(folder, model, prompts[4])[0] == 639
    assert take_up(folder, model, prompts[0])[0] == 0


def test_what_was_used_stays(folder):
    model, prompts = MODELS["full"], [text(640, seed) for seed in range(4)]
    most = 30 * file_bytes(_core.KVCache(model).page_bytes[0])
    for prompt in prompts[:3]:
        save(folder, model, prompt, most_bytes=most)
    take_up(folder, model, prompts[0], most_bytes=most)
    save(folder, model, prompts[3][:512], most_bytes=most)
    lengths = [take_up(folder, model, prompt)[0] for prompt in prompts]
    assert lengths == [639, 2 * PAGE, 639, 512]


def test_the_beginning_of_a_prompt_that_is_too_large_is_stored(folder):
    model, tokens = MODELS["full"], text(1000)
    most = 10 * file_bytes(_core.KVCache(model).page_bytes[0]) + 1
    save(folder, model, tokens, most_bytes=most)
    assert take_up(folder, model, tokens) == (640, computed(model, tokens))
    save(folder, MODELS["windows"], tokens, most_bytes=most)  # its windowed pages are those at the end
    assert take_up(folder, MODELS["windows"], tokens)[0] == 0


def test_a_full_kv_cache_is_said_and_holds_nothing(folder, model):
    tokens = text(700)
    save(folder, model, tokens)
    cache = _core.KVCache(model, limit=3 * sum(_core.KVCache(model).page_bytes))
    disk = PromptCache(folder, KEY, cache)
    with pytest.raises(CacheFullError):
        disk.load(tokens)
    assert cache.used == 0
    cache.limit = None
    assert disk.load(tokens)[1] == 699


def test_pages_are_given_back_once_they_are_written(folder, model):
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, text(700), model)
    disk.save(text(700), sequence)
    disk.close()
    del sequence
    assert cache.used == 0
    pages, _ = disk.load(text(700))
    assert cache.used > 0
    del pages
    gc.collect()
    assert cache.used == 0


@pytest.fixture
def slow(monkeypatch):
    """Holds the writer of a PromptCache up until it is called."""
    go = threading.Event()

    def hold_up(disk):
        real = disk._folder.write
        monkeypatch.setattr(disk._folder, "write", lambda *args: go.wait(60) and real(*args))
        return go.set

    return hold_up


def test_pages_that_wait_can_be_dropped(folder, slow):
    model, tokens = MODELS["full"], text(700)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    go = slow(disk)
    extend(sequence, tokens, model)
    start = time.monotonic()
    disk.save(tokens, sequence)
    assert time.monotonic() - start < 30  # it does not wait for the writer
    del sequence
    held = cache.used
    assert held == 11 * cache.page_bytes[0]
    disk.drop()
    go()
    disk.close()
    assert cache.used == 0
    assert take_up(folder, model, tokens)[0] <= PAGE


# ---- damage ----------------------------------------------------------------------------------------------------------


@given(data=st.data(), windows=st.sampled_from(list(WINDOWS)))
@settings(max_examples=25)
def test_damaged_files_shorten_what_is_taken_up(tmp_path_factory, data, windows):
    folder, model, tokens = tmp_path_factory.getbasetemp() / windows.replace(" ", "_"), MODELS[windows], text(700)
    save(folder, model, tokens)
    for path in data.draw(st.sets(st.sampled_from(sorted(folder.iterdir())), max_size=3)):
        blob = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.booleans()):
            blob[at] ^= data.draw(st.integers(1, 255))
        else:
            del blob[at:]
        path.write_bytes(blob)
    length, logits = take_up(folder, model, tokens)
    assert length == 699 or length % PAGE == 0
    assert logits == computed(model, tokens)


def test_a_damaged_file_is_mended_by_the_next_save(folder, model):
    tokens = text(700)
    save(folder, model, tokens)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert take_up(folder, model, tokens)[0] == 0
    save(folder, model, tokens)
    assert take_up(folder, model, tokens)[0] == 699


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_files_that_cannot_be_read_or_removed_count_as_absent(folder, monkeypatch):
    model, tokens = MODELS["full"], text(700)
    save(folder, model, tokens)

    def fail(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", fail)
    monkeypatch.setattr("os.unlink", fail)
    assert PromptCache(folder, KEY, _core.KVCache(model)).load(tokens) == ([], 0)


def test_a_folder_that_cannot_be_written_gives_one_warning(folder, monkeypatch):
    model, tokens = MODELS["full"], text(700)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, tokens, model)
    shutil.rmtree(folder)
    disk.save(tokens, sequence)
    with pytest.warns(CacheWarning, match=r"cache cannot be written: No such file or directory") as warned:
        disk.close()
    assert len(warned) == 1
    disk.save(tokens, sequence)
    disk.close()
    assert disk.load(tokens) == ([], 0)
    del sequence
    assert cache.used == 0


# ---- processes -------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import importlib.util
spec = importlib.util.spec_from_file_location("test_disk", sys.argv[2])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.{}(Path(sys.argv[3]), *sys.argv[4:])
"""


def start(function, folder, *args):
    """Runs a function of this file in a process of its own."""
    paths = (Path(__file__).parents[1], __file__, folder)
    command = [sys.executable, "-c", CHILD.format(function.__name__), *map(str, (*paths, *args))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
    print("saving", flush=True)
    try:
        disk.close()
    except KeyboardInterrupt:
        print("interrupted", flush=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_an_interrupt_drops_what_is_not_written(folder):
    child = start(save_slowly, folder)
    assert child.stdout.readline() == "saving\n"
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
            code = 0 if disk.load(tokens)[1] == 699 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    go()
    disk.close()
