"""Speculative decoding: several guessed tokens in one forward, and of them those that plain decoding gives too.

A forward of the last token and k guesses has the logits after each. The sampler draws from one row after the other, as
it would from one forward after the other, and a row counts as long as all tokens before it were guessed right. Rows of
one forward are to the bit those of several, so the text is that of plain decoding, whatever is guessed: a guess only
costs or saves time. (Leviathan et al., 2023, and Chen et al., 2023, keep the distribution; here it is the very text.)

Who guesses is a Proposer: PromptLookup finds the end of the text earlier in the text (Saxena, 2023), DraftModel asks a
smaller model. How many guesses are worth a try follows from what forwards were seen to cost and guesses to be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from fastllm.engine.costs import MOST, Costs, smoothed
from fastllm.errors import NumericError

if TYPE_CHECKING:
    from fastllm import _core
    from fastllm.engine.engine import Engine

_LEARN = 1 / 8  # weight of the newest observation
_PLACES = 32  # earlier places that are looked at, the latest
_LONGEST = 16  # tokens in common that are counted
_HOPE = 0.7  # how often a draft's guess may be right, before it is known


class Proposer(Protocol):
    """Guesses how one text goes on."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Reads the prompt, or the text so far where it goes on after a break; called before all else."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` guesses of what follows, as many as pay: none, 1, 3, 7 or 15.

        tokens: the whole text so far, prompt included, which begins with what it was before.
        """

    def end(self, tokens: Sequence[int]) -> None:
        """The text has ended with these, or makes a break."""


class PromptLookup(Proposer):
    """Guesses that what followed the end of the text where it stood before, in prompt or text, follows again.

    Of the places that have the text's last tokens before them, the one with most of them in common, of equals the
    latest, as in LZ77; it is kept for as long as it is right. length: tokens in common, 0 where fewer than 2 are.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._read = self.length = self._place = 0
        self._latest: dict[tuple[int, int], int] = {}  # two tokens -> where the text went on after them, the last time
        self._before = [0]  # place -> the one before it that follows the same two tokens; 0: there is none
        # By length.bit_length(), how often a place with so many tokens in common was right. At first a cautious guess.
        self._right = [0.0, 0.0, 0.3, 0.5, 0.65, 0.8]

    def begin(self, prompt: Sequence[int]) -> None:
        self.follow(prompt)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        self.follow(tokens)
        if not self.length:
            return []
        right, longest = self._right, len(self._right) - 1
        chances = [right[min((self.length + i).bit_length(), longest)] for i in range(most)]
        return self.continuation(tokens, self._costs.best(chances))

    def end(self, tokens: Sequence[int]) -> None:
        """Nothing is held."""

    def follow(self, tokens: Sequence[int]) -> None:
        """Reads what is new, and finds the place with most tokens in common with the end."""
        for i in range(self._read, len(tokens)):
            if self.length:
                self._learn(tokens[self._place] == tokens[i])
            # Place i + 1 follows tokens i - 1 and i.
            pair = (tokens[i - 1], tokens[i]) if i else (-1, tokens[i])
            self._before.append(self._latest.get(pair, 0))
            self._latest[pair] = i + 1
        self._read = len(tokens)
        if not self.length:
            self._find(tokens)

    def _learn(self, right: bool) -> None:
        """Keeps the place if it was right, and how often places like it are; also of guesses that nobody tried."""
        kind = min(self.length.bit_length(), len(self._right) - 1)
        self._right[kind] += (right - self._right[kind]) * _LEARN
        self._place += 1
        self.length = self.length + 1 if right else 0

    def _find(self, tokens: Sequence[int]) -> None:
        end, place = len(tokens), self._before[len(tokens)]
        for _ in range(_PLACES):
            if place == 0:
                return
            length = 2
            while length < min(_LONGEST, place) and tokens[place - 1 - length] == tokens[end - 1 - length]:
                length += 1
            if length > self.length:
                self.length, self._place = length, place
            place = self._before[place]

    def continuation(self, tokens: Sequence[int], count: int) -> list[int]:
        """What followed at the place, `count` tokens: where the text ends before them, its guesses follow, too."""
        found, distance = list(tokens[self._place : self._place + count]), len(tokens) - self._place
        while len(found) < count:
            found.append(found[-distance])
        return found


class DraftModel(Proposer):
    """Guesses what a smaller model of the same vocabulary finds most likely."""

    def __init__(self, costs: Costs, engine: Engine, greedy: _core.Sampler, context: int, share: float) -> None:
        """engine, greedy, context: the draft's, with a sampler that takes the most likely token.

        share: the bytes that a token of the draft reads, of those that one of the model does.
        """
        self._costs, self._engine, self._sampler, self._context = costs, engine, greedy, context
        self._share = share
        self._sequence: _core.Sequence | None = None
        self._logits = engine.model.logits()
        self._known = 0  # tokens of the text that its sequence may hold; then come the guesses
        self._guesses: list[int] = []
        self._each = 0.0  # seconds for a guess; 0 before the first, which is taken to cost its share
        self._right = _HOPE

    def begin(self, prompt: Sequence[int]) -> None:
        if len(prompt) <= self._context:
            self._sequence = self._engine.take(prompt)
            self._known = len(prompt)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        if self._sequence is None:
            return []
        self._compare(self._sequence, tokens)
        room = self._context - len(tokens) + 1  # the last guess is not run through the model
        each = self._each or self._share * self._costs.alone
        count = self._costs.best([self._right] * min(most, room), each)
        if count == 0:
            self._right += (_HOPE - self._right) * 0.01  # it is asked again some day
            return []
        if len(unread := tokens[self._sequence.length : -1]) > MOST:  # the prompt: read once a guess pays
            self._engine.prefill(self._sequence, unread, self._logits)
        start = perf_counter()
        try:
            self._guesses = self._draft(self._sequence, tokens, count)
        except NumericError:  # a draft that is broken guesses no more; the text is not concerned
            self._sequence = None
            return []
        self._each = smoothed(self._each, (perf_counter() - start) / count)
        return self._guesses

    def _draft(self, sequence: _core.Sequence, tokens: Sequence[int], count: int) -> list[int]:
        self._engine.prefill(sequence, tokens[sequence.length :], self._logits)
        guesses = [self._sampler.draw(self._logits)]
        step, threads = self._engine.model.step, self._engine.alone
        while len(guesses) < count:
            guesses.append(step(sequence, guesses[-1], self._sampler, self._logits, threads=threads))
        return guesses

    def _compare(self, sequence: _core.Sequence, tokens: Sequence[int]) -> None:
        """Learns which guesses were right, and forgets the keys and values of those that were not."""
        for guess, token in zip(self._guesses, tokens[self._known :], strict=False):
            right = guess == token
            self._right += (right - self._right) * _LEARN
            if not right:
                break
            self._known += 1
        sequence.truncate(min(sequence.length, self._known))
        self._known, self._guesses = len(tokens), []

    def end(self, tokens: Sequence[int]) -> None:
        if self._sequence is not None:
            self._compare(self._sequence, tokens)
            if self._sequence.length:  # nothing, if no guess ever paid
                self._engine.give(tokens, self._sequence)
            self._sequence = None
