"""Sequences that fork, are cut, joined from pages and appended to, at random: each gives what a new sequence gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError, _core
from helpers import writers

VOCAB, CONTEXT = 27, 700
WINDOWS = [(0, 0), (20, 0, 70), (1, 130, 64, 1)]
MODELS: dict[Any, Any] = {}


def model_of(windows, kv_dtype):
    if (windows, kv_dtype) not in MODELS:
        cfg = writers.config(24, 32, 4, 2, VOCAB, n_layers=len(windows), max_seq=CONTEXT, windows=windows)
        cfg = cfg._replace(pad_token=3 if kv_dtype == "f16" else -1)
        MODELS[windows, kv_dtype] = writers.core_model(cfg, writers.random_weights(cfg, 2), "f32", kv_dtype=kv_dtype)
    return MODELS[windows, kv_dtype]


class Texts:
    """Sequences of one cache with the tokens that each should hold, and pages that were kept of some."""

    def __init__(self, model):
        self.model, self.cache, self.rng = model, _core.KVCache(model), np.random.default_rng(1)
        self.texts = [(self.cache.sequence(), [])]
        self.kept = []

    def append(self, i, n):
        sequence, tokens = self.texts[i]
        tokens += self.rng.integers(0, VOCAB, min(n, CONTEXT - len(tokens))).tolist()
        if new := tokens[sequence.length :]:
            rows = self.model.logits()
            self.model.forward([(sequence, new, 1)], rows)
            assert bytes(rows) == writers.logits_after(self.model, tokens)

    def step(self, i, n):
        for _ in range(n % 70):
            self.append(i, 1)

    def cut(self, i, n):
        sequence, tokens = self.texts[i]
        length = max(0, len(tokens) - n)
        first = [max(0, length + 1 - window) // 64 if window else 0 for window in self.cache.windows]  # that are seen
        if 0 < length < len(tokens) and any(sequence.page(p).part(kind) is None for kind, p in enumerate(first)):
            with pytest.raises(OptionError):
                sequence.truncate(length)
        else:
            sequence.truncate(length)
            del tokens[length:]
        assert sequence.length == len(tokens)

    def fork(self, i, n):
        sequence, tokens = self.texts[i]
        self.texts.append((sequence.fork(), tokens.copy()))

    def keep(self, i, n):
        sequence, tokens = self.texts[i]
        self.kept.append(([sequence.page(p) for p in range(-(-len(tokens) // 64))], tokens.copy()))

    def join(self, i, n):
        """A sequence of some of the pages that were kept, if what it would see is there."""
        if not self.kept:
            return
        pages, tokens = self.kept[n % len(self.kept)]
        length = len(tokens) - n % (len(tokens) + 1)
        pages = pages[: -(-length // 64)]
        missing = any(
            page.part(kind) is None and (p + 1) * 64 > length + 1 - window
            for p, page in enumerate(pages)
            for kind, window in enumerate(self.cache.windows)
        )
        if missing:
            with pytest.raises(OptionError):
                self.cache.sequence(pages, length)
        else:
            self.texts.append((self.cache.sequence(pages, length), tokens[:length]))

    def copy(self, i, n):
        """The same by pages with copied bytes."""
        sequence, tokens = self.texts[i]
        pages = [sequence.page(p) for p in range(-(-len(tokens) // 64))]
        pages = [self.cache.page([page.part(k) for k in range(len(self.cache.windows))]) for page in pages]
        self.texts.append((self.cache.sequence(pages, len(tokens)), tokens.copy()))

    def drop(self, i, n):
        del self.texts[i]
        if not self.texts:
            self.texts.append((self.cache.sequence(), []))
        if n % 3 == 0:
            self.kept.clear()

    def parts(self) -> Iterator[tuple[int, int]]:
        """Where the parts of all pages in use begin, and how many bytes they have."""
        pages = [s.page(p) for s, tokens in self.texts for p in range(-(-len(tokens) // 64))]
        for page in [*pages, *(page for kept, _ in self.kept for page in kept)]:
            for kind in range(len(self.cache.windows)):
                if (part := page.part(kind)) is not None:
                    yield np.frombuffer(part, np.uint8).ctypes.data, part.nbytes

    def check_used(self):
        assert self.cache.used == sum(nbytes for _, nbytes in set(self.parts()))


ACTIONS = ["append", "step", "cut", "fork", "keep", "join", "copy", "drop"]


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize("windows", WINDOWS)
@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9), st.integers(0, 300)), max_size=25))
def test_any_history(windows, kv_dtype, actions):
    texts = Texts(model_of(windows, kv_dtype))
    for name, i, n in [("append", 0, 150), *actions]:
        getattr(texts, name)(i % len(texts.texts), n)
        texts.check_used()
    for i in range(len(texts.texts)):
        texts.append(i, 3)
    texts.check_used()
    cache = texts.cache
    del texts
    assert cache.used == 0


@pytest.mark.parametrize("windows", WINDOWS)
def test_pages_left_of_a_window_are_given_back(windows):
    model = model_of(windows, "f32")
    cache = _core.KVCache(model)
    assert set(cache.windows) == set(windows)
    assert len(cache.windows) == len(set(windows))
    assert sum(cache.page_bytes) == len(windows) * 2 * (6 + 16) * 64 * 4  # KV heads, keys and padded values, f32
    sequence = cache.sequence()
    for i in range(0, 640, 32):
        model.forward([(sequence, [1] * 32, 0)])
        # A page more than what the first of these tokens saw, so that 64 tokens can be cut off.
        first = [max(0, i - 64 + 1 - window) // 64 if window and i > 64 else 0 for window in cache.windows]
        held = [-(-(i + 32) // 64) - f for f in first]
        assert cache.used == sum(n * size for n, size in zip(held, cache.page_bytes, strict=True))
    sequence.truncate(640 - 32 - 64)
    rows = model.logits()
    model.forward([(sequence, [2], 1)], rows)
    assert bytes(rows) == writers.logits_after(model, [1] * 544 + [2])
