"""Sequences of tokens through the model: prompts in chunks, with the keys and values that finished texts have left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from fastllm import _core
from fastllm.engine.costs import Costs
from fastllm.errors import NumericError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 256  # tokens of a prompt in one forward: enough to compute at full speed, few enough to stop soon on Ctrl-C
_BATCH = 1024  # tokens of several texts in one forward
_WORTH = 64 << 10  # weight bytes x tokens between two barriers from which one more thread pays for its waiting
_IDLE = 4  # sequences of finished texts that are kept for a later text with the same beginning

# A sequence, the tokens to append to it, and for how many of the last of these logits are wanted.
Span: TypeAlias = tuple[_core.Sequence, Sequence[int], int]


class Engine:
    """A model with its KV cache. Several threads may call it at once, each for a text of its own."""

    def __init__(self, model: _core.Model, threads: int, layer_bytes: int, *, causal: bool, name: str) -> None:
        """threads: the most that a forward runs on; it takes fewer where its work between two barriers is too little.

        layer_bytes: bytes of weights that a token reads in one layer. causal: False for an encoder, each of whose texts
        goes through the model in one forward. name: what error messages call the model.
        """
        self.model, self.threads, self._causal, self._name = model, threads, causal, name
        # A layer has five barriers for one token, up to nine for several; five serves for both.
        self._phase_bytes = layer_bytes // 5
        self.step_threads = self._threads(1)  # threads of a forward of one token
        self.costs = Costs()
        self._cache = _core.KVCache(model)
        # Changed only by single list operations, which the GIL makes atomic. A lock would not do: if another thread
        # held it while the process forks, it would stay locked in the child for ever.
        self._idle: list[tuple[list[int], _core.Sequence]] = []

    def take(self, tokens: Sequence[int]) -> _core.Sequence:
        """A sequence that already holds a beginning of `tokens`: the longest among the idle ones, else an empty one.

        It never holds the last token, whose logits are still to be computed. The same tokens always give the same keys
        and values, to the bit, so results do not depend on what was cached.
        """
        while True:
            best, shared = None, 0
            for idle in self._idle.copy():
                common = _common(idle[0], tokens)
                # Taking a sequence throws away what it holds beyond the common part: not worth it for a shared BOS.
                if common > shared and 2 * common >= len(idle[0]):
                    best, shared = idle, common
            if best is None:
                return self._cache.sequence()
            with suppress(ValueError):  # another thread has taken it meanwhile: look again
                self._idle.remove(best)
                break
        sequence = best[1]
        sequence.truncate(min(shared, len(tokens) - 1))
        return sequence

    def give(self, tokens: Sequence[int], sequence: _core.Sequence) -> None:
        """Keeps a sequence, which holds a beginning of `tokens`, for later texts."""
        self._idle.append((list(tokens[: sequence.length]), sequence))
        del self._idle[:-_IDLE]

    def forward(self, spans: list[Span], logits: _core.Buffer) -> None:
        """Runs one forward: appends each span's tokens to its sequence, and writes the wanted logits row after row."""
        count = 0
        for span in spans:
            count += len(span[1])
        self.model.forward(spans, logits, threads=self._threads(count))

    def _threads(self, count: int) -> int:
        return min(self.threads, 1 + self._phase_bytes * count // _WORTH)

    def prefill(self, sequence: _core.Sequence, tokens: Sequence[int], logits: _core.Buffer) -> None:
        """Appends tokens, at least one, in forwards of CHUNK, and writes the logits after the last one to row 0."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            last = start + CHUNK >= len(tokens)
            self.forward([(sequence, part, int(last))], logits)

    def broken(self, sequence: _core.Sequence, text: Sequence[int]) -> NumericError:
        """The error to raise where the logits after `text` are not finite; it names the first layer that is not.

        The sequence holds the text, and maybe more: it is cut, and its last token computed again layer by layer.
        """
        position = len(text) - 1
        sequence.truncate(position)
        layer = self.model.broken_layer(sequence, text[-1], threads=self.step_threads)
        first = "only they" if layer is None else f"the first is the output of layer {layer}"
        if layer == 0:
            first += " (0 is the embedding)"
        where = f"the logits at position {position:,} of the text, {first}"
        return NumericError(f"{self._name} computes numbers that are not finite: {where}")

    def logits(self, tokens: Sequence[int]) -> Iterator[tuple[int, _core.Buffer]]:
        """Yields the logits after every token, chunk by chunk: the number of rows, and a buffer of those rows."""
        sequence = self._cache.sequence()
        step = CHUNK if self._causal else len(tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = self.model.logits(len(part))
            self.forward([(sequence, part, len(part))], rows)
            yield len(part), rows

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after a text: float32 [vocabulary rounded up to 16]. Raises NumericError unless all are finite."""
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
        """Yields the residual stream at `layer` (numbered as in LLM.hidden_states): the index of a text, and rows
        [n, dim] of it.

        A long text comes in several pieces, front to back. seconds: index of a text that is a pair -> the position at
        which its second text begins.
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
        """Deals the texts into forwards of about _BATCH tokens: lists of (index of the text, sequence, tokens).

        A causal model's text is cut where the forward is full. An encoder's text stays whole, since its tokens attend
        to those after them.
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
        """The attention probabilities of a layer: float32 [heads, T, T], each row sums to 1."""
        import numpy

        count = len(tokens)
        buffer = _core.Buffer(heads * count * count * 4)
        spans = [(self._cache.sequence(), tokens, 0)]
        self.model.forward(spans, threads=self._threads(count), attention={layer: buffer})
        return numpy.frombuffer(memoryview(buffer), numpy.float32).reshape(heads, count, count)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning on."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
