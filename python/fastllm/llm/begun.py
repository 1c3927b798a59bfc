"""Texts of any kind that generate has begun, and what has been written of them in the end."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastllm.engine import Generation
from fastllm.errors import FastLLMError
from fastllm.llm.beams import BeamTexts
from fastllm.llm.stream import TextStream


class Begun(NamedTuple):
    """Texts that generate has begun. each: how many of `texts` a prompt has. single: one text is the result, not a
    list."""

    texts: list[TextStream | Generation | BeamTexts]
    each: int
    single: bool

    def written(self) -> Any:
        """What has been written, once all generations have ended.

        If any has failed, raises its error; of several texts the error of the first, which has the others' texts as
        `texts`.
        """
        if self.single:
            return _written(self.texts[0])[0]
        errors = {i: error for i, text in enumerate(self.texts) if (error := generation_of(text).error) is not None}
        found = [[None] if i in errors else _written(text) for i, text in enumerate(self.texts)]
        texts = [text for some in found for text in some]
        if not errors:
            return texts
        first, cause = next(iter(errors.items()))
        others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        error = cause
        if isinstance(cause, FastLLMError):
            error = type(cause)(f"prompt {first // self.each}{others}: {cause}")
        vars(error).update(text=first, texts=texts)
        raise error


def generation_of(text: TextStream | Generation | BeamTexts) -> Generation:
    return text if isinstance(text, Generation) else text.generation


def _written(text: TextStream | Generation | BeamTexts) -> list[Any]:
    """What has been written of a prompt, once its generation has ended. Raises the generation's error if it has one."""
    if isinstance(text, TextStream):
        return [text.rest()]
    if isinstance(text, BeamTexts):
        return text.texts()
    if text.error is not None:
        raise text.error
    return [text.tokens]
