"""Pages of keys and values: shared by sequences, copied before they are written, counted, limited."""

import numpy as np
import pytest

from fastllm import CacheFullError, ContextError, OptionError, _core
from helpers import writers
from helpers.writers import SMALL, logits_after

PAGE = _core.PAGE


@pytest.fixture(scope="module")
def long_model():
    cfg = SMALL._replace(max_seq=512)
    return writers.core_model(cfg, writers.random_weights(cfg), "f32")


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, n).tolist()


def append(model, sequence, tokens):
    """The logits after the last of `tokens`."""
    rows = model.logits()
    assert model.forward([(sequence, tokens, 1)], rows) is True
    return bytes(rows)


def test_a_fork_shares_until_it_is_written(long_model):
    cache, tokens = _core.KVCache(long_model), tokens_of(100)
    (page,) = cache.page_bytes
    first = cache.sequence()
    append(long_model, first, tokens)
    second = first.fork()
    assert (cache.used, second.length) == (2 * page, 100)
    assert append(long_model, second, [5]) == logits_after(long_model, [*tokens, 5])
    assert cache.used == 3 * page  # the tail was copied
    assert append(long_model, first, [6]) == logits_after(long_model, [*tokens, 6])
    assert append(long_model, second, [7]) == logits_after(long_model, [*tokens, 5, 7])
    assert cache.used == 3 * page
    first.truncate(0)
    assert cache.used == 2 * page
    del second
    assert cache.used == 0


def test_pages_outlive_their_sequence(long_model):
    cache, tokens = _core.KVCache(long_model), tokens_of(150)
    sequence = cache.sequence()
    append(long_model, sequence, tokens)
    pages = [sequence.page(i) for i in range(3)]
    append(long_model, sequence, tokens)  # writes to a copy of the last page
    del sequence
    assert cache.used == 3 * cache.page_bytes[0] == sum(page.nbytes for page in pages)
    for length in (150, 130):
        again = cache.sequence(pages, length)
        assert append(long_model, again, [3]) == logits_after(long_model, [*tokens[:length], 3])
    parts = [[bytes(page.part(0))] for page in pages]
    assert pages[0].part(0).readonly
    del pages, again
    assert cache.used == 0
    other = _core.KVCache(long_model)
    copied = other.sequence([other.page(part) for part in parts], 150)
    assert append(long_model, copied, [3]) == logits_after(long_model, [*tokens, 3])


def test_limit(long_model):
    cache, tokens = _core.KVCache(long_model), tokens_of(64)
    (page,) = cache.page_bytes
    assert cache.limit is None
    cache.limit = 3 * page
    first, second = cache.sequence(), cache.sequence()
    append(long_model, first, tokens)
    before = bytes(rows := long_model.logits(2))
    for spans in ([(second, tokens * 3, 1)], [(second, tokens, 1), (first, tokens * 2, 1)]):
        with pytest.raises(CacheFullError, match=f"full: {page:,} bytes of at most {3 * page:,}|{3 * page:,} bytes"):
            long_model.forward(spans, rows)
        assert (first.length, second.length, cache.used, bytes(rows)) == (64, 0, page, before)
    append(long_model, second, tokens * 2)
    fork = second.fork()
    assert cache.used == cache.limit
    fork.truncate(100)
    with pytest.raises(ContextError):  # a copy of the shared tail is a page too
        append(long_model, fork, [1])
    cache.limit = 4 * page
    assert append(long_model, fork, [1]) == logits_after(long_model, [*(tokens * 2)[:100], 1])
    cache.limit = 0
    del fork
    second.truncate(65)
    assert append(long_model, second, [1]) == logits_after(long_model, [*tokens, tokens[0], 1])
    with pytest.raises(CacheFullError):
        cache.page([bytes(page)])
    cache.limit = None
    assert cache.page([None]).part(0) is None


def test_what_is_refused(long_model):
    cache = _core.KVCache(long_model)
    sequence = cache.sequence()
    append(long_model, sequence, [1] * 65)
    pages = [sequence.page(0), sequence.page(1)]
    for call in (
        lambda: _core.KVCache(long_model, limit=-1),
        lambda: sequence.page(2),
        lambda: cache.sequence(pages),
        lambda: cache.sequence(pages, 129),
        lambda: cache.sequence(pages[:1], 65),
        lambda: cache.sequence([pages[0], cache.page([None])], 65),
        lambda: _core.KVCache(long_model).sequence(pages, 65),
        lambda: cache.page([]),
        lambda: cache.page([bytes(7)]),
        lambda: pages[0].part(1),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(TypeError):
        cache.sequence([7], 1)


def test_cancel_before(long_model):
    cancel, sequence = _core.Cancel(), _core.KVCache(long_model).sequence()
    assert not cancel.is_set()
    cancel.set()
    assert cancel.is_set()
    assert long_model.forward([(sequence, [1], 0)], cancel=cancel) is False
    assert sequence.length == 0
    cancel.clear()
    assert long_model.forward([(sequence, [1], 0)], cancel=cancel) is True
    assert sequence.length == 1
