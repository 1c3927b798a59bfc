"""Sequences of tokens through the model, and the memory of their keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from fastllm import _core
from fastllm.engine.costs import Costs
from fastllm.engine.prefix import KEPT, PAGE, PrefixTree
from fastllm.errors import CacheFullError, NumericError
from fastllm.machine import kv_bytes_default

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.engine.disk import PromptCache

CHUNK = 256  # tokens of a prompt in one forward: enough to compute at full speed, few enough to stop soon on Ctrl-C
_BATCH = 1024  # tokens of several texts in one forward
_WORTH = 64 << 10  # weight bytes x tokens between two barriers from which one more thread pays for its waiting

# A sequence, the tokens to append to it, and for how many of the last of these logits are wanted.
Span: TypeAlias = tuple[_core.Sequence, Sequence[int], int]


class Engine:
    """A model with its KV cache, and what is known of earlier texts. Several threads may call it at once.

    kv_bytes: bytes that keys and values may take, those that are kept for later texts included. capacity: positions
    that a text may have for that.
    """

    def __init__(
        self,
        model: _core.Model,
        threads: int,
        layer_bytes: int,
        *,
        causal: bool,
        vocab_size: int,
        name: str,
        kv_bytes: int | None = None,
    ) -> None:
        """threads: the most that a forward runs on; it takes fewer where its work between two barriers is too little.

        layer_bytes: bytes of weights that a token reads in one layer. causal: False for an encoder, each of whose texts
        goes through the model in one forward. name: what error messages call the model. kv_bytes: None: a share of the
        memory that is free now, of which the ends of KEPT texts are kept at most.
        """
        self.vocab_size = vocab_size
        self.model, self.threads, self._causal, self._name = model, threads, causal, name
        # A layer has five barriers for one token, up to nine for several; five serves for both.
        self._phase_bytes = layer_bytes // 5
        self.step_threads = self._threads(1)  # threads of a forward of one token
        self.costs = Costs()
        self.kv_bytes = kv_bytes_default()[0] if kv_bytes is None else kv_bytes
        self.cache = _core.KVCache(model, limit=self.kv_bytes)
        self.prefixes = PrefixTree(self.cache, KEPT if kv_bytes is None else None)
        self.capacity = self._capacity()
        self.disk: PromptCache | None = None  # prompts of earlier processes

    def _bytes_for(self, pages: int) -> int:
        """Bytes of the keys and values of a text of so many pages. Layers with a window keep its last positions, and
        those of a forward."""
        kinds = zip(self.cache.windows, self.cache.page_bytes, strict=True)
        return sum(size * (min(pages, (window + CHUNK) // PAGE + 2) if window else pages) for window, size in kinds)

    def _capacity(self) -> int:
        low, high = 0, 1 << 26
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._bytes_for(middle) <= self.kv_bytes else (low, middle - 1)
        return low * PAGE

    def has_room(self, tokens: int, sequence: _core.Sequence, forks: int = 1) -> bool:
        """Whether there are pages for a text of so many tokens, of which a sequence holds some, and of whose last page
        each of its `forks` has one of its own. Forgets old texts for it."""
        pages = (tokens + PAGE - 1) // PAGE
        need = self._bytes_for(pages) - self._bytes_for(sequence.length // PAGE) + (forks - 1) * self._bytes_for(1)
        while self.cache.used + need > self.kv_bytes:
            if not self.prefixes.evict():
                return False
        return True

    def sequence(self) -> _core.Sequence:
        """A new, empty sequence."""
        return self.cache.sequence()

    def open(self, tokens: Sequence[int]) -> tuple[_core.Sequence, int]:
        """A sequence that holds a beginning of `tokens`, as much as is known, but never the last token; and how far its
        text was known at all (see PrefixTree.find)."""
        sequence, known = self.prefixes.find(tokens)
        if self.disk is not None and (found := self.disk.load(tokens, sequence, self.prefixes.evict)) is not None:
            sequence = found
            self.prefixes.keep(tokens, sequence)
        return sequence, known

    def keep(self, tokens: Sequence[int], sequence: _core.Sequence, *, prompt: bool = False) -> None:
        """Keeps what a sequence holds, a beginning of `tokens`, for later texts; long prompts also on disk."""
        self.prefixes.keep(tokens, sequence)
        if prompt and self.disk is not None:
            self.disk.save(tokens, sequence)

    def forward(self, spans: list[Span], logits: _core.Buffer | None = None, **more: Any) -> bool:
        """Runs one forward: appends each span's tokens to its sequence, and writes the wanted logits row after row.

        more: what else Model.forward takes. False: it was cancelled, and nothing has changed. Raises CacheFullError
        where there are no pages, and no old texts to forget for them.
        """
        count = 0
        for span in spans:
            count += len(span[1])
        threads = self._threads(count)
        while True:
            try:
                return self.model.forward(spans, logits, threads=threads, **more)
            except CacheFullError:  # noqa: PERF203
                if not self.prefixes.evict():
                    raise

    def _threads(self, count: int) -> int:
        return min(self.threads, 1 + self._phase_bytes * count // _WORTH)

    def prefill(self, sequence: _core.Sequence, tokens: Sequence[int], logits: _core.Buffer) -> None:
        """Appends tokens, at least one, in forwards of CHUNK, and writes the logits after the last one to row 0."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            last = start + CHUNK >= len(tokens)
            self.forward([(sequence, part, int(last))], logits)

    def broken(self, sequence: _core.Sequence, position: int, token: int) -> NumericError:
        """The error to raise where the logits after the token at a position are not finite; it names the first layer
        that is not.

        The sequence holds the token, and maybe more: it is cut, and the token computed again layer by layer.
        """
        sequence.truncate(position)
        layer = self.model.broken_layer(sequence, token, threads=self.step_threads)
        first = "only they" if layer is None else f"the first is the output of layer {layer}"
        if layer == 0:
            first += " (0 is the embedding)"
        where = f"the logits at position {position:,} of the text, {first}"
        return NumericError(f"{self._name} computes numbers that are not finite: {where}")

    def logits(self, tokens: Sequence[int]) -> Iterator[tuple[int, _core.Buffer]]:
        """Yields the logits after every token, chunk by chunk: the number of rows, and a buffer of those rows."""
        sequence = self.cache.sequence()
        step = CHUNK if self._causal else len(tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = self.model.logits(len(part))
            self.forward([(sequence, part, len(part))], rows)
            yield len(part), rows

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after a text: float32 [vocabulary rounded up to 16]. Raises NumericError unless all are finite."""
        import numpy

        (sequence, _), rows = self.open(tokens), self.model.logits()
        self.prefill(sequence, tokens[sequence.length :], rows)
        logits = numpy.frombuffer(memoryview(rows), numpy.float32)
        if not numpy.isfinite(logits).all():
            raise self.broken(sequence, len(tokens) - 1, tokens[-1])
        self.keep(tokens, sequence)
        return logits

    def hidden(
        self, texts: Sequence[Sequence[int]], layer: int, dim: int, seconds: Mapping[int, int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields the residual stream at `layer` (numbered as in LLM.hidden_states): the index of a text, and rows
        [n, dim] of it.

        A long text comes in several pieces, front to back. seconds: index of a text that is a pair -> the position at
        which its second text begins.
        """
        import numpy

        for spans in self._batches(texts):
            count = sum(len(part) for _, _, part in spans)
            buffer = _core.Buffer(count * dim * 4)
            self.forward(
                [(sequence, part, 0) for _, sequence, part in spans],
                hidden={layer: buffer},
                segments={i: seconds[text] for i, (text, *_) in enumerate(spans) if text in seconds},
            )
            rows, at = numpy.frombuffer(memoryview(buffer), numpy.float32).reshape(count, dim), 0
            for text, _, part in spans:
                yield text, rows[at : at + len(part)]
                at += len(part)

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, _core.Sequence, Sequence[int]]]]:
        """Deals the texts into forwards of about _BATCH tokens: lists of (index of the text, sequence, tokens).

        A causal model's text is cut where the forward is full. An encoder's text stays whole, since its tokens attend
        to those after them.
        """
        spans: list[tuple[int, _core.Sequence, Sequence[int]]] = []
        room = _BATCH
        for i, text in enumerate(texts):
            sequence, start = self.cache.sequence(), 0
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
        """The attention probabilities of a layer: float32 [heads, T, T], each row sums to 1."""
        import numpy

        count = len(tokens)
        buffer = _core.Buffer(heads * count * count * 4)
        self.forward([(self.cache.sequence(), tokens, 0)], attention={layer: buffer})
        return numpy.frombuffer(memoryview(buffer), numpy.float32).reshape(heads, count, count)
