"""Phrases that a text must contain: how far beams have come with them, and which beams go on so that they come further.

Beams are dealt into banks, by how many tokens of the phrases they have; the best of each bank go on, in turns (Post and
Vilar, 2018, dynamic beam allocation). The rules are those of ConstrainedBeamSearchScorer of transformers 4.53, with two
exceptions: only the new text counts, not the prompt; and beams that have all phrases also go on with their best token
(there, an option that is never on: push_progress), since they are lost otherwise where the phrases are unlikely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from fastllm.decoding.followers import Beam, Follower, Progress, Scores


class Forced:
    """Phrases, of each of which a text must contain one of the alternatives, each a tuple of ids."""

    def __init__(self, phrases: Sequence[Iterable[tuple[int, ...]]]) -> None:
        """An alternative that begins with another one is left out: a text that has it has the other."""
        kept = [_shortest(alternatives) for alternatives in phrases]
        self._tries = [_trie(alternatives) for alternatives in kept]
        self._heights = [max(map(len, alternatives)) for alternatives in kept]
        self._height = max(self._heights)
        self.start = Progress(0, None, (), tuple(range(len(kept))))

    def complete(self, progress: Progress) -> bool:
        return progress.whole == len(self._tries)

    def add(self, progress: Progress, token: int) -> Progress:
        """With one more token. One that breaks a phrase off begins no other."""
        whole, current, path, pending = progress
        if current is None:
            current = next((i for i in pending if token in self._tries[i]), None)
            if current is None:
                return progress
            pending = tuple(i for i in pending if i != current)
        elif token not in self._after(current, path):
            return Progress(whole, None, (), (*pending, current))
        path = (*path, token)
        if self._after(current, path):
            return Progress(whole, current, path, pending)
        return Progress(whole + 1, None, (), pending)

    def further(self, beams: Sequence[Beam], scores: Scores) -> list[Follower]:
        """The followers that bring beams on within a phrase, or begin one."""
        found = list[Follower]()
        for beam in beams:
            for token in self._next(_progress(beam)):
                if (score := scores.score(beam, token)) > -inf:
                    found.append(Follower(beam, token, score))
        return found

    def rank(self, running: list[Follower], further: list[Follower], size: int) -> list[Follower]:
        """Which followers go on: of `running`, the best ones, and of `further`, those that must not be lost."""
        texts: dict[tuple[int, ...], Follower] = {}
        for one in (*running, *further):
            texts.setdefault((*one.beam.tokens, one.token), one)
        if len(texts) == len(running):
            return running
        both = list(texts.values())
        banks = [self._bank(self.add(_progress(one.beam), one.token)) for one in both]
        order = sorted(range(len(both)), key=lambda i: -(100 * banks[i] + both[i].score))
        places = list[int]()  # of each in its bank
        for at, i in enumerate(order):
            places.append(places[-1] + 1 if at and banks[i] == banks[order[at - 1]] else 0)
        return [both[order[at]] for at in sorted(range(len(order)), key=places.__getitem__)[:size]]

    def _after(self, phrase: int, path: tuple[int, ...]) -> dict[int, Any]:
        """What may follow the beginning of a phrase; nothing where it is whole."""
        node = self._tries[phrase]
        for token in path:
            node = node[token]
        return node

    def _next(self, progress: Progress) -> Iterable[int]:
        """The tokens that bring a text further."""
        if progress.current is not None:
            return self._after(progress.current, progress.path)
        return [token for i in progress.pending for token in self._tries[i]]

    def _bank(self, progress: Progress) -> int:
        within = 0
        if progress.current is not None:
            within = self._height - self._heights[progress.current] + len(progress.path)
        return progress.whole * self._height + within


def _progress(beam: Beam) -> Progress:
    assert beam.progress is not None  # of a search without forced words
    return beam.progress


def _shortest(alternatives: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    every = list(dict.fromkeys(alternatives))
    return [one for one in every if not any(other != one and one[: len(other)] == other for other in every)]


def _trie(words: Iterable[tuple[int, ...]]) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for word in words:
        node = root
        for token in word:
            node = node.setdefault(token, {})
    return root
