"""A text while it is written."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from fastllm.decoding import Stops
from fastllm.engine import Generation
from fastllm.tokenizer import Tokenizer


class TextStream:
    """Iterates over the pieces of a text as it is written; ends before a stop string.

    generation: its token ids and times. finish_reason: "stop" or "length" once it has ended, None until then.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, stops: Stops | tuple[()]) -> None:
        self.generation = generation
        self.finish_reason: str | None = None
        previous = generation.prompt[-1] if generation.prompt else None
        self._decoder = tokenizer.stream(previous)
        self._stops = stops.scan() if stops else None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the text early."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        push = self.push if self._stops else self._decoder.push
        for token in self.generation:
            if piece := push(token):
                yield piece
            if self.finish_reason:
                return
        if piece := self.end():
            yield piece

    def push(self, token: int) -> str:
        """For callers that do not iterate: takes the next token and returns the text that is now certain, maybe none.

        Sets finish_reason to "stop" where the token completes a stop string.
        """
        piece = self._decoder.push(token)
        if not self._stops:
            return piece
        ready = self._stops.push(piece)
        if self._stops.found:
            self.finish_reason = "stop"
        return ready

    def end(self) -> str:
        """Returns the rest of the text, after the last token."""
        rest, self.finish_reason = self._decoder.flush(), self.generation.finish_reason
        if self._stops:
            rest = self._stops.push(rest) + self._stops.end()
            self.finish_reason = "stop" if self._stops.found else self.finish_reason
        return rest
