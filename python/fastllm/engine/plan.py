"""What each text does in the next forward: writes, searches, or reads a piece of its prompt.

(Continuous batching: Yu et al., 2022, Orca; prompts in pieces: Agrawal et al., 2024, Sarathi-Serve.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.engine.costs import MOST
from fastllm.engine.engine import CHUNK, Engine
from fastllm.engine.generation import Generation
from fastllm.engine.prefix import PAGE

if TYPE_CHECKING:
    from fastllm.engine.guesses import Proposer

_ROWS_BYTES = 64 << 20  # of the rows of logits of a forward, where texts want more than one: a row may take a megabyte


class Row(NamedTuple):
    """What a text does in a forward: appends `tokens`, of which the last `wanted` get logits, from row `at` on.

    A text that searches may have several.
    """

    generation: Generation
    sequence: _core.Sequence
    tokens: list[int]
    wanted: int
    at: int
    reads: bool  # its prompt, or after a preemption the text so far


def end_of(rows: list[Row]) -> int:
    """The first row of logits that no row of these takes."""
    return rows[-1].at + rows[-1].wanted if rows else 0


class Plan:
    """Plans the forwards of one model's texts, of which at most `most` are written at once."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most_rows = max(2 * most, _ROWS_BYTES // (4 * engine.model.logits_stride))

    def rows(self, running: list[Generation]) -> list[Row]:
        """What texts do in the next forward: all that are written, and pieces of prompts."""
        writers, readers, searchers = list[Generation](), list[Generation](), list[Generation]()
        for generation in running:
            if generation.searching:
                searchers.append(generation)
                continue
            sequence, position = generation.sequence, generation.position()
            assert sequence is not None
            if sequence.length >= position:  # a step was interrupted before it could drop wrong guesses
                sequence.truncate(position - 1)
            (writers if generation.tokens and sequence.length == position - 1 else readers).append(generation)
        rows = self._searching(searchers)
        rows += self._writing(writers, end_of(rows))
        return rows + self._pieces(readers, end_of(rows))

    def _searching(self, searchers: list[Generation]) -> list[Row]:
        """The spans of searches."""
        rows = list[Row]()
        for generation in searchers:
            assert generation.search is not None
            try:
                for sequence, tokens, wanted in generation.search.spans(generation):
                    rows.append(Row(generation, sequence, list(tokens), wanted, end_of(rows), False))
            except Exception as error:
                generation.fail(error)
                rows = [row for row in rows if row.generation is not generation]
        return rows

    def _writing(self, writers: list[Generation], at: int) -> list[Row]:
        """Each text's last token, and guesses of what follows it."""
        rows = list[Row]()
        for i, generation in enumerate(writers):
            assert generation.sequence is not None
            guesses = list[int]()
            if (generation.proposer or generation.matcher) is not None and not generation.processors:
                others = at + len(writers) - i - 1
                try:
                    guesses = self._guess(generation, min(MOST, self._most_rows - others - 1), others)
                except Exception as error:  # such as a draft's file that has changed
                    generation.fail(error)
                    continue
            tokens = [generation.tokens[-1], *guesses]
            rows.append(Row(generation, generation.sequence, tokens, len(tokens), at, False))
            at += len(tokens)
        return rows

    def _guess(self, generation: Generation, most: int, others: int) -> list[int]:
        """What may follow a text: of one with a grammar what must follow, if anything; else the proposer's guesses."""
        matcher, most = generation.matcher, max(0, min(most, generation.max_tokens - len(generation.tokens) - 1))
        guesses = [] if matcher is None else matcher.forced(generation.tokens)[:most]
        if not guesses and generation.proposer is not None:
            guesses = self._propose(generation, generation.proposer, most, others)
        return guesses[: matcher.allowed(generation.tokens, guesses)] if matcher is not None and guesses else guesses

    def _propose(self, generation: Generation, proposer: Proposer, most: int, others: int) -> list[int]:
        text = generation.text
        if text is None:
            text = generation.text = generation.prompt + generation.tokens
            proposer.begin(text)
        else:
            text += generation.tokens[len(text) - len(generation.prompt) :]
        return proposer.propose(text, most, others)

    def _pieces(self, readers: list[Generation], at: int) -> list[Row]:
        """Pieces of prompts: each gets the same share of the tokens that fit, and the first what is left over."""
        rows = list[Row]()
        room = min(CHUNK, self._engine.costs.room(at)) if at else CHUNK
        shares = dict.fromkeys(readers, 0)
        left = {generation: generation.unread() for generation in readers}
        while room > 0 and any(left.values()):
            hungry = [generation for generation in readers if left[generation]]
            share = max(1, room // len(hungry))
            for generation in hungry:
                some = min(share, left[generation], room)
                shares[generation] += some
                left[generation] -= some
                room -= some
        for generation, count in shares.items():
            sequence = generation.sequence
            assert sequence is not None
            start, rest = sequence.length, generation.position() - sequence.length
            echo = generation.prompt_logprobs is not None and not generation.tokens
            some = min([count, *(mark - start for mark in generation.marks if mark > start)])
            if echo:  # the logits of all its tokens are wanted
                some = min(some, self._most_rows - at)
            if PAGE < some < rest:
                some = (start + some) // PAGE * PAGE - start  # up to the end of a page
            if some > 0:
                wanted = some if echo else int(some == rest)
                rows.append(Row(generation, sequence, generation.part(start, some), wanted, at, True))
                at += wanted
        return rows
