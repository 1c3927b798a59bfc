"""Speculative decoding: several guessed tokens in one forward, and of them those that plain decoding gives too.

One forward of the last token and k guesses yields the logits after each of them. The sampler draws from these rows in
order, and a row counts as long as every token before it was guessed right. Since the rows of one forward equal, to the
bit, those of several forwards, the text is the same as without guesses: a wrong guess only costs time. (Leviathan et
al., 2023, and Chen et al., 2023, preserve the distribution; here the text itself is preserved.)

A Proposer makes the guesses: PromptLookup copies from earlier in the text (Saxena, 2023), DraftModel asks a smaller
model. The number of guesses follows from the measured times of forwards and the measured share of right guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from fastllm.engine.costs import MOST, Costs, smoothed
from fastllm.errors import CacheFullError, NumericError

if TYPE_CHECKING:
    from fastllm import _core
    from fastllm.engine.engine import Engine

_LEARN = 1 / 8  # weight of the newest observation in a running share
_PLACES = 32  # at most so many earlier places are compared, the latest ones
_LONGEST = 16  # at most so many tokens in common are counted
_PIECE = 64  # tokens of a prompt that a draft reads at once beside other texts
_HOPE = 0.7  # assumed share of a draft's right guesses, before any is known


class Proposer(Protocol):
    """Guesses how one text goes on."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Takes the prompt, or the text so far; called first, and after `end` where the text goes on."""

    def propose(self, tokens: Sequence[int], most: int, others: int = 0) -> list[int]:
        """Guesses of the tokens that follow: as many as pay off, 0, 1, 3, 7 or 15, and at most `most`.

        tokens: the whole text so far, prompt included; it continues the text of the call before. others: rows that
        other texts have in the forward that will try the guesses.
        """

    def end(self, tokens: Sequence[int]) -> None:
        """Called when the text has ended, or is interrupted, with these tokens."""


class PromptLookup(Proposer):
    """Finds an earlier place in the text that follows the same tokens as its end, and guesses what came after that.

    Of the places that follow the text's last two tokens, it takes the one with the longest match before it, the latest
    of equals, as LZ77 does, and stays with that place for as long as its guesses are right. length: tokens of the
    match, 0 where no place follows the last two.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._read = self.length = self._place = 0
        self._latest: dict[tuple[int, int], int] = {}  # two tokens -> the latest place that follows them
        self._before = [0]  # place -> the previous place that follows the same two tokens; 0: there is none
        # Share of right guesses by length.bit_length(); cautious values to begin with.
        self._right = [0.0, 0.0, 0.3, 0.5, 0.65, 0.8]

    def begin(self, prompt: Sequence[int]) -> None:
        self.follow(prompt)

    def propose(self, tokens: Sequence[int], most: int, others: int = 0) -> list[int]:
        self.follow(tokens)
        if not self.length:
            return []
        right, longest = self._right, len(self._right) - 1
        chances = [right[min((self.length + i).bit_length(), longest)] for i in range(most)]
        return self.continuation(tokens, self._costs.best(chances, others=others))

    def end(self, tokens: Sequence[int]) -> None:
        """Does nothing: lookup holds no resources."""

    def follow(self, tokens: Sequence[int]) -> None:
        """Indexes the new tokens and, unless the current place still matches, looks for one."""
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
        """Moves the place on if it predicted the token, and updates the share of right guesses of its length."""
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
        """The `count` tokens that follow the place. Where the text ends before that many, the guesses themselves go on
        repeating with the same distance."""
        found, distance = list(tokens[self._place : self._place + count]), len(tokens) - self._place
        while len(found) < count:
            found.append(found[-distance])
        return found


class DraftModel(Proposer):
    """Guesses the tokens that a smaller model of the same vocabulary finds most likely."""

    def __init__(self, costs: Costs, engine: Engine, greedy: _core.Sampler, context: int, share: float) -> None:
        """costs: the large model's. engine, greedy, context: the draft's; greedy is a sampler at temperature 0.

        share: bytes that the draft reads for a token, divided by those that the large model reads.
        """
        self._costs, self._engine, self._sampler, self._context = costs, engine, greedy, context
        self._share = share
        self._sequence: _core.Sequence | None = None
        self._logits = engine.model.logits()
        self._known = 0  # the draft's sequence holds at most so many tokens of the text, then guesses
        self._guesses: list[int] = []
        self._each = 0.0  # measured seconds for a guess; 0: none yet, then `share` of a forward is assumed
        self._right = _HOPE

    def begin(self, prompt: Sequence[int]) -> None:
        if len(prompt) <= self._context:
            self._sequence = self._engine.open(prompt)[0]
            self._known = len(prompt)

    def propose(self, tokens: Sequence[int], most: int, others: int = 0) -> list[int]:
        if self._sequence is None:
            return []
        self._compare(self._sequence, tokens)
        room = self._context - len(tokens) + 1  # the last guess is never run through the draft
        each = self._each or self._share * self._costs.one_row
        count = self._costs.best([self._right] * min(most, room), each, others)
        if count == 0:
            self._right += (_HOPE - self._right) * 0.01  # drifts back, so that the draft is tried again some day
            return []
        try:
            if len(unread := tokens[self._sequence.length : -1]) > MOST:  # the prompt, read only when a guess pays off
                part = unread[:_PIECE] if others else unread  # in pieces, so that other texts go on meanwhile
                self._engine.prefill(self._sequence, part, self._logits)
                if len(unread) - len(part) > MOST:
                    return []
            start = perf_counter()
            self._guesses = self._draft(self._sequence, tokens, count)
        except (NumericError, CacheFullError):  # a broken draft makes no more guesses; the text goes on without
            self._sequence = None
            return []
        self._each = smoothed(self._each, (perf_counter() - start) / count)
        return self._guesses

    def _draft(self, sequence: _core.Sequence, tokens: Sequence[int], count: int) -> list[int]:
        self._engine.prefill(sequence, tokens[sequence.length :], self._logits)
        guesses = [self._sampler.draw(self._logits)]
        step, threads = self._engine.model.step, self._engine.step_threads
        while len(guesses) < count:
            guesses.append(step(sequence, guesses[-1], self._sampler, self._logits, threads=threads))
        return guesses

    def _compare(self, sequence: _core.Sequence, tokens: Sequence[int]) -> None:
        """Updates the share of right guesses, and drops the keys and values of wrong ones from the draft's sequence."""
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
            if self._sequence.length:  # empty if no guess ever paid off
                self._engine.keep(tokens, self._sequence)
            self._sequence = None
