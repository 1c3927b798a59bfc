"""The prefix tree finds the longest beginning that a kept text shares, and gives what would be computed."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import _core
from fastllm.engine.prefix import KEPT, PAGE, PrefixTree, common_length
from helpers.architectures import random_llm

MODELS = {name: random_llm(name, "q8")._model for name in ("qwen", "gemma")}


def sequence_of(tree, tokens):
    """A sequence of a text, computed from as much as the tree knows."""
    sequence, _ = tree.find([*tokens, 0])
    if len(tokens) > sequence.length:
        model = tree.cache_model
        model.forward([(sequence, tokens[sequence.length :], 0)])
    return sequence


def tree_of(name, kept=None):
    tree = PrefixTree(_core.KVCache(MODELS[name]), kept)
    tree.cache_model = MODELS[name]
    return tree


def logits_after(model, sequence, token):
    rows = model.logits()
    model.forward([(sequence, [token], 1)], rows)
    return np.frombuffer(memoryview(rows), np.float32).copy()


def text_of(shape):
    """A text of runs of one token each, so that texts share beginnings of any length often."""
    return [token for token, count in shape for _ in range(count)]


SHAPES = st.lists(st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 30, 63, 64, 65, 80])), min_size=1, max_size=3)


@given(st.lists(st.tuples(SHAPES, st.booleans()), min_size=1, max_size=8))
def test_finds_the_longest_beginning_of_any_text(texts):
    tree, kept = tree_of("qwen"), []
    for shape, keep in texts:
        text = text_of(shape)
        sequence, known = tree.find(text)
        longest = max((common_length(text[:-1], other) for other in kept), default=0)
        assert sequence.length == known == longest
        if keep:
            tree.keep(text, sequence_of(tree, text))
            kept.append(text)


@pytest.mark.parametrize("name", MODELS)
@given(st.lists(SHAPES, min_size=2, max_size=6))
def test_what_is_found_is_what_would_be_computed(name, texts):
    """With windows (20, none, 70) less may be found, since pages left of them are given back: never something wrong."""
    model, tree = MODELS[name], tree_of(name)
    for shape in texts:
        text = text_of(shape)
        found, known = tree.find([*text, 5])
        assert found.length <= known <= len(text)
        if text[found.length :]:
            model.forward([(found, text[found.length :], 0)])
        tree.keep(text, found)
        alone = _core.KVCache(model).sequence()
        model.forward([(alone, text, 0)])
        assert (logits_after(model, found, 5) == logits_after(model, alone, 5)).all()


@given(st.lists(st.tuples(SHAPES, st.integers(0, 3)), min_size=1, max_size=8))
def test_evicting_frees_all(texts):
    tree = tree_of("qwen")
    for shape, evict in texts:
        text = text_of(shape)
        tree.keep(text, sequence_of(tree, text))
        for _ in range(evict):
            tree.evict(1)
        # What is left is still right.
        found, _ = tree.find([*text, 5])
        model = tree.cache_model
        if text[found.length :]:
            model.forward([(found, text[found.length :], 0)])
        alone = _core.KVCache(model).sequence()
        model.forward([(alone, text, 0)])
        assert (logits_after(model, found, 5) == logits_after(model, alone, 5)).all()
        del found
    while tree.evict(1):
        pass
    assert tree.cache.used == 0
    assert tree._leaves == 0


def test_pages_are_shared():
    tree = tree_of("qwen")
    system = [3] * 130
    for i in range(5):
        text = [*system, *[10 + i] * 100]
        tree.keep(text, sequence_of(tree, text))
    # 2 full pages of the system prompt once, and of each text the other 2, which begin with a copy of what is shared.
    assert tree.cache.used == tree.cache.page_bytes[0] * (2 + 5 * 2)


def test_only_the_latest_texts_are_kept():
    tree = tree_of("qwen", KEPT)
    for i in range(30):
        tree.keep([i] * 70, sequence_of(tree, [i] * 70))
    assert tree.cache.used == KEPT * 2 * tree.cache.page_bytes[0]
    found = [tree.find([i] * 71)[0].length for i in range(30)]
    assert found == [0] * (30 - KEPT) + [70] * KEPT


def test_what_was_used_last_is_evicted_last():
    tree = tree_of("qwen")
    for i in range(4):
        tree.keep([i] * 70, sequence_of(tree, [i] * 70))
    assert tree.find([0] * 71)[1] == 70
    tree.evict(2)  # both pages of text 1
    assert [tree.find([i] * 71)[1] for i in (0, 2, 3)] == [70] * 3
    assert tree.find([1] * 71)[1] == 0


def test_a_window_goes_on_at_the_end_of_a_text_and_where_texts_part():
    tree, model = tree_of("gemma"), MODELS["gemma"]
    assert sorted(tree.cache.windows) == [0, 20, 70]
    text = [7] * 200
    sequence, _ = tree.find([*text, 1])
    for size in (64, 64, 62, *[1] * 10):  # a forward gives back what those before it have left
        model.forward([(sequence, [7] * size, 0)])
    tree.keep(text, sequence)
    assert tree.find([*text, 1])[0].length == 200
    found, known = tree.find([*[7] * 130, 9, 9])
    assert known == 130
    assert found.length <= 64


def test_threads():
    tree, wrong = tree_of("qwen", KEPT), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                text = [int(rng.integers(0, 3))] * int(rng.integers(1, 200))
                sequence = sequence_of(tree, text)
                assert sequence.length == len(text)
                if rng.random() < 0.5:
                    tree.keep(text, sequence)
                else:
                    tree.leave(text, sequence)
                if rng.random() < 0.2:
                    tree.evict()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(st.lists(st.integers(0, 1), max_size=200), st.lists(st.integers(0, 1), max_size=200), st.integers(0, 150))
def test_common_length(a, b, shared):
    a, b = [5] * shared + a, [5] * shared + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected
    assert PAGE == 64
