"""The scheduler: sequences of tokens through the model, prompts in chunks, and what earlier texts left in the cache."""

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
_WORTH = 64 << 10  # bytes of weights times tokens between two barriers that are worth one more thread
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
