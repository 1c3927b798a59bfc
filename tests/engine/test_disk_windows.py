"""Which pages of which kinds the prompt cache on disk takes up, against trying out every beginning.

The KV cache is a plain one, whose pages hold bytes that follow from the kind and all tokens up to the page's end.
"""

import itertools
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import _core
from fastllm.engine.disk import PromptCache
from helpers.prompts import KEY, text

PAGE = _core.PAGE


class Page:
    def __init__(self, parts):
        self._parts = [None if part is None else bytes(part) for part in parts]

    def part(self, kind):
        return None if self._parts[kind] is None else memoryview(self._parts[kind])


class Cache:
    """A KVCache with layers of any windows."""

    def __init__(self, windows):
        self.limit, self.used = None, 0
        self.windows, self.page_bytes = windows, tuple(32 * (i + 1) for i in range(len(windows)))

    def page(self, parts):
        return Page(parts)

    def sequence(self, pages, length):
        return pages, length

    def content(self, tokens, i, kind):
        """What page i has of a kind; the last page of a text has what its tokens so far gave."""
        seen = ",".join(map(str, tokens[: (i + 1) * PAGE]))
        return sha256(f"{kind} {seen}".encode()).digest() * (kind + 1)


class Sequence:
    """A sequence that has computed `tokens`, the last `chunk` of them in one forward."""

    def __init__(self, cache, tokens, chunk):
        self.length, self._cache, self._tokens, self._start = len(tokens), cache, tokens, len(tokens) - chunk

    def page(self, i):
        kinds = enumerate(self._cache.windows)
        return Page([self._cache.content(self._tokens, i, k) if sees(w, self._start, i) else None for k, w in kinds])


def sees(window, length, i):
    """Whether a position from `length` on sees one of page i."""
    return any(length - position < window for position in range(i * PAGE, (i + 1) * PAGE)) or not window


@given(
    data=st.data(), windows=st.lists(st.sampled_from([0, 2, 20, 64, 65, 150, 700]), min_size=1, max_size=3, unique=True)
)
@settings(max_examples=100)
def test_the_longest_usable_beginning_is_taken_up(tmp_path_factory, data, windows):
    cache, folder = Cache(tuple(windows)), tmp_path_factory.mktemp("windows")
    tokens = text(data.draw(st.integers(512, 1400)))
    files = set()  # the tokens up to the end of a page, and a kind that is stored of it
    for _ in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.integers(512, len(tokens)))
        sequence = Sequence(cache, tokens[:count], data.draw(st.integers(1, 256)))
        disk = PromptCache(folder, KEY, cache)
        disk.save(tokens, sequence)
        disk.close()
        for i in range(-(-count // PAGE)):
            for kind in range(len(windows)):
                if sequence.page(i).part(kind) is not None:
                    files.add((tuple(tokens[: min(count, (i + 1) * PAGE)]), kind))
    asked = tokens[: data.draw(st.integers(1, len(tokens)))] + text(data.draw(st.integers(0, 100)), 1)

    def usable(length, most):
        """Whether the files have what positions from `length` on see; the last page may have up to `most` tokens."""
        pages = -(-length // PAGE)
        for i, kind in itertools.product(range(pages), range(len(windows))):
            ends = [(i + 1) * PAGE] if i < pages - 1 else range(length, min(most, pages * PAGE) + 1)
            there = any((tuple(asked[:end]), kind) in files for end in ends if end <= len(asked))
            if sees(windows[kind], length, i) and not there:
                return False
        return True

    empty = Sequence(cache, [], 0)
    pages, length = disk.load(asked, empty) or ([], 0)
    assert length < len(asked)
    assert usable(length, len(asked))
    longer = range(length + 1, len(asked))
    assert not any(usable(n, n) for n in longer if n % PAGE == 0)
    assert len(pages) == -(-length // PAGE)
    for i, (kind, window) in itertools.product(range(len(pages)), enumerate(windows)):
        part = pages[i].part(kind)
        assert (part is not None) == sees(window, length, i)
        ends = [(i + 1) * PAGE] if i < len(pages) - 1 else range(length, min(len(asked), (i + 1) * PAGE) + 1)
        assert part is None or bytes(part) in [cache.content(asked[:end], i, kind) for end in ends]
