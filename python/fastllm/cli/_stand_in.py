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


def chat(self: Any, messages: Any, *, stream: bool = False, chat_template_kwargs: Any = None, max_tokens: Any = 256,
         seed: Any = None, lookup: Any = False, draft: Any = None, **sampling: Any) -> Any:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    ids = chat_format(self).encode(messages, **(chat_template_kwargs or {}))
    generation = self.start(ids, Sampling(**sampling), max_tokens=max_tokens, seed=seed, stop=self.chat_stop, lookup=lookup, draft=draft)
    result = ChatStream(generation, TextStream(generation, self.tokenizer, ()), False)
    if stream:
        return result
    list(result.pieces())
    return result.message


def apply_chat_template(self: Any, messages: Any, **more: Any) -> Any:
    return chat_format(self).encode(messages, **more)


LLM.chat = chat  # type: ignore
LLM.apply_chat_template = apply_chat_template  # type: ignore
