"""The steps in which texts are written: each is one forward for all that are being written and parts of new prompts.

(Continuous batching: Yu et al., 2022, Orca; prompts in pieces: Agrawal et al., 2024, Sarathi-Serve.)
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import perf_counter
from typing import Any, TypeAlias

from fastllm import _core
from fastllm.engine.engine import Engine, Span
from fastllm.engine.generation import Generation, Logprob, Written
from fastllm.engine.masks import Found, Masks
from fastllm.engine.places import Places
from fastllm.engine.plan import Plan, Row, end_of
from fastllm.engine.scores import changed_by, logprob
from fastllm.errors import CacheFullError, FastLLMError, NumericError

TOGETHER = 16  # texts written at once; from about here on a forward is bound by arithmetic, no longer by memory


# Takes the ids of a text so far and its float32 logits [vocabulary], which it changes or replaces.
Processor: TypeAlias = Callable[[list[int], Any], Any]


class Steps:
    """The texts of one model, and the steps that write them. One thread at a time may call `step`.

    What state a text is in follows from its tokens and the length of its sequence, so that a step may be interrupted
    anywhere, and be tried again.
    """

    def __init__(self, engine: Engine, most: int = TOGETHER) -> None:
        self._engine = engine
        self.places = Places(engine, most)
        self.alone = False  # whether the next step is that of one plain text
        self.reading: list[Generation] = []  # the texts whose prompts are read in the forward that runs
        self.cancel = _core.Cancel()  # of the forward that runs
        self.masks = Masks()
        self._logits = engine.model.logits(1)
        self._hidden: dict[int, _core.Buffer] = {}  # layers that searches need, of the forward that ran last
        # First row of a text -> the row that its callables have changed, and what it was before, for its logprobs.
        self._raw: dict[int, tuple[Any, Any]] = {}
        self._plan = Plan(engine, most)

    def step(self) -> None:
        """Runs one forward, and takes its tokens to the texts."""
        if self.alone and self._step_alone():
            return
        running = [generation for generation in self.places.live() if not generation.pauses()]
        running += self.places.admit(running)
        rows = self._plan.rows(running)
        if not rows:
            return
        n_rows = end_of(rows)
        if self._logits.nbytes < n_rows * self._engine.model.logits_stride * 4:
            self._logits = self._engine.model.logits(1 << (n_rows - 1).bit_length())
        start = perf_counter()
        self.masks.start(
            (generation, generation.matcher, [] if row.reads else row.tokens[1:])
            for row in rows
            if (generation := row.generation).matcher is not None and generation.search is None and row.wanted
        )
        try:
            ran = self._forward(rows)
        except CacheFullError as error:
            if not self.places.preempt(list(dict.fromkeys(row.generation for row in rows))):
                rows[0].generation.fail(error.with_traceback(None))  # whose frames hold rows, and so pages
            return
        except Exception as error:  # such as a file of weights that has changed: it is the same for all
            for row in rows:
                row.generation.fail(error)
            return
        finally:
            found = self.masks.take()
        if not ran:
            return
        self._note(rows, perf_counter() - start)
        self._raw.clear()
        self._take(rows, found, start)
        self.alone = self._is_alone(rows)

    def _take(self, rows: list[Row], masks: Found, start: float) -> None:
        """Takes to the texts what a forward, begun at `start`, has computed."""
        searching = dict[Generation, list[Row]]()
        drawing = list[Row]()
        for row in rows:
            if row.generation.searching:
                searching.setdefault(row.generation, []).append(row)
            elif self._looks_at(row, rows, masks):
                drawing.append(row)
        for own in searching.values():
            self._search(own, rows)
        self._draw(drawing, masks)
        seconds = perf_counter() - start
        for row in rows:
            if row.generation not in searching:
                self._finish(row, seconds)
        for generation in searching:
            generation.decode_seconds += seconds
            if generation.notify is not None:
                generation.notify()

    def _forward(self, rows: list[Row]) -> bool:
        self.reading = [row.generation for row in rows if row.reads]
        self.cancel.clear()
        try:
            if any(generation.finish_reason is not None for generation in self.reading):
                return False
            spans: list[Span] = [(row.sequence, row.tokens, row.wanted) for row in rows]
            layers = {layer for row in rows if row.generation.search for layer in row.generation.search.hidden}
            count = sum(len(row.tokens) for row in rows) if layers else 0
            self._hidden = {layer: self._engine.model.stream(count) for layer in layers}
            return self._engine.forward(spans, self._logits, cancel=self.cancel, hidden=self._hidden)
        finally:
            self.reading = []

    # ---- what a forward has computed

    def _note(self, rows: list[Row], seconds: float) -> None:
        tokens = sum(len(row.tokens) for row in rows if row.reads)
        others = sum(len(row.tokens) for row in rows if not row.reads)
        if tokens == 0:
            self._engine.costs.note(others, seconds)
        else:
            self._engine.costs.note_prompt(others, tokens, seconds)

    def _looks_at(self, row: Row, rows: list[Row], masks: Found) -> bool:
        """Whether a token is drawn from a row's logits, after what else is wanted of them. A search begins here."""
        generation, search = row.generation, row.generation.search
        if generation.finish_reason is not None:
            return False
        try:
            if search is not None and search.reads_all:
                search.read(generation, self._written([row], rows))
            if not row.wanted:
                return False
            if row.reads and generation.prompt_logprobs is not None and not generation.tokens:
                self._echo(row, generation.prompt_logprobs)
            if row.sequence.length < generation.position():
                return False  # the prompt goes on
            if generation.max_tokens == 0:
                generation.end("length")
                return False
            if search is not None:
                search.begin(generation, row.sequence, self._written([row], rows))
                generation.sequence, generation.searching = None, True
                generation.take()
                return False
            if isinstance(error := masks.get(generation), Exception):
                raise error
            if generation.processors:
                self._process(row)
        except NumericError as error:
            self._fail_numeric([row], error)
        except Exception as error:
            generation.fail(error)
        return generation.finish_reason is None

    def _search(self, own: list[Row], rows: list[Row]) -> None:
        """Has a search choose. own: its rows."""
        generation = own[0].generation
        assert generation.search is not None
        if generation.finish_reason is not None:
            return
        try:
            generation.search.take(generation, self._written(own, rows))
            generation.take()
        except NumericError as error:
            self._fail_numeric(own, error)
        except Exception as error:
            generation.fail(error)

    def _written(self, own: list[Row], rows: list[Row]) -> Written:
        """What the forward has written for the rows of one text."""
        token = sum(len(row.tokens) for row in rows[: rows.index(own[0])]) if self._hidden else 0
        row = own[0].at + own[0].wanted - 1 if own[0].reads else own[0].at
        return Written(self._logits, row, self._hidden, token, sum(len(one.tokens) for one in own))

    def _echo(self, row: Row, logprobs: list[Logprob | None]) -> None:
        """The logprobs of a prompt's tokens that follow those of a piece."""
        prompt, top = row.generation.prompt, row.generation.top
        follow = prompt[row.sequence.length - row.wanted + 1 : row.sequence.length + 1]
        logprobs += [self._logprob(row.at + i, token, top) for i, token in enumerate(follow)]

    def _logprob(self, row: int, token: int, top: int) -> Logprob:
        return logprob(self._engine, self._logits, row, token, top)

    def _process(self, row: Row) -> None:
        """Has a text's callables change the logits from which its next token is drawn."""
        import numpy

        generation, stride = row.generation, self._engine.model.logits_stride
        at = (row.at + row.wanted - 1) * stride
        logits = numpy.frombuffer(memoryview(self._logits), numpy.float32)[at : at + self._engine.vocab_size]
        if not numpy.isfinite(logits).all():  # the model's fault, which they could hide
            raise NumericError("the logits are not finite")
        raw = logits.copy() if generation.logprobs is not None else None
        changed_by(generation.processors, generation.prompt + generation.tokens, logits)
        if raw is not None:
            self._raw[row.at] = logits, raw

    def _draw(self, rows: list[Row], masks: Found) -> None:
        """Draws each text's tokens: one, and those after it that were guessed right."""
        model, threads = self._engine.model, self._engine.threads
        first = [row.at + row.wanted - 1 if row.reads else row.at for row in rows]
        draws: list[Any] = [
            (g.sampler, at, () if row.reads else row.tokens[1:], bool(g.processors), masks.get(g))
            for row, at in zip(rows, first, strict=True)
            if (g := row.generation)
        ]
        for row, at, drawn in zip(rows, first, model.draw(draws, self._logits, threads=threads), strict=True):
            generation = row.generation
            if isinstance(drawn, NumericError) and not generation.processors:
                self._fail_numeric([row], drawn)
                continue
            if isinstance(drawn, Exception):
                generation.fail(drawn)
                continue
            if generation.logprobs is not None:
                if (kept := self._raw.pop(row.at, None)) is not None:
                    kept[0][:] = kept[1]
                generation.logprobs += [self._logprob(at + i, token, generation.top) for i, token in enumerate(drawn)]
            before = generation.taken
            generation.tokens += drawn
            generation.take()
            if len(row.tokens) > 1 and not row.reads:
                generation.proposed += len(row.tokens) - 1
                generation.accepted += min(len(drawn) - 1, generation.taken - before)

    def _fail_numeric(self, own: list[Row], error: NumericError) -> None:
        """Ends a text whose logits are not finite, with an error that names the place. own: its rows.

        Where all are finite, its callables have made this error.
        """
        generation, stride = own[0].generation, 4 * self._engine.model.logits_stride
        for row in own:
            for i in range(row.wanted):
                at = (row.at + i) * stride
                logits = memoryview(self._logits)[at : at + 4 * self._engine.vocab_size].cast("f")
                if not all(map(isfinite, logits)):
                    position = row.sequence.length - row.wanted + i
                    generation.fail(self._engine.broken(row.sequence, position, row.tokens[i - row.wanted]))
                    return
        generation.fail(error)

    def _finish(self, row: Row, seconds: float) -> None:
        """After the draws: drops wrong guesses, keeps the pages of prompts that were read, and tells of new tokens."""
        generation, sequence = row.generation, row.sequence
        if row.reads:
            generation.prompt_seconds += seconds
            read = bool(generation.tokens) or generation.searching
            if read or sequence.length in generation.marks:
                self._engine.keep(generation.prompt, sequence, prompt=read)
        else:
            generation.decode_seconds += seconds
            if sequence.length >= generation.position() and generation.finish_reason is None:
                sequence.truncate(generation.position() - 1)
        if generation.notify is not None:
            generation.notify()

    # ---- a text alone

    def _is_alone(self, rows: list[Row]) -> bool:
        """Whether the next steps are those of one text that needs nothing but its next token."""
        if len(rows) != 1 or len(self.places.running) != 1 or self.places.waiting or rows[0].reads:
            return False
        g = rows[0].generation
        plain = g.proposer is None and g.search is None and g.matcher is None
        plain = plain and not g.processors and g.logprobs is None and g.notify is None
        return plain and g.finish_reason is None

    def _step_alone(self) -> bool:
        """The same as `step` for one text that needs nothing but its next token, in less time. False: it is not so."""
        generation = self.places.running[0]()
        if generation is None or generation.finish_reason is not None or self.places.waiting:
            return False
        if (sequence := generation.sequence) is None:
            return False
        engine, tokens, start = self._engine, generation.tokens, perf_counter()
        try:
            token = engine.model.step(
                sequence, tokens[-1], generation.sampler, self._logits, threads=engine.step_threads
            )
        except FastLLMError:  # the longer way deals with it
            return False
        tokens.append(token)
        generation.take()
        generation.decode_seconds += perf_counter() - start
        if generation.finish_reason is not None:
            self.alone = False
            self.places.live()
        return True
