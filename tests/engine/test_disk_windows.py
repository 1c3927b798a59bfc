"""Which pages of which kinds the prompt cache on disk takes up, against trying out every beginning.

The KV cache is a plain one, whose pages hold bytes that follow from the kind and all tokens up to the page's end.
"""

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
        self.windows, self.page_bytes = windows, tuple(32 * (i + 1) for i in range(len(windows)))

    def page(self, parts):
        return Page(parts)

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


@given(data=st.data(), windows=st.lists(st.sampled_from([0, 1, 20, 64, 65, 150, 700]), min_size=1, max_size=3))
@settings(max_examples=100)
def test_the_longest_usable_beginning_is_taken_up(tmp_path_factory, data, windows):
    cache, folder = Cache(tuple(windows)), tmp_path_factory.mktemp("windows")
    tokens = text(data.draw(st.integers(512, 1400)))
    stored = set()  # pages and kinds of which there is a file; of pages of fewer tokens with their number
    for _ in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.integers(512, len(tokens)))
        sequence = Sequence(cache, tokens[:count], data.draw(st.integers(1, 256)))
        disk = PromptCache(folder, KEY, cache)
        disk.save(tokens, sequence)
        disk.close()
        for i in range(-(-count // PAGE)):
            for kind in range(len(windows)):
                if sequence.page(i).part(kind) is not None:
                    stored.add((i, kind, min(PAGE, count - i * PAGE)))
    for path in data.draw(st.sets(st.sampled_from(sorted(folder.iterdir())), max_size=2)):
        path.write_bytes(b"damaged")
        assert not path.name.startswith(".")
    asked = tokens[: data.draw(st.integers(1, len(tokens)))] + text(data.draw(st.integers(0, 100)), 1)
    pages, length = disk.load(asked)
    assert length < len(asked)
    assert len(pages) == -(-length // PAGE)
    for i, page in enumerate(pages):
        for kind, window in enumerate(windows):
            part = page.part(kind)
            assert part is not None or not sees(window, length, i)
            whole = asked[: min(len(asked), (i + 1) * PAGE)]
            last = i == len(pages) - 1
            assert part is None or last or bytes(part) == cache.content(whole, i, kind)
