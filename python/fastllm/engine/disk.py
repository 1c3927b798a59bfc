"""The prompt cache on disk: pages of long prompts, which later processes take up again.

A file holds a page's part of one kind (64 positions of the keys and values of all layers with one window). Its name is
a hash of the model and of all tokens up to the page's end, so prompts share the files of their common beginning, and
the longest usable beginning of a prompt is found by looking for names. The same tokens always give the same keys and
values, to the bit: what is taken up is what would be computed.

    hash[i] = first 20 bytes of SHA-256(hash[i - 1] + the tokens of page i as 32 bits each),  hash[-1] = the model's key
    file    = hash[i] in hexadecimal, the kind's window

The last page of a prompt is stored too, with fewer tokens: behind a prompt of 28,000 tokens, computing the 32 of half a
page takes longer than reading all others. It is looked for where the whole pages end, by each number of tokens.

Windowed kinds are stored where the sequence still has them: in front of the end of a prompt. A beginning is usable if
every kind has the pages that the positions after it see.
"""

from __future__ import annotations

import threading
import time
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastllm import _core
from fastllm.cores import core_count
from fastllm.engine.folder import CacheFolder, file_bytes, file_name
from fastllm.errors import CacheFullError, CacheWarning

_LEAST = 512  # tokens of the shortest prompt that is worth files
_READERS = 4  # threads that read: memory is busy with as many
_STEP = 1000  # nanoseconds by which a page counts as used before the page in front of it, without which it is useless


class PromptCache:
    """Pages of prompts in a folder, for one model. Several processes may use the folder at once.

    Pages are written by a thread of its own. Python waits for it at exit; close does so earlier.
    """

    def __init__(self, folder: Path, key: bytes, cache: _core.KVCache, *, most_bytes: int | None = None) -> None:
        """key: what decides the bits of pages, see fastllm.engine.key. most_bytes: see CacheFolder.

        Raises OptionError where the folder cannot be used at all.
        """
        self._folder = CacheFolder(folder, most_bytes=most_bytes)
        self._key, self._cache = key, cache
        self._kinds = [_Kind(*about) for about in zip(cache.windows, cache.page_bytes, strict=True)]
        # What waits to be written, by name. Only single operations change it, which the GIL makes atomic: if another
        # thread held a lock while the process forks, it would stay locked in the child for ever.
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._writer: threading.Thread | None = None
        self._problem: str | None = None  # why nothing can be written
        self._warned = False

    # ---- taking up ---------------------------------------------------------------------------------------------------

    def load(
        self, tokens: Sequence[int], held: _core.Sequence, evict: Callable[[], bool] = lambda: False
    ) -> _core.Sequence | None:
        """A new sequence of the longest beginning of `tokens` that can be taken up; None: `held` has as many.

        It never has the last token, whose logits are still to be computed. held: a sequence of a beginning of `tokens`,
        maybe empty; its whole pages are used, not read. evict: called while the pages would exceed KVCache.limit; it
        gives some back, or returns False: then the result is None. A damaged file is removed and counts as absent.
        """
        pages = [held.page(i) for i in range(held.length // _core.PAGE)]
        damaged: set[str] = set()
        while True:
            hashes, length = self._longest(tokens, pages, damaged)
            if length <= held.length:
                return None
            limit, need = self._cache.limit, self._new_bytes(length, len(pages))
            while limit is not None and self._cache.used + need > limit:
                if not evict():
                    return None
            try:
                read = self._read(hashes, pages, length, damaged)
            except CacheFullError:  # another thread has taken pages meanwhile
                return None
            if len(read) == _pages(length):
                return self._cache.sequence(read, length)

    def _longest(self, tokens: Sequence[int], held: Sequence[_core.Page], damaged: set[str]) -> tuple[list[bytes], int]:
        """The hashes of pages that begin `tokens`, and the length of the longest usable beginning that they give."""
        hashes, most = self._find(tokens, len(held), damaged)

        def there(i: int, kind: int) -> bool:
            return _part(held, i, kind) is not None or self._has(hashes[i], self._kinds[kind], damaged)

        return hashes, self._usable(len(hashes), there, min(most, len(tokens) - 1))

    def _new_bytes(self, length: int, held: int) -> int:
        """The bytes of the pages that a beginning of `length` tokens needs beside the first `held` ones."""
        return sum(max(0, _pages(length) - max(held, kind.first(length))) * kind.page_bytes for kind in self._kinds)

    def _has(self, page: bytes, kind: _Kind, damaged: set[str]) -> bool:
        return (name := kind.file(page)) not in damaged and self._folder.has(name, kind.page_bytes)

    def _find(self, tokens: Sequence[int], held: int, damaged: set[str]) -> tuple[list[bytes], int]:
        """The hashes of the pages that begin `tokens`, as far as there are files or `held` pages, and their tokens."""
        whole = _hashes(self._key, tokens)[: len(tokens) // _core.PAGE]
        widest = min(self._kinds, key=lambda kind: (kind.window > 0, -kind.window))
        count = min(held, len(whole))
        for i in range(count, len(whole)):
            if self._has(whole[i], widest, damaged):
                count = i + 1
            elif widest.window == 0:
                break  # most prompts are not in the cache at all
        hashes, length = whole[:count], count * _core.PAGE
        if hashes and self._has(hashes[-1], widest, damaged):
            rest = tokens[length : length + _core.PAGE - 1]
            for more in range(len(rest), 0, -1):
                last = _hash(hashes[-1], _bytes(rest[:more]))
                if self._has(last, widest, damaged):
                    return [*hashes, last], length + more
        return hashes, length

    def _usable(self, count: int, there: Callable[[int, int], bool], most: int) -> int:
        """The length of the longest usable beginning of `count` pages, at most `most`.

        there(page, kind): whether that part is there.
        """
        runs: list[list[int]] = []  # [kind][n]: how many pages without a gap end with page n - 1
        for kind in range(len(self._kinds)):
            run = [0]
            for i in range(count):
                run.append(run[-1] + 1 if there(i, kind) else 0)
            runs.append(run)
        for pages in range(count, 0, -1):
            length = min(pages * _core.PAGE, most)
            if all(pages - run[pages] <= kind.first(length) for kind, run in zip(self._kinds, runs, strict=True)):
                return length
        return 0

    def _read(
        self, hashes: Sequence[bytes], held: Sequence[_core.Page], length: int, damaged: set[str]
    ) -> list[_core.Page]:
        """The pages that a beginning of `length` tokens needs; fewer, and a name is added to `damaged`, if a file is.

        Raises CacheFullError.
        """
        from concurrent.futures import ThreadPoolExecutor

        rooms = threading.local()  # memory for a file of each kind: each thread uses its own again and again
        failed: set[str] = set()
        full: list[CacheFullError] = []
        now = time.time_ns()

        def part(i: int, number: int) -> memoryview | None:
            kind = self._kinds[number]
            if i < kind.first(length):
                return None
            if (have := _part(held, i, number)) is not None:
                return have
            if not hasattr(rooms, "kinds"):
                rooms.kinds = [bytearray(file_bytes(kind.page_bytes)) for kind in self._kinds]
            name = kind.file(hashes[i])
            body = self._folder.read(name, rooms.kinds[number])
            if body is None:
                failed.add(name)
            else:
                self._folder.touch(name, now - i * _STEP)
            return body

        def page(i: int) -> _core.Page | None:
            parts = [part(i, kind) for kind in range(len(self._kinds))]
            if failed or full:
                return None
            try:
                return self._cache.page(parts)
            except CacheFullError as error:
                full.append(error.with_traceback(None))  # a traceback would hold pages
                return None

        with ThreadPoolExecutor(min(_READERS, core_count()[0])) as pool:
            pages = [page for page in pool.map(page, range(_pages(length))) if page is not None]
        if full:
            pages.clear()
            raise full[0]
        damaged |= failed
        return pages

    # ---- writing -----------------------------------------------------------------------------------------------------

    def save(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Has the pages of a sequence, which holds a beginning of `tokens`, written where they are not yet.

        It returns at once; until they are written, the pages are held. May be called again and again while a prompt
        grows. Of a prompt larger than most_bytes, the beginning is stored. Short prompts are not.

        Where nothing can be written, the first call after that was found out gives a CacheWarning.
        """
        self._warn()
        length = min(len(tokens), sequence.length)
        if self._problem is not None or length < _LEAST:
            return
        room, now = self._folder.most_bytes, time.time_ns()
        missing: dict[str, _Waiting] = {}
        stored: list[list[bool]] = []  # [page][kind]
        for i, page_hash in enumerate(_hashes(self._key, tokens[:length])):
            page, used = sequence.page(i), now - i * _STEP
            parts = [page.part(kind) is not None for kind in range(len(self._kinds))]
            files = {kind.file(page_hash): number for number, kind in enumerate(self._kinds) if parts[number]}
            room -= sum(file_bytes(self._kinds[number].page_bytes) for number in files.values())
            if room < 0:
                break
            stored.append(parts)
            for name, number in files.items():
                if self._folder.has(name, self._kinds[number].page_bytes):
                    self._folder.touch(name, used)
                else:
                    missing[name] = _Waiting(page, number, used)
        if not missing or not self._usable(len(stored), lambda i, kind: stored[i][kind], length):
            return
        self._waiting.update(missing)
        writer = threading.Thread(target=self._write, args=(self._writer,), name="fastllm prompt cache")
        try:
            writer.start()
            self._writer = writer
        except RuntimeError:  # the system, or Python at its end, starts no more threads
            self.drop()

    def _write(self, before: threading.Thread | None) -> None:
        """Writes all that waits, beginnings first, once the thread `before` has ended."""
        if before is not None:
            before.join()
        try:
            self._folder.make_room(sum(self._size(waiting) for waiting in list(self._waiting.values())))
            while self._waiting:
                with suppress(KeyError):  # dropped meanwhile
                    self._write_file(*self._waiting.popitem(last=False))
        except OSError as error:
            self._problem = error.strerror or str(error)
            self.drop()

    def _size(self, waiting: _Waiting) -> int:
        return file_bytes(self._kinds[waiting.kind].page_bytes)

    def _write_file(self, name: str, waiting: _Waiting) -> None:
        body = waiting.page.part(waiting.kind)
        if body is not None and not self._folder.has(name, len(body)):  # another process may have written it
            self._folder.write(name, body)
            self._folder.touch(name, waiting.used)

    def drop(self) -> None:
        """Gives up writing what still waits, and its pages: for an engine that has run out of them."""
        self._waiting.clear()

    def close(self) -> None:
        """Waits until all is written; what still waits at Ctrl-C is dropped. Gives the CacheWarning of save."""
        if self._writer is not None:
            try:
                self._writer.join()
            except KeyboardInterrupt:
                self.drop()
                raise
        self._warn()

    def _warn(self) -> None:
        if self._problem is not None and not self._warned:
            self._warned = True
            sentence = f"prompts are not stored: the folder {self._folder.path} cannot be written: {self._problem}"
            warnings.warn(sentence, CacheWarning, stacklevel=3)


class _Kind(NamedTuple):
    """A kind of pages. window: 0 where its layers see all positions."""

    window: int
    page_bytes: int

    def first(self, length: int) -> int:
        """The first page that positions from `length` on see."""
        return max(0, length - self.window + 1) // _core.PAGE if self.window else 0

    def file(self, page: bytes) -> str:
        """The name of a page's file. page: its hash."""
        return file_name(page, str(self.window))


class _Waiting(NamedTuple):
    """A file to be written: which part of which page, and when it was used last, in nanoseconds since 1970."""

    page: _core.Page
    kind: int
    used: int


def _part(pages: Sequence[_core.Page], i: int, kind: int) -> memoryview | None:
    """A part of page i, None where there is none."""
    return pages[i].part(kind) if i < len(pages) else None


def _pages(length: int) -> int:
    """How many pages `length` tokens take."""
    return -(-length // _core.PAGE)


def _hashes(key: bytes, tokens: Sequence[int]) -> list[bytes]:
    """The hash of each page; the last may have fewer tokens."""
    data, hashes = _bytes(tokens), [key]
    step = len(_bytes([0] * _core.PAGE))
    for at in range(0, len(data), step):
        hashes.append(_hash(hashes[-1], data[at : at + step]))
    return hashes[1:]


def _hash(before: bytes, tokens: bytes) -> bytes:
    return sha256(before + tokens).digest()[:20]


def _bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as 32 bits each."""
    return array("I", tokens).tobytes()
