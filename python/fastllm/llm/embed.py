"""Vectors of texts (embeddings)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError, ContextError, NumericError, OptionError, about
from fastllm.heads import Embedding, normalized
from fastllm.llm.arguments import several, token_ids
from fastllm.llm.texts import Texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Vectors(Texts):
    """The part of an LLM that makes vectors of texts."""

    embedding: Embedding
    _embedding_layers: Sequence[_core.Dense]

    @_core.standard_floats
    def embed(
        self,
        texts: Iterable[str | Sequence[int]],
        *,
        pooling: str | None = None,
        layer: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """One vector for each text, strings or token ids, in order: float32 [n, channels].

        An option that is None follows the checkpoint (see `embedding`: sentence-transformers' files, or GGUF metadata).
        Where that says nothing, a vector is the mean of the hidden states, not normalized. pooling: one of
        fastllm.heads.POOLINGS, over the hidden states at `layer` (numbered as in hidden_states). normalize: scales
        vectors to length 1. prompt: a text put before each string; prompt_name: the name of one of the checkpoint's
        prompts; "" is none. truncate: cuts texts that are too long for the model, keeping what belongs around them;
        else they are an error. Strings get what the tokenizer puts around a text, ids are taken as they are.

        Raises OptionError, ContextError, TokenizerError, NumericError (a vector is not finite), CheckpointError (the
        checkpoint asks for something that cannot be done, unless a pooling is named). An error about one of the texts
        has its index as `text`.
        """
        import numpy

        texts = several("embed", "texts", texts)
        how, layers = self.embedding.chosen(pooling, normalize), self._embedding_layers
        try:
            width = how.width(self.config.dim, layers)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} makes no vectors: {error}") from None
        before = self._lowered(how, how.prompt(prompt, prompt_name))
        skip = 0 if how.include_prompt or not before else self._prompt_length(before)
        ids = []
        for i, text in enumerate(texts):
            with about(i):
                tokens = self._embedded(text, f"text {i}", how, before, truncate=truncate)
                if isinstance(text, str) and len(tokens) <= skip:
                    raise OptionError(f"text {i} has no tokens but its prompt's, which are not pooled")
                if not isinstance(text, str) and (prompt or prompt_name):
                    raise OptionError(f"text {i} is token ids: a prompt goes before strings")
                ids.append(tokens)
        out = numpy.empty((len(ids), width), numpy.float32)
        for i, stream in enumerate(self._streams(ids, layer)):
            out[i] = how.vector(stream, layers, skip=skip if isinstance(texts[i], str) else 0, isa=self._isa)
            if not numpy.isfinite(out[i]).all():
                with about(i):
                    raise NumericError(f"{self.path} computes numbers that are not finite: the vector of text {i}")
        return normalized(out) if normalize else out

    def _embedded(
        self, text: str | Sequence[int], what: str, how: Embedding, before: str, *, truncate: bool
    ) -> list[int]:
        """The ids of a text to be embedded, cut where that is asked for; a string's with its prompt and frame."""
        longest = min(self.context, how.max_tokens or self.context)
        ids = self._prompted(before, self._lowered(how, text)) if isinstance(text, str) else token_ids(text, what)
        if len(ids) > longest:
            if not truncate:
                raise ContextError(f"{what} has {len(ids):,} tokens, the model takes {longest:,}: truncate=True cuts")
            start = end = 0
            if isinstance(text, str):
                start, end = len(self._frame.around("", suffix=False)), len(self._frame.suffix)
            kept, rest = ids[start : len(ids) - end], max(0, longest - start - end)
            kept = kept[len(kept) - rest :] if how.truncate_left else kept[:rest]
            ids = [*ids[:start], *kept, *ids[len(ids) - end :]][:longest]
        return self._ids(ids, what)

    def _prompted(self, before: str, text: str) -> list[int]:
        """The ids of a prompt and a text as one text. Special tokens that the prompt spells out become their ids."""
        words = self.tokenizer
        end = max((before.rfind(token) + len(token) for token in words.special if token in before), default=0)
        if not end or not self.config.causal:
            return self._frame.around(before + text, suffix=True)
        head = [*self._frame.around("", suffix=False), *words.encode(before[:end], special=True)]
        return [*head, *words.encode(before[end:] + text, start=False), *(words.suffix or ())]

    def _lowered(self, how: Embedding, text: str) -> str:
        special = self.tokenizer.special if how.lower_case and text and not self.config.causal else ()
        return how.lowered(text, special)

    def _prompt_length(self, before: str) -> int:
        """How many of a text's first tokens are its prompt's: those of the prompt alone, without a special last one."""
        ids = self._prompted(before, "")
        special = {self.tokenizer.token_id(token) for token in self.tokenizer.special}
        return len(ids) - bool(ids and ids[-1] in special)
