"""Turns of a conversation as tokens."""

from __future__ import annotations

from fastllm.llm import LLM


class Llama2Chat:
    """The prompt format of Llama 2's chat models, as llama2.c's chat mode writes it.

    tokens: the conversation so far, ready to be continued by the model's reply.
    """

    def __init__(self, llm: LLM, system: str | None = None) -> None:
        self._llm, self._system = llm, system
        self.tokens: list[int] = []

    def say(self, text: str) -> list[int]:
        """Adds what the user says and returns the whole conversation."""
        if self._system:
            text = f"<<SYS>>\n{self._system}\n<</SYS>>\n\n{text}"
            self._system = None  # in the first turn only
        self.tokens += self._llm.tokenize(f"[INST] {text} [/INST]")
        return self.tokens

    def reply(self, tokens: list[int]) -> None:
        """Adds what the model has said; EOS ends its turn."""
        self.tokens += [*tokens, 2]
