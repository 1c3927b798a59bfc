"""The prompt cache on disk: what it takes up is what was computed, and where it cannot, nothing else changes."""

import os
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import CacheWarning, _core
from fastllm.engine.disk import PromptCache
from fastllm.engine.folder import file_bytes
from helpers.prompts import KEY, KV, MODELS, WINDOWS, computed, extend, make_model, save, take_up, text

PAGE = _core.PAGE


@pytest.fixture(params=WINDOWS)
def model(request):
    return MODELS[request.param]


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
    assert PromptCache(folder, b"\1" * 32, cache).load(tokens, cache.sequence()) is None


def test_pages_in_memory_are_not_read(folder, model, monkeypatch):
    tokens = text(1000)
    save(folder, model, tokens)
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, tokens[:640], model)
    read, real = [], disk._folder.read
    monkeypatch.setattr(disk._folder, "read", lambda name, room: read.append(name) or real(name, room))
    assert disk.load(tokens[:641], sequence) is None
    assert disk.load(tokens[:500], sequence) is None
    assert not read
    longer = disk.load(tokens, sequence)
    assert longer.length == 999
    assert len(set(read)) == len(read) <= 6 * len(cache.windows)
    assert sequence.length == 640
    assert extend(longer, tokens, model) == extend(sequence, tokens, model) == computed(model, tokens)


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
    save(folder, model, tokens)
    assert {path.name: os.stat(path).st_ino for path in folder.iterdir()} == before


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_the_folder_stays_within_its_bound(folder, model):
    """The oldest prompts go first."""
    prompts = [text(640, seed) for seed in range(5)]
    save(folder, model, prompts[0])
    most = 3 * sum(os.stat(path).st_size for path in folder.iterdir())
    for prompt in prompts:
        save(folder, model, prompt, most_bytes=most)
        assert sum(os.stat(path).st_size for path in folder.iterdir()) <= most
    assert [take_up(folder, model, prompt)[0] for prompt in prompts] == [0, 0, 639, 639, 639]


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


def test_a_kv_cache_without_room_is_left_as_it_was(folder, model):
    tokens = text(700)
    save(folder, model, tokens)
    cache = _core.KVCache(model)
    disk, kept = PromptCache(folder, KEY, cache), [cache.sequence() for _ in range(4)]
    for seed, sequence in enumerate(kept):
        extend(sequence, text(300, seed + 1), model)
    del sequence
    used = cache.limit = cache.used
    assert disk.load(tokens, cache.sequence()) is None
    cache.limit = used // 2  # less than what is in use
    assert disk.load(tokens, cache.sequence(), lambda: False) is None
    assert cache.used == used
    cache.limit = used

    def evict():
        kept.pop()
        return True

    sequence = disk.load(tokens, cache.sequence(), evict)
    assert sequence.length == 699
    assert len(kept) in range(4)
    assert cache.used <= used
    cache.limit = None
    assert extend(sequence, tokens, model) == computed(model, tokens)


def test_pages_are_given_back_once_they_are_written(folder, model):
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache), cache.sequence()
    extend(sequence, text(700), model)
    disk.save(text(700), sequence)
    disk.close()
    del sequence
    assert cache.used == 0
    longest = disk.load(text(700), cache.sequence())
    assert cache.used > 0
    del longest
    assert cache.used == 0


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
    assert take_up(folder, model, tokens)[0] == 0


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
    assert disk.load(tokens, cache.sequence()) is None
    del sequence
    assert cache.used == 0
