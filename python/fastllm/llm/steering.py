"""Sampling options as a sampler takes them for one text: phrases become token ids, and ids are checked."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from fastllm.errors import OptionError, TokenizerError

if TYPE_CHECKING:
    from fastllm.decoding import Sampling
    from fastllm.tokenizer import Tokenizer


_LONGEST_BREAKER = 100  # characters: each of its beginnings is looked for in the whole vocabulary


class Phrases:
    """The token ids of phrases in a model's vocabulary. tokenizer: its own, or why there is none."""

    def __init__(self, vocab_size: int, tokenizer: Tokenizer | TokenizerError) -> None:
        self._vocab_size, self._tokenizer = vocab_size, tokenizer
        self._breakers: dict[Any, list[tuple[int, ...]]] = {}

    def sampler_options(
        self, sampling: Sampling, ends: Sequence[int], *, min_tokens: int, max_tokens: int
    ) -> dict[str, Any]:
        """The arguments of _core.Sampler besides its numbers.

        ends: the tokens that end the text, which is done by one of them or after max_tokens. Raises OptionError for an
        id outside the vocabulary, TokenizerError.
        """
        phrases = [
            (ids, bias) for phrase, bias in sampling.sequence_bias.items() for ids in self._all(phrase, "sequence_bias")
        ]
        phrases += [(ids, -inf) for phrase in sampling.bad_words for ids in self._all(phrase, "bad_words")]
        phrases += [((token,), -inf) for token in self.checked(sampling.suppress_tokens, "suppress_tokens")]
        first = self.checked(sampling.begin_suppress_tokens, "begin_suppress_tokens")
        options: dict[str, Any] = {"bias": sampling.logit_bias, "phrases": phrases}
        options["bars"] = [(ends, min_tokens), (first, 1)]
        if sampling.forced_eos_token_id:
            options["forced"] = (
                self.checked(sampling.forced_eos_token_id, "forced_eos_token_id"),
                max(max_tokens, 1) - 1,
            )
        if sampling.exponential_decay_length_penalty is not None:
            if not ends:
                raise OptionError(
                    "exponential_decay_length_penalty needs a token that ends the text, and there is none"
                )
            options["decay"] = ends, *sampling.exponential_decay_length_penalty
        if sampling.dry_multiplier > 0:
            options["breakers"] = self._all_breakers(sampling.dry_sequence_breakers)
        if sampling.watermark is not None:
            options["watermark"] = sampling.watermark.lists(self._vocab_size)
        return options

    def forced(
        self, words: Sequence[Sequence[str | tuple[int, ...]]], ends: Sequence[int]
    ) -> list[list[tuple[int, ...]]]:
        """The ids of force_words: for each phrase its alternatives. Raises OptionError for one that ends the text."""
        found = [[ids for way in ways for ids in self._all(way, "force_words")] for ways in words]
        for ids in (ids for ways in found for ids in ways):
            if last := set(ids) & set(ends):
                raise OptionError(f"force_words has token {min(last)}, which ends the text")
        return found

    def checked(self, ids: tuple[int, ...], name: str) -> tuple[int, ...]:
        for token in ids:
            if token >= self._vocab_size:
                raise OptionError(f"{name} has {token}, which is no token id: the vocabulary has {self._vocab_size:,}")
        return ids

    def _all(self, phrase: str | tuple[int, ...], name: str) -> list[tuple[int, ...]]:
        """The ids of a phrase, in each of the ways in which a text may have it: after a space and without."""
        if not isinstance(phrase, str):
            return [self.checked(phrase, name)]
        ways = (self._encode(phrase), self._encode(" " + phrase), self._inside(phrase))
        return list(dict.fromkeys(tuple(ids) for ids in ways if ids))

    @property
    def _words(self) -> Tokenizer:
        if isinstance(self._tokenizer, TokenizerError):
            raise TokenizerError(f"phrases that are texts need a tokenizer: {self._tokenizer}")
        return self._tokenizer

    def _encode(self, text: str) -> list[int]:
        return self._words.encode(text, special=False)

    def _inside(self, text: str) -> list[int]:
        """The ids of a text that another one comes before: SentencePiece puts a space before the first."""
        before, ids = self._encode("."), self._encode("." + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._encode(text)

    def _all_breakers(self, breakers: tuple[str | tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """What ends a repetition for DRY: tokens with a breaker in them, and tokens that begin one with those after."""
        if breakers not in self._breakers:
            found = [self.checked(one, "dry_sequence_breakers") for one in breakers if not isinstance(one, str)]
            for text in (one for one in breakers if isinstance(one, str)):
                if len(text) > _LONGEST_BREAKER:
                    most = f"{_LONGEST_BREAKER} are the most"
                    raise OptionError(f"dry_sequence_breakers has a text of {len(text):,} characters: {most}")
                pieces, sought = self._words.stream().pieces, text.encode()
                found += [(token,) for token, piece in enumerate(pieces) if sought in piece]
                for cut in range(1, len(text)):
                    begin, rest = text[:cut].encode(), tuple(self._inside(text[cut:]))
                    found += [
                        (token, *rest)
                        for token, piece in enumerate(pieces)
                        if piece.endswith(begin) and sought not in piece
                    ]
            self._breakers[breakers] = found
        return self._breakers[breakers]
