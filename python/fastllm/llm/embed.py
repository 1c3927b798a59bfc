"""What an LLM makes of texts as a whole: one vector for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastllm import _core
from fastllm.errors import CheckpointError, ContextError, NumericError, OptionError, about
from fastllm.heads import Embedding, normalized
from fastllm.llm.texts import Texts, token_ids

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
        texts: Sequence[str | Sequence[int]],
        *,
        pooling: str | None = None,
        layer: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """One vector for each text, strings or token ids, in their order: float32 [n, channels].

        Where None is given, what the checkpoint says is done (see `embedding`), sentence-transformers' files or a
        GGUF's metadata; where it says nothing, the mean of the hidden states, as long as it is. pooling: one of
        embedding.POOLINGS, of the hidden states at `layer` (see hidden_states). normalize: to length 1. prompt: goes
        before each string; prompt_name: the name of one of the checkpoint's (embedding.prompts); "" is none. truncate:
        cuts texts that are longer than the model takes, as tokenizers do: what belongs around them stays. Else they
        are an error. A string gets what its tokenizer puts around a text.

        Raises OptionError, ContextError, TokenizerError, NumericError (a vector that is not finite), CheckpointError
        (what the checkpoint says cannot be done, as long as no pooling is named). An error about one of the texts has
        its place among them as `text`.
        """
        import numpy

        if isinstance(texts, str):
            raise OptionError("embed takes a list of texts, not one text")
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
        """The ids of a text that is to be embedded; of a string with its prompt and what belongs around it."""
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
        """The ids of a prompt and a text as one text; in the prompt, special tokens that are written out count."""
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
        """Tokens of a text that are its prompt's: those of the prompt alone, less a special one that ends it."""
        ids = self._prompted(before, "")
        special = {self.tokenizer.token_id(token) for token in self.tokenizer.special}
        return len(ids) - bool(ids and ids[-1] in special)
