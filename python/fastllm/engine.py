"""The scheduler: sequences of tokens through the model, prompts in chunks, and what earlier texts left in the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from fastllm import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 256  # tokens of a prompt in one forward: enough to compute at full speed, few enough to stop soon on Ctrl-C
_BATCH = 1024  # tokens of several texts in one forward
_WORTH = 64 << 10  # bytes of weights times tokens between two barriers that are worth one more thread
_IDLE = 4  # finished texts kept for the next request that begins alike


class Engine:
    """A model with its KV cache; several texts may run at once, each in a thread of its own."""

    def __init__(self, model: _core.Model, threads: int, layer_bytes: int, *, causal: bool) -> None:
        """layer_bytes: what a token reads of a layer; a forward with too little work to pay for barriers takes fewer.

        causal: otherwise a text goes through the model in one forward.
        """
        self.model, self.threads, self._causal = model, threads, causal
        self._phase_bytes = layer_bytes // 5  # a layer has five barriers
        self._cache = _core.KVCache(model)
        self._idle: list[tuple[list[int], _core.Sequence]] = []
        self._lock = threading.Lock()

    def take(self, tokens: Sequence[int]) -> _core.Sequence:
        """A sequence that holds as long a beginning of `tokens` as any idle one, but not the last token.

        The same tokens give the same keys and values to the bit, so nobody can tell that they were computed before.
        """
        with self._lock:
            best, shared = -1, 0
            for i, (held, _) in enumerate(self._idle):
                common = _common(held, tokens)
                # Taking it costs what it holds beyond that: not for a BOS in common.
                if common > shared and 2 * common >= len(held):
                    best, shared = i, common
            if best < 0:
                return self._cache.sequence()
            _, sequence = self._idle.pop(best)
        sequence.truncate(min(shared, len(tokens) - 1))
        return sequence

    def give(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Hands back a sequence that holds the first of `tokens`."""
        with self._lock:
            self._idle.append((list(tokens[: sequence.length]), sequence))
            del self._idle[:-_IDLE]

    def forward(self, sequence: _core.Sequence, tokens: Sequence[int], logits: _core.Buffer, rows: int) -> None:
        """Appends tokens to a sequence and writes the logits after the last `rows` of them."""
        self.model.forward([(sequence, tokens, rows)], logits, threads=self._threads(len(tokens)))

    def _threads(self, count: int) -> int:
        return min(self.threads, 1 + self._phase_bytes * count // _WORTH)

    def prefill(self, sequence: _core.Sequence, tokens: Sequence[int]) -> _core.Buffer:
        """Appends tokens, at least one, and returns the logits after the last."""
        logits = self.model.logits()
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            last = start + CHUNK >= len(tokens)
            self.forward(sequence, part, logits, int(last))
        return logits

    def logits(self, tokens: Sequence[int]) -> Iterator[tuple[int, _core.Buffer]]:
        """Logits after every token, chunk by chunk: how many rows, and the rows."""
        sequence = self._cache.sequence()
        step = CHUNK if self._causal else len(tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = self.model.logits(len(part))
            self.forward(sequence, part, rows, len(part))
            yield len(part), rows

    def hidden(self, texts: Sequence[Sequence[int]], layer: int, dim: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The stream at `layer` (see LLM.hidden_states), text after text: which text, and its rows [n, dim].

        The rows of a long text come in several pieces, front to back.
        """
        import numpy

        for spans in self._batches(texts):
            count = sum(len(part) for _, _, part in spans)
            buffer = _core.Buffer(count * dim * 4)
            self.model.forward(
                [(sequence, part, 0) for _, sequence, part in spans],
                threads=self._threads(count),
                hidden={layer: buffer},
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
    """One text being written: iterate over its new tokens.

    prompt: the ids before; tokens: the new ones so far; finish_reason: "stop" at a stop token, "length" at max_tokens
    or the end of the context, None before the end. prompt_seconds, decode_seconds: time in the model and sampler;
    cached: prompt tokens that an earlier text had left in the cache.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampler: _core.Sampler,
        *,
        max_tokens: int,
        stop: Sequence[int],
    ) -> None:
        self.prompt, self.tokens = list(prompt), list[int]()
        self.finish_reason: str | None = None
        self.prompt_seconds = self.decode_seconds = 0.0
        self.cached = 0
        self._engine, self._sampler, self._max, self._stop = engine, sampler, max_tokens, stop

    def __iter__(self) -> Iterator[int]:
        engine, sampler = self._engine, self._sampler
        if self._max == 0:
            self.finish_reason = "length"
            return
        sequence = engine.take(self.prompt)
        self.cached = sequence.length
        try:
            start = perf_counter()
            logits = engine.prefill(sequence, self.prompt[sequence.length :])
            for token in self.prompt:
                sampler.accept(token, generated=False)
            now = perf_counter()
            self.prompt_seconds = now - start
            while True:
                start = now
                if self.tokens:
                    engine.forward(sequence, self.tokens[-1:], logits, 1)
                token = sampler.draw(logits)
                now = perf_counter()
                self.decode_seconds += now - start
                if token in self._stop:
                    self.finish_reason = "stop"
                    return
                sampler.accept(token, generated=True)
                self.tokens.append(token)
                if len(self.tokens) == self._max:
                    self.finish_reason = "length"
                yield token
                if self.finish_reason:
                    return
                now = perf_counter()
        finally:
            engine.give(self.prompt + self.tokens, sequence)
