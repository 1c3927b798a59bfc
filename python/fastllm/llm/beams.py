"""The texts that beams have found, made of their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastllm.llm.stream import Pieces, TextStream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastllm.decoding import Stops
    from fastllm.engine import Generation
    from fastllm.tokenizer import Tokenizer


class Ends:
    """Whether strings, patterns or functions end a beam."""

    def __init__(self, tokenizer: Tokenizer, previous: int, stops: Stops) -> None:
        """previous: see Pieces."""
        self._tokenizer, self._previous, self._stops = tokenizer, previous, stops

    def __call__(self, tokens: list[int]) -> bool:
        """tokens: all new ones of a beam, of which no beginning is ended."""
        pieces = Pieces(self._tokenizer, self._previous, self._stops)
        return any(pieces(token) for token in tokens)


class BeamTexts:
    """The texts of one prompt, while beams are searched and after."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer | None,
        previous: int,
        stops: Stops,
        seed: int,
        *,
        special: Mapping[int, str] | None = None,
    ) -> None:
        """tokenizer: None where the texts are lists of ids. previous, special: see Pieces."""
        self.generation, self._tokenizer, self._previous = generation, tokenizer, previous
        self._stops, self._seed, self._special = stops, seed, special

    def texts(self) -> list[Any]:
        """The best texts, the best first, once the generation has ended. Raises its error if it has one."""
        from fastllm.engine.beams import Beams

        generation = self.generation
        if generation.error is not None:
            raise generation.error
        assert isinstance(generation.search, Beams)
        texts = list[Any]()
        for one in generation.search.texts(generation):
            if self._tokenizer is None:
                texts.append(one.tokens)
                continue
            pieces = Pieces(self._tokenizer, self._previous, self._stops, self._special)
            for token in one.tokens:
                pieces(token)
            text = TextStream(generation, pieces, self._seed).rest()
            text.tokens, text.score, text.logprobs = one.tokens, one.score, one.logprobs
            text.finish_reason = "stop" if pieces.found else one.reason
            texts.append(text)
        return texts
