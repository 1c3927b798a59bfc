"""The scheduler: sequences of tokens through the model, prompts in chunks, and what earlier texts left in the cache."""

from __future__ import annotations

from _thread import allocate_lock, get_ident  # threading takes milliseconds to import
from _weakref import ref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from types import GeneratorType
from typing import TYPE_CHECKING, TypeAlias

from fastllm import _core
from fastllm.errors import NumericError, OptionError
from fastllm.speculative import MOST, Costs, Proposer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 256  # tokens of a prompt in one forward: enough to compute at full speed, few enough to stop soon on Ctrl-C
_BATCH = 1024  # tokens of several texts in one forward
_WORTH = 64 << 10  # bytes of weights times tokens between two barriers that are worth one more thread
TOGETHER = 16  # texts written at once: by then a forward computes as long as it reads
_IDLE = 4  # finished texts kept for the next request that begins alike

# A sequence, the tokens it is to get, and after how many of the last of them logits are wanted.
Span: TypeAlias = tuple[_core.Sequence, Sequence[int], int]


class Engine:
    """A model with its KV cache; several texts may run at once, each in a thread of its own."""

    def __init__(self, model: _core.Model, threads: int, layer_bytes: int, *, causal: bool, name: str) -> None:
        """layer_bytes: what a token reads of a layer; a forward with too little work to pay for barriers takes fewer.

        causal: otherwise a text goes through the model in one forward. name: what errors call the model.
        """
        self.model, self.threads, self._causal, self._name = model, threads, causal, name
        self._phase_bytes = layer_bytes // 5  # a layer has five barriers
        self.alone = self._threads(1)  # threads for one token
        self.costs = Costs()
        self._cache = _core.KVCache(model)
        # Changed by single operations of a list only, without a lock: one that another thread holds at a fork stays
        # held in the child.
        self._idle: list[tuple[list[int], _core.Sequence]] = []

    def take(self, tokens: Sequence[int]) -> _core.Sequence:
        """A sequence that holds as long a beginning of `tokens` as any idle one, but not the last token.

        The same tokens give the same keys and values to the bit, so nobody can tell that they were computed before.
        """
        while True:
            best, shared = None, 0
            for idle in self._idle.copy():
                common = _common(idle[0], tokens)
                # Taking it costs what it holds beyond that: not for a BOS in common.
                if common > shared and 2 * common >= len(idle[0]):
                    best, shared = idle, common
            if best is None:
                return self._cache.sequence()
            with suppress(ValueError):  # another thread was faster
                self._idle.remove(best)
                break
        sequence = best[1]
        sequence.truncate(min(shared, len(tokens) - 1))
        return sequence

    def give(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Hands back a sequence that holds the first of `tokens`."""
        self._idle.append((list(tokens[: sequence.length]), sequence))
        del self._idle[:-_IDLE]

    def forward(self, spans: list[Span], logits: _core.Buffer) -> None:
        """Appends tokens to sequences and writes the logits that are wanted, row after row."""
        count = 0
        for span in spans:
            count += len(span[1])
        self.model.forward(spans, logits, threads=self._threads(count))

    def _threads(self, count: int) -> int:
        return min(self.threads, 1 + self._phase_bytes * count // _WORTH)

    def prefill(self, sequence: _core.Sequence, tokens: Sequence[int], logits: _core.Buffer) -> None:
        """Appends tokens, at least one, and writes the logits after the last."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            last = start + CHUNK >= len(tokens)
            self.forward([(sequence, part, int(last))], logits)

    def broken(self, sequence: _core.Sequence, text: Sequence[int]) -> NumericError:
        """The error for logits after `text` that are not finite. The sequence holds the text, and maybe more."""
        position = len(text) - 1
        sequence.truncate(position)
        layer = self.model.broken_layer(sequence, text[-1], threads=self.alone)
        first = "only they" if layer is None else f"the first is the output of layer {layer}"
        if layer == 0:
            first += " (0 is the embedding)"
        where = f"the logits at position {position:,} of the text, {first}"
        return NumericError(f"{self._name} computes numbers that are not finite: {where}")

    def logits(self, tokens: Sequence[int]) -> Iterator[tuple[int, _core.Buffer]]:
        """Logits after every token, chunk by chunk: how many rows, and the rows."""
        sequence = self._cache.sequence()
        step = CHUNK if self._causal else len(tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = self.model.logits(len(part))
            self.forward([(sequence, part, len(part))], rows)
            yield len(part), rows

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after a text, [vocabulary rounded up]. Raises NumericError where one is not finite."""
        import numpy

        sequence, rows = self.take(tokens), self.model.logits()
        self.prefill(sequence, tokens[sequence.length :], rows)
        logits = numpy.frombuffer(memoryview(rows), numpy.float32)
        if not numpy.isfinite(logits).all():
            raise self.broken(sequence, tokens)
        self.give(tokens, sequence)
        return logits

    def hidden(
        self, texts: Sequence[Sequence[int]], layer: int, dim: int, seconds: Mapping[int, int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The stream at `layer` (see LLM.hidden_states), text after text: which text, and its rows [n, dim].

        The rows of a long text come in several pieces, front to back. seconds: index of a text -> where in it a second
        one begins, of a model whose texts come in one piece.
        """
        import numpy

        for spans in self._batches(texts):
            count = sum(len(part) for _, _, part in spans)
            buffer = _core.Buffer(count * dim * 4)
            self.model.forward(
                [(sequence, part, 0) for _, sequence, part in spans],
                threads=self._threads(count),
                hidden={layer: buffer},
                segments={i: seconds[text] for i, (text, *_) in enumerate(spans) if text in seconds},
            )
            rows, at = numpy.frombuffer(memoryview(buffer), numpy.float32).reshape(count, dim), 0
            for text, _, part in spans:
                yield text, rows[at : at + len(part)]
                at += len(part)

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, _core.Sequence, Sequence[int]]]]:
        """Texts, by their index, in forwards of at most _BATCH tokens.

        A text is cut where there is no room for all of it, unless its tokens see those after them.
        """
        spans: list[tuple[int, _core.Sequence, Sequence[int]]] = []
        room = _BATCH
        for i, text in enumerate(texts):
            sequence, start = self._cache.sequence(), 0
            while start < len(text):
                if room == 0 or (not self._causal and spans and len(text) > room):
                    yield spans
                    spans, room = [], _BATCH
                part = text[start : start + room] if self._causal else text
                spans.append((i, sequence, part))
                start += len(part)
                room = max(0, room - len(part))
        if spans:
            yield spans

    def attention(self, tokens: Sequence[int], layer: int, heads: int) -> NDArray[np.float32]:
        """What each head of a layer looks at: [heads, T, T], the rows sum to 1."""
        import numpy

        count = len(tokens)
        buffer = _core.Buffer(heads * count * count * 4)
        spans = [(self._cache.sequence(), tokens, 0)]
        self.model.forward(spans, threads=self._threads(count), attention={layer: buffer})
        return numpy.frombuffer(memoryview(buffer), numpy.float32).reshape(heads, count, count)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


class Generation:
    """One text being written: iterate over its new tokens, or add it to a Batch.

    Iterating goes on where the last iteration stopped. One thread, or one Batch, writes a text at a time: OptionError.

    prompt: the ids before; tokens: the new ones so far; finish_reason: "stop" at a stop token, "length" at max_tokens
    or the end of the context, "error" where the logits are not finite (the iterator raises it, a batch leaves it in
    `error`), None before the end. prompt_seconds, decode_seconds: time in the model and sampler;
    cached: prompt tokens that an earlier text had left in the cache. proposed, accepted: tokens that `proposer`
    guessed, and those of them that are in the text.
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
        self._told = False  # whether the sampler knows of the prompt
        self._lock = allocate_lock()
        self._writer: ref[Generator[int, None, None] | Batch] | None = None  # a link would be a cycle
        self._thread = 0  # in which the writer began

    def __iter__(self) -> Iterator[int]:
        with self._lock:
            writer = self._busy()
            if isinstance(writer, Batch):
                raise OptionError("a batch is writing this text: it cannot be iterated over")
            if writer is not None and self._thread != get_ident():
                raise OptionError("another thread is iterating over this text")
            if writer is None:
                writer = self._write()
                self._writer, self._thread = ref(writer), get_ident()
            return writer

    def claim(self, batch: Batch) -> None:
        """Leaves the writing to a batch. Raises OptionError."""
        with self._lock:
            if self._busy() is not None:
                raise OptionError("this text is being written already: it cannot be added to a batch")
            self._writer = ref(batch)

    def release(self) -> None:
        """Takes the writing back from a batch."""
        self._writer = None

    def _busy(self) -> Generator[int, None, None] | Batch | None:
        """Who is writing: the batch, or the iterator that was made last, if it can go on."""
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
                yield from self._alone(sequence, text, logits)
            else:
                yield from self._guessing(sequence, text, logits, proposer)
            engine.model.check_files()
        except NumericError:
            raise self.fail(sequence) from None
        finally:
            engine.give(text, sequence)
            if proposer is not None:
                proposer.end(text)

    def _alone(self, sequence: _core.Sequence, text: list[int], logits: _core.Buffer) -> Iterator[int]:
        """Token after token: nothing is done here for each that need not be."""
        step, sampler, threads = self._engine.model.step, self._sampler, self._engine.alone
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
        """Several tokens at a time, as far as the proposer guesses them."""
        guesses: list[int] = []
        begun = False
        now = perf_counter()
        while True:
            start = now
            if begun:
                guesses = proposer.propose(text, min(MOST, self._max - len(self.tokens) - 1))
                self._try(sequence, text[-1:] + guesses, logits)
            begun = True
            # Row after row, for as long as all guesses before it are right.
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
        """A sequence with as much of the text so far as there is; the sampler knows of the prompt."""
        sequence = self._engine.take(self.prompt + self.tokens)
        if not self._told:
            self._told = True
            self.cached = sequence.length
            for token in self.prompt:
                self._sampler.accept(token, generated=False)
        return sequence

    def _try(self, sequence: _core.Sequence, tokens: list[int], logits: _core.Buffer) -> None:
        """Logits after each of the tokens: the last one and the guesses."""
        start = perf_counter()
        self._engine.forward([(sequence, tokens, len(tokens))], logits)
        self._engine.costs.note(len(tokens), perf_counter() - start)
        self.proposed += len(tokens) - 1

    def fail(self, sequence: _core.Sequence) -> NumericError:
        """Ends the text, whose logits are not finite."""
        error = self._engine.broken(sequence, self.prompt + self.tokens)
        self.finish_reason, self.error = "error", error
        return error

    def draw(self, logits: _core.Buffer, row: int) -> int | None:
        """The next token of the text, from a row of logits; None at a stop token."""
        return self._take(self._sampler.draw(logits, row))

    def _take(self, token: int) -> int | None:
        if token in self._stop:
            self.finish_reason = "stop"
            return None
        self._sampler.accept(token, generated=True)
        self.tokens.append(token)
        if len(self.tokens) == self._max:
            self.finish_reason = "length"
        return token


class Batch:
    """Texts written together: in one forward the last token of each, and parts of the prompts of those that join.

    Each text is what it is alone. At most `most` are being written, the others wait until one has ended.
    """

    def __init__(self, engine: Engine, most: int = TOGETHER) -> None:
        self._engine, self._most = engine, most
        self._waiting: deque[Generation] = deque()
        self._running: dict[Generation, _Running] = {}
        self._logits = engine.model.logits(most)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    def add(self, generation: Generation) -> None:
        """Takes in a text that nothing else is writing, begun or not. Its proposer is not asked. Raises OptionError."""
        generation.claim(self)
        self._waiting.append(generation)

    def drop(self, generation: Generation) -> None:
        """Ends a text early, if it has not ended; it may go on elsewhere."""
        if (running := self._running.pop(generation, None)) is not None:
            self._engine.give(generation.prompt + generation.tokens, running.sequence)
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        generation.release()

    def close(self) -> None:
        """Ends all texts."""
        for generation in [*self._waiting, *self._running]:
            self.drop(generation)

    def step(self) -> list[tuple[Generation, int | None]]:
        """One forward: the texts that have got a token, and the token; None for a text that has ended without.

        A text with a finish_reason has left the batch; one whose logits are not finite has an `error`, and the others
        go on. After an exception only close is left to do.
        """
        out = self._join()
        start = perf_counter()
        spans, drawing = self._spans()
        if not spans:
            return out
        self._engine.forward(spans, self._logits)
        before = [(generation, bool(generation.tokens)) for generation in self._running]
        for row, generation in enumerate(drawing):
            token = None
            try:
                token = generation.draw(self._logits, row)
            except NumericError:
                generation.fail(self._running[generation].sequence)
            out.append((generation, token))
            if generation.finish_reason is not None:
                self.drop(generation)
            elif token is not None:
                self._running[generation].rest = [token]
        seconds = perf_counter() - start
        for generation, writing in before:
            if writing:
                generation.decode_seconds += seconds
            else:
                generation.prompt_seconds += seconds
        return out

    def _join(self) -> list[tuple[Generation, int | None]]:
        """Lets those that wait take free places; returns those that need none, since they are to have no tokens."""
        ended: list[tuple[Generation, int | None]] = []
        while self._waiting and len(self._running) < self._most:
            generation = self._waiting[0]
            if generation.finish_reason is not None:
                self.drop(generation)
                ended.append((generation, None))
            else:
                sequence = generation.begin()
                rest = (generation.prompt + generation.tokens)[sequence.length :]
                self._running[generation] = _Running(sequence, rest)
                self._waiting.popleft()
        return ended

    def _spans(self) -> tuple[list[Span], list[Generation]]:
        """What goes through the model next, and whose last rows of logits come out of it.

        A text that is being written always takes part; the prompts share CHUNK tokens, first come, first served.
        """
        spans: list[Span] = []
        drawing: list[Generation] = []
        room = CHUNK
        for generation, running in self._running.items():
            writing = bool(generation.tokens) and len(running.rest) == 1
            count = 1 if writing else min(room, len(running.rest))
            if count == 0:
                continue
            room -= 0 if writing else count
            part, running.rest = running.rest[:count], running.rest[count:]
            spans.append((running.sequence, part, int(not running.rest)))
            if not running.rest:
                drawing.append(generation)
        return spans, drawing


class _Running:
    """A text in a batch. rest: its tokens that are still to go through the model."""

    def __init__(self, sequence: _core.Sequence, rest: list[int]) -> None:
        self.sequence, self.rest = sequence, rest
