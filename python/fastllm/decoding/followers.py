"""Beams, texts that are searched at once, and the tokens that may follow them."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Progress(NamedTuple):
    """How far a text has come with forced words. whole: phrases that it has. current: the one that it is within, and
    path its tokens so far. pending: the others, in the order in which they are looked for."""

    whole: int
    current: int | None
    path: tuple[int, ...]
    pending: tuple[int, ...]


class Beam:
    """A text that goes on. tokens: the new ones. score: the sum of their log probabilities. progress: with forced
    words."""

    __slots__ = ("progress", "score", "tokens")

    def __init__(self, tokens: list[int], score: float, progress: Progress | None) -> None:
        self.tokens, self.score, self.progress = tokens, score, progress


class Follower(NamedTuple):
    """A beam with one more token, and the score of both."""

    beam: Beam
    token: int
    score: float


class Scores(Protocol):
    """What a model says of some beams."""

    def score(self, beam: Beam, token: int) -> float:
        """The score of a beam with a token; -infinity where it is forbidden."""

    def best(self, beam: Beam) -> list[Follower]:
        """Its best followers, the best first: at least one that ends no text, unless all such are forbidden."""

    def ends(self, beam: Beam, token: int) -> bool:
        """Whether a text that follows a grammar is complete with a token, and can go on no more."""
