"""The prompt cache on disk: pages of long prompts, which later processes take up again.

A file holds a page's part of one kind (64 positions of the keys and values of all layers with one window). Its name is
a hash of the model and of all tokens up to the page's end, so prompts share the files of their common beginning, and
the longest usable beginning of a prompt is found by looking for names. The same tokens always give the same keys and
values, to the bit: what is taken up is what would be computed.

    hash[i] = SHA-256(hash[i - 1] + the 64 tokens of page i)[:20],  hash[-1] = the model's key
    file    = hash[i] in hexadecimal, the kind's window

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

    def load(self, tokens: Sequence[int], held: Sequence[_core.Page] = ()) -> tuple[list[_core.Page], int]:
        """The pages of the longest beginning of `tokens` that can be taken up, and its length, for KVCache.sequence.

        held: whole pages of a beginning that memory has; they are used, not read. The beginning never has the last
        token, whose logits are still to be computed. A damaged file is removed and counts as absent. Raises
        CacheFullError where the pages exceed the limit of the KVCache: then it holds none of them.
        """
        names = self._names(tokens, len(tokens) // _core.PAGE)
        damaged: set[str] = set()

        def have(i: int, kind: int) -> bool:
            if i < len(held) and held[i].part(kind) is not None:
                return True
            name = names[i][kind]
            return name not in damaged and self._folder.has(name, self._kinds[kind].page_bytes)

        while True:
            length = self._usable(len(names), have, len(tokens) - 1)
            if length <= len(held) * _core.PAGE:
                return list(held[: pages_of(length)]), length
            pages = self._read(names, held, length, damaged)
            if len(pages) == pages_of(length):
                return pages, length

    def _read(
        self, names: Sequence[Sequence[str]], held: Sequence[_core.Page], length: int, damaged: set[str]
    ) -> list[_core.Page]:
        """The pages that a beginning of `length` tokens needs; fewer, and a name is added to `damaged`, if a file is.

        Raises CacheFullError.
        """
        from concurrent.futures import ThreadPoolExecutor

        rooms = threading.local()  # memory for files, a kind: each thread uses its own again and again
        full: list[CacheFullError] = []
        now = time.time_ns()

        def part(i: int, kind: int) -> memoryview | None:
            if i < self._kinds[kind].first(length):
                return None
            if i < len(held) and (have := held[i].part(kind)) is not None:
                return have
            if not hasattr(rooms, "kinds"):
                rooms.kinds = [bytearray(file_bytes(kind.page_bytes)) for kind in self._kinds]
            name = names[i][kind]
            body = self._folder.read(name, rooms.kinds[kind])
            if body is None:
                damaged.add(name)
            self._folder.touch(name, now - i * _STEP)
            return body

        def page(i: int) -> _core.Page | None:
            parts = [part(i, kind) for kind in range(len(self._kinds))]
            if damaged or full:
                return None
            try:
                return self._cache.page(parts)
            except CacheFullError as error:
                full.append(error.with_traceback(None))  # a traceback would hold pages
                return None

        with ThreadPoolExecutor(min(_READERS, core_count()[0])) as pool:
            pages = [page for page in pool.map(page, range(pages_of(length))) if page is not None]
        if full:
            pages.clear()
            raise full[0]
        return pages

    def save(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Has the whole pages of a sequence, which holds a beginning of `tokens`, written where they are not yet.

        It returns at once; until they are written, the pages are held. May be called again and again while a prompt
        grows. Of a prompt larger than most_bytes, the beginning is stored. Short prompts are not.

        Where nothing can be written, the first call after that was found out gives a CacheWarning.
        """
        self._warn()
        count = min(len(tokens), sequence.length) // _core.PAGE
        if self._problem is not None or count * _core.PAGE < _LEAST:
            return
        names, room, now = self._names(tokens, count), self._folder.most_bytes, time.time_ns()
        missing: dict[str, _Waiting] = {}
        stored: list[list[bool]] = []
        for i in range(count):
            page = sequence.page(i)
            parts = [page.part(kind) is not None for kind in range(len(self._kinds))]
            room -= sum(file_bytes(kind.page_bytes) for kind, part in zip(self._kinds, parts, strict=True) if part)
            if room < 0:
                break
            stored.append(parts)
            for kind, name in enumerate(names[i]):
                if not parts[kind]:
                    continue
                used = now - i * _STEP
                if self._folder.has(name, self._kinds[kind].page_bytes):
                    self._folder.touch(name, used)
                else:
                    missing[name] = _Waiting(page, kind, used)
        if not missing or not self._usable(len(stored), lambda i, kind: stored[i][kind], sequence.length):
            return
        self._waiting.update(missing)
        try:
            writer = threading.Thread(target=self._write, args=(self._writer,), name="fastllm prompt cache")
            writer.start()
            self._writer = writer
        except RuntimeError:  # the system or Python, at exit, starts no more threads
            self.drop()

    def _write(self, before: threading.Thread | None) -> None:
        """Writes all that waits, the beginning first, once the thread `before` has ended."""
        if before is not None:
            before.join()
        try:
            waiting = list(self._waiting.values())
            self._folder.make_room(sum(file_bytes(self._kinds[kind].page_bytes) for _, kind, _ in waiting))
            del waiting
            while self._waiting:
                with suppress(KeyError):  # dropped meanwhile
                    name, (page, kind, used) = self._waiting.popitem(last=False)
                    if not self._folder.has(name, self._kinds[kind].page_bytes):  # another process may have written it
                        self._folder.write(name, page.part(kind))
                        self._folder.touch(name, used)
        except OSError as error:
            self._problem = error.strerror or str(error)
            self.drop()

    def drop(self) -> None:
        """Gives up writing what still waits, and the pages: for an engine that has run out of them."""
        self._waiting.clear()

    def close(self) -> None:
        """Waits until all is written. If Ctrl-C interrupts that, the rest is dropped."""
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

    def _names(self, tokens: Sequence[int], count: int) -> list[list[str]]:
        """The names of the first `count` pages' files, one a kind."""
        data = memoryview(array("I", tokens[: count * _core.PAGE])).cast("B")
        step, digest, names = len(data) // max(count, 1), self._key, []
        for i in range(count):
            digest = sha256(digest + data[i * step : (i + 1) * step]).digest()[:20]
            names.append([file_name(digest, str(kind.window)) for kind in self._kinds])
        return names

    def _usable(self, count: int, have: Callable[[int, int], bool], most: int) -> int:
        """The length of the longest usable beginning of `count` pages, at most `most`.

        have(page, kind): whether that part is there.
        """
        runs: list[list[int]] = []  # [kind][n]: how many pages without a gap end with page n - 1
        for number, kind in enumerate(self._kinds):
            run = [0]
            for i in range(count):
                run.append(run[-1] + 1 if have(i, number) else 0)
                if run[-1] == 0 and kind.window == 0:
                    count = i  # no longer beginning can be used: most prompts are not in the cache at all
                    break
            runs.append(run)
        for pages in range(count, 0, -1):
            length = min(pages * _core.PAGE, most)
            if all(pages - run[pages] <= kind.first(length) for kind, run in zip(self._kinds, runs, strict=True)):
                return length
        return 0


class _Kind(NamedTuple):
    """A kind of pages. window: 0 where its layers see all positions."""

    window: int
    page_bytes: int

    def first(self, length: int) -> int:
        """The first page that positions from `length` on see."""
        return max(0, length - self.window + 1) // _core.PAGE if self.window else 0


class _Waiting(NamedTuple):
    """A file to be written: which part of which page, and when it was used last, in nanoseconds since 1970."""

    page: _core.Page
    kind: int
    used: int


def pages_of(length: int) -> int:
    """How many pages `length` tokens take."""
    return -(-length // _core.PAGE)
