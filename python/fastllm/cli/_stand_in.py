"""STAND-IN for LLM.chat(stream=True), until it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastllm.chat import chat_format
from fastllm.decoding import Sampling
from fastllm.llm import LLM, TextStream


class ChatStream:
    def __init__(self, generation: Any, stream: TextStream, opened: bool) -> None:
        self.generation, self._stream = generation, stream
        self._said: dict[str, str] = {"thinking": "", "text": ""}
        self._kind = "thinking" if opened else "text"

    def pieces(self) -> Iterator[tuple[str, str]]:
        for piece in self._stream:
            if "<think>" in piece:
                self._kind = "thinking"
            elif "</think>" in piece:
                self._kind = "text"
            else:
                self._said[self._kind] += piece
                yield self._kind, piece

    def close(self) -> None:
        self._stream.close()

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._said["text"]}
        return {**message, "reasoning_content": self._said["thinking"]} if self._said["thinking"] else message

    @property
    def cached_tokens(self) -> int:
        return self.generation.cached

    @property
    def prompt_tokens(self) -> int:
        return len(self.generation.prompt)

    @property
    def tokens(self) -> list[int]:
        return self.generation.tokens

    @property
    def finish_reason(self) -> str | None:
        return self.generation.finish_reason


def chat(
    llm: LLM,
    messages: Any,
    *,
    stream: bool,
    chat_template_kwargs: Any,
    max_tokens: Any,
    seed: Any,
    lookup: Any,
    draft: Any,
    **sampling: Any,
) -> ChatStream:
    ids = chat_format(llm).encode(messages, **chat_template_kwargs)
    generation = llm.start(
        ids, Sampling(**sampling), max_tokens=max_tokens, seed=seed, stop=llm.chat_stop, lookup=lookup, draft=draft
    )
    return ChatStream(generation, TextStream(generation, llm.tokenizer, ()), False)
