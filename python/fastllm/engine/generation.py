"""One text being written, token by token."""

from __future__ import annotations

from _thread import allocate_lock, get_ident  # threading takes milliseconds to import
from _weakref import ref
from collections.abc import Generator, Iterator, Sequence
from time import perf_counter
from types import GeneratorType
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.engine.costs import MOST
from fastllm.engine.engine import Engine
from fastllm.errors import NumericError, OptionError

if TYPE_CHECKING:
    from fastllm.engine.guesses import Proposer


class Generation:
    """One text being written: iterate over its new tokens, or add it to a Batch.

    An iteration continues where the last one stopped. Only one thread, or one Batch, may write a text at a time; a
    second one gets an OptionError.

    prompt, tokens: the ids of the prompt, and the new ones so far. finish_reason: "stop" at a stop token; "length" at
    max_tokens or the end of the context; "error" where logits are not finite, which an iterator raises as NumericError
    and a batch leaves in `error`; None until then. prompt_seconds, decode_seconds: time in the model and the sampler.
    cached: prompt tokens whose keys and values were in the cache already. proposed, accepted: how many tokens the
    proposer guessed, and how many of them became part of the text.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampler: _core.Sampler,
        *,
        max_tokens: int,
        stop: Sequence[int],
        proposer: Proposer | None = None,
    ) -> None:
        self.prompt, self.tokens = list(prompt), list[int]()
        self.finish_reason: str | None = None if max_tokens else "length"
        self.error: NumericError | None = None
        self.prompt_seconds = self.decode_seconds = 0.0
        self.cached = self.proposed = self.accepted = 0
        self._engine, self._sampler, self._max, self._stop = engine, sampler, max_tokens, stop
        self._proposer = proposer
        self._told = False  # whether the sampler has been given the prompt, for its penalties
        self._lock = allocate_lock()
        self._writer: ref[object] | None = None  # weak, to avoid a reference cycle
        self._thread = 0  # the thread that began to iterate

    def __iter__(self) -> Iterator[int]:
        with self._lock:
            writer = self._busy()
            if writer is not None and not isinstance(writer, GeneratorType):
                raise OptionError("a batch is writing this text: it cannot be iterated over")
            if writer is not None and self._thread != get_ident():
                raise OptionError("another thread is iterating over this text")
            if writer is None:
                writer = self._write()
                self._writer, self._thread = ref(writer), get_ident()
            return writer

    def claim(self, batch: object) -> None:
        """Marks the text as being written by a batch. Raises OptionError where it is being written already."""
        with self._lock:
            if self._busy() is not None:
                raise OptionError("this text is being written already: it cannot be added to a batch")
            self._writer = ref(batch)

    def release(self) -> None:
        """Marks the text as no longer being written by a batch."""
        self._writer = None

    def _busy(self) -> object | None:
        """The batch or the iterator that is writing the text, if any: an iterator that has ended does not count."""
        writer = None if self._writer is None else self._writer()
        ended = isinstance(writer, GeneratorType) and writer.gi_frame is None
        return None if ended else writer

    def _write(self) -> Generator[int, None, None]:
        if self.finish_reason:
            return
        engine, proposer = self._engine, self._proposer
        text = self.prompt + self.tokens
        start = perf_counter()
        sequence = self.begin()
        try:
            logits = engine.model.logits(1 if proposer is None else MOST + 1)
            engine.prefill(sequence, text[sequence.length :], logits)
            if proposer is not None:
                proposer.begin(text)
            self.prompt_seconds += perf_counter() - start
            if proposer is None:
                yield from self._one_by_one(sequence, text, logits)
            else:
                yield from self._guessing(sequence, text, logits, proposer)
            engine.model.check_files()
        except NumericError:
            raise self.fail(sequence) from None
        finally:
            engine.give(text, sequence)
            if proposer is not None:
                proposer.end(text)

    def _one_by_one(self, sequence: _core.Sequence, text: list[int], logits: _core.Buffer) -> Iterator[int]:
        """Writes one token per forward. This loop runs for every token, so it does as little as possible."""
        step, sampler, threads = self._engine.model.step, self._sampler, self._engine.step_threads
        start = perf_counter()
        token = self.draw(logits, 0)
        while True:
            self.decode_seconds += perf_counter() - start
            if token is None:
                return
            text.append(token)
            yield token
            if self.finish_reason:
                return
            start = perf_counter()
            token = self._take(step(sequence, token, sampler, logits, threads=threads))

    def _guessing(
        self, sequence: _core.Sequence, text: list[int], logits: _core.Buffer, proposer: Proposer
    ) -> Iterator[int]:
        """Writes several tokens per forward, as far as the proposer guesses them right."""
        guesses: list[int] = []
        begun = False
        now = perf_counter()
        while True:
            start = now
            if begun:
                guesses = proposer.propose(text, min(MOST, self._max - len(self.tokens) - 1))
                self._try(sequence, text[-1:] + guesses, logits)
            begun = True
            # A row counts as long as every guess before it was right.
            for row in range(len(guesses) + 1):
                token = self.draw(logits, row)
                right = row < len(guesses) and token == guesses[row]
                if not right and guesses:
                    sequence.truncate(len(text))
                now = perf_counter()
                self.decode_seconds += now - start
                if token is None:
                    return
                self.accepted += right
                text.append(token)
                yield token
                if self.finish_reason:
                    return
                start = now = perf_counter()
                if not right:
                    break

    def begin(self) -> _core.Sequence:
        """Takes a sequence that holds as much of the text as is cached; gives the sampler the prompt the first time."""
        sequence = self._engine.take(self.prompt + self.tokens)
        if not self._told:
            self._told = True
            self.cached = sequence.length
            for token in self.prompt:
                self._sampler.accept(token, generated=False)
        return sequence

    def _try(self, sequence: _core.Sequence, tokens: list[int], logits: _core.Buffer) -> None:
        """One forward of the last token and the guesses: logits after each of them."""
        start = perf_counter()
        self._engine.forward([(sequence, tokens, len(tokens))], logits)
        self._engine.costs.note(len(tokens), perf_counter() - start)
        self.proposed += len(tokens) - 1

    def fail(self, sequence: _core.Sequence) -> NumericError:
        """Ends the text with an error, since its logits are not finite, and returns that error."""
        error = self._engine.broken(sequence, self.prompt + self.tokens)
        self.finish_reason, self.error = "error", error
        return error

    def draw(self, logits: _core.Buffer, row: int) -> int | None:
        """The next token of the text, from a row of logits; None at a stop token."""
        drawn = self._engine.model.draw([(self._sampler, row, ())], logits)[0]
        if isinstance(drawn, Exception):
            raise drawn
        return self._take(drawn[0])

    def _take(self, token: int) -> int | None:
        if token in self._stop:
            self.finish_reason = "stop"
            return None
        self.tokens.append(token)
        if len(self.tokens) == self._max:
            self.finish_reason = "length"
        return token
