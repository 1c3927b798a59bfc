"""Keys and values of texts that were computed before, by their tokens, so that no beginning is computed twice."""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fastllm import _core

PAGE = _core.PAGE
KEPT = 8  # ends of texts that are kept, unless the user has said how many bytes they may take
_LOOK = 32  # at most so many pages are compared token by token, the latest ones


class PrefixTree:
    """A tree of pages: a path from the root is the beginning of a text.

    A node has the pages of up to 64 tokens; those with fewer are leaves. The same tokens always give the same keys and
    values, to the bit, so a text that takes them up is the same as without. Nodes share their pages with the sequences
    that computed them or took them up: full pages never change, and a sequence copies a page before it writes to one
    that is shared. What was used least recently is evicted first, leaves before their parents.

        system prompt                            chat 1: 150 tokens; chat 2: 190
        root -- [ 64 tokens ] -- [ 64 tokens ] -- [ 22 tokens ]
                                             `--- [ 62 tokens ]

    A layer with a window needs the pages of its last positions only. A path can be taken up where those are there: at
    the ends of prompts and texts, and at `marks`, where texts are known to part.

    Several threads may use a tree. Its lock is never held while the model runs.
    """

    def __init__(self, cache: _core.KVCache, kept: int | None = KEPT) -> None:
        """kept: ends of texts to keep at most; None: as many as the cache has room for."""
        self._root = _Node((), None, None)
        self._nodes: OrderedDict[_Node, None] = OrderedDict()  # least recently used first; children before parents
        self._leaves = 0
        self.cache, self._kept = cache, kept
        self._windows = [(kind, window) for kind, window in enumerate(cache.windows) if window]
        self._lock = allocate_lock()
        self._left: deque[tuple[list[int], _core.Sequence]] = deque()

    def __del__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Forgets all texts. Parents and children are cycles: their memory would wait for the garbage collector."""
        nodes = [self._root, *self._nodes]
        self._nodes.clear()
        self._leaves = 0
        for node in nodes:
            node.parent = None
            node.children.clear()

    def find(self, tokens: Sequence[int]) -> tuple[_core.Sequence, int]:
        """A sequence that holds the longest known beginning of `tokens`, and how far its text was known at all.

        The sequence never holds the last token, whose logits are still to be computed. The second number is larger
        than its length where a window's pages are missing.
        """
        with self._lock:
            self._take_left()
            path, known = self._path(tokens)
            length = self._usable(path, known)
            pages = [node.page for node in path[: (length + PAGE - 1) // PAGE]]
            self._touch(path)
            return self.cache.sequence(pages, length), known

    def keep(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Keeps the pages of a sequence, which holds a beginning of `tokens`, for later texts."""
        with self._lock:
            self._take_left()
            self._insert(tokens, sequence)

    def leave(self, tokens: list[int], sequence: _core.Sequence) -> None:
        """The same for a finalizer, which may interrupt a call of this very thread: it never waits."""
        if self._lock.acquire(False):
            try:
                self._insert(tokens, sequence)
            finally:
                self._lock.release()
        else:
            self._left.append((tokens, sequence))

    def evict(self, nodes: int = 8) -> bool:
        """Forgets some of what was used least recently. Returns whether there was anything."""
        with self._lock:
            self._take_left()
            nodes = min(nodes, len(self._nodes))
            for _ in range(nodes):
                self._drop_oldest()
            return nodes > 0

    def after_fork(self) -> None:
        """For the child of a fork, where a thread that held the lock does not exist: begins anew."""
        self._forget()
        self._left.clear()
        self._lock = allocate_lock()

    # ---- the rest is called with the lock held

    def _take_left(self) -> None:
        while self._left:
            self._insert(*self._left.popleft())

    def _path(self, tokens: Sequence[int]) -> tuple[list[_Node], int]:
        """The nodes of the longest known beginning of all tokens but the last, and its length."""
        most, at = len(tokens) - 1, 0
        node, path = self._root, list[_Node]()
        while at + PAGE <= most and (child := node.children.get(tuple(tokens[at : at + PAGE]))) is not None:
            path.append(child)
            node, at = child, at + PAGE
        # A part of a page: it is copied when its new owner writes to it.
        rest, best, longest = tuple(tokens[at : min(at + PAGE, most)]), None, 0
        if rest:
            for child in node.latest():
                if child.tokens[0] == rest[0] and (common := common_length(child.tokens, rest)) > longest:
                    best, longest = child, common
        if best is not None:
            path.append(best)
        return path, at + longest

    def _usable(self, path: list[_Node], length: int) -> int:
        """The longest beginning of a path's `length` tokens of which each window's pages are there."""
        while length:
            # To go on at `length`, a window needs its last positions' pages. Where one is missing, try before it.
            last = (length - 1) // PAGE
            gap = next(
                (
                    i
                    for kind, window in self._windows
                    for i in range(last, max(0, length + 1 - window) // PAGE - 1, -1)
                    if not path[i].page.has(kind)
                ),
                None,
            )
            if gap is None:
                break
            length = gap * PAGE
        return length

    def _insert(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        length = min(sequence.length, len(tokens))
        node, path = self._root, list[_Node]()
        for at in range(0, length, PAGE):
            key = tuple(tokens[at : min(at + PAGE, length)])
            child = node.children.get(key)
            if child is None:
                if any(other.tokens[: len(key)] == key for other in node.latest()):
                    break  # a page with more tokens begins with these
                child = self._add(node, key, sequence.page(at // PAGE))
            elif self._windows:
                # The node's page may have lost windows' parts, or have parts that this text has given back.
                child.page = sequence.page(at // PAGE).filled(child.page)
            node = child
            path.append(node)
        self._touch(path)
        while self._kept is not None and self._leaves > self._kept:
            self._drop_oldest()

    def _add(self, parent: _Node, key: tuple[int, ...], page: _core.Page) -> _Node:
        # Parts of a page that this one continues are not needed any more.
        for other in [other for other in parent.latest() if key[: len(other.tokens)] == other.tokens]:
            self._drop(other)
        if parent.children or parent is self._root:
            self._leaves += 1
        node = parent.children[key] = _Node(key, page, parent)
        self._nodes[node] = None
        return node

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._nodes.move_to_end(node)
            siblings = node.parent.children  # type: ignore[union-attr]  # only the root has no parent
            siblings[node.tokens] = siblings.pop(node.tokens)

    def _drop_oldest(self) -> None:
        # Parents are touched after their children: the oldest node has none.
        self._drop(next(iter(self._nodes)))

    def _drop(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None
        del self._nodes[node]
        del parent.children[node.tokens]
        if parent.children or parent is self._root:
            self._leaves -= 1


class _Node:
    """The page of some tokens after those of its parents."""

    __slots__ = ("children", "page", "parent", "tokens")

    def __init__(self, tokens: tuple[int, ...], page: Any, parent: _Node | None) -> None:
        """page, parent: None of the root alone."""
        self.tokens, self.parent = tokens, parent
        self.page: _core.Page = page
        self.children: dict[tuple[int, ...], _Node] = {}  # least recently used first

    def latest(self) -> Iterator[_Node]:
        """Its children that were used last, at most _LOOK."""
        return islice(reversed(self.children.values()), _LOOK)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning on."""
    most = min(len(a), len(b))
    at = 0
    while at + PAGE <= most and a[at : at + PAGE] == b[at : at + PAGE]:
        at += PAGE
    while at < most and a[at] == b[at]:
        at += 1
    return at
