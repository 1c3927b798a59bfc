"""A bound on how much a model thinks: after so many tokens its thinking is closed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastllm import _core
    from fastllm.chat import ResponseParser
    from fastllm.engine import Generation
    from fastllm.llm.stream import Pieces
    from fastllm.tokenizer import Tokenizer


class Budget:
    """The `watch` of a text whose thinking may have at most so many tokens.

    Tokens between the delimiters count. When there are as many, and the thinking goes on, the tokens that close it are
    written, whatever the model would draw; the text goes on after them. The text is the same with guesses: there are
    never more of them than tokens left, so that none lies beyond the place where the thinking is closed.
    """

    def __init__(
        self,
        pieces: Pieces,
        parser: ResponseParser,
        tokenizer: Tokenizer,
        special: Mapping[int, str],
        *,
        fields: Sequence[str],
        closing: Sequence[int],
        most: int,
    ) -> None:
        """parser: of this reply, for the budget alone. fields: those of the message that are thinking. special: the
        texts of special tokens. closing: the tokens that close the thinking. most: how many it may have."""
        self._pieces, self._parser, self._special = pieces, parser, special
        self._words = tokenizer.stream()
        self._fields, self._closing, self._left = fields, closing, most
        self._thinks = self._over = False

    def begin(self, generation: Generation) -> None:
        self._sampler: _core.Sampler = generation.sampler
        generation.limit = self._limit
        self._look()

    def __call__(self, token: int) -> bool:
        """Takes the next token; returns whether the text ends with it."""
        ended = self._pieces(token)
        if not self._over:
            thought = self._thinks
            self._parser.feed(self._words.push(token))
            self._parser.feed(self._special.get(token, ""), special=True)
            self._over = thought and self._parser.field not in self._fields
            self._left -= thought and not self._over
            self._look()
        return ended

    def _look(self) -> None:
        """Closes the thinking where it has no tokens left."""
        self._thinks = not self._over and self._parser.field in self._fields
        if self._thinks and self._left <= 0:
            self._sampler.write(self._closing)
            self._thinks, self._over = False, True

    def _limit(self) -> int | None:
        """How many tokens may be guessed now; None: any number."""
        return None if self._over else max(0, self._left - 1)
