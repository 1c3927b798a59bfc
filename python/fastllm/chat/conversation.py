"""Conversations with a model, turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fastllm.chat.template import ChatTemplate, Message
from fastllm.errors import TokenizerError
from fastllm.tokenizer import Tokenizer, decode


class Speaker(Protocol):
    """What a conversation needs of a model."""

    path: Path
    chat_stop: tuple[int, ...]

    @property
    def tokenizer(self) -> Tokenizer: ...

    def tokenize(self, text: str) -> list[int]: ...


class Chat(Protocol):
    """A conversation with a model. tokens: the ids of all of it so far, for the model to continue with its reply.

    stop: the ids that end a reply.
    """

    tokens: list[int]
    stop: tuple[int, ...]

    def say(self, text: str) -> list[int]:
        """Adds a message of the user and returns the ids of the whole conversation."""

    def reply(self, tokens: list[int]) -> None:
        """Adds the model's reply, as ids without the one that ended it."""


def start_chat(llm: Speaker, system: str | None = None) -> Chat:
    """A conversation in the model's own format: its chat template's, or Llama 2's with Llama 2's vocabulary.

    Raises TokenizerError for a model that has no chat template.
    """
    tokenizer = llm.tokenizer
    if tokenizer.chat_template is not None:
        return TemplateChat(llm, system)
    if tokenizer.kind == "llama2.c" or (tokenizer.kind == "sentencepiece" and tokenizer.size == 32000):
        return Llama2Chat(llm, system)
    raise TokenizerError(
        f"{llm.path} has no chat template: neither tokenizer_config.json, chat_template.jinja nor GGUF's "
        "tokenizer.chat_template is there, so that it may be no chat model"
    )


class Llama2Chat(Chat):
    """The prompt format of Llama 2's chat models, as llama2.c's chat mode writes it."""

    def __init__(self, llm: Speaker, system: str | None = None) -> None:
        self._llm, self._system = llm, system
        self.tokens = []
        self.stop = llm.chat_stop

    def say(self, text: str) -> list[int]:
        if self._system:
            text = f"<<SYS>>\n{self._system}\n<</SYS>>\n\n{text}"
            self._system = None  # in the first turn only
        self.tokens += self._llm.tokenize(f"[INST] {text} [/INST]")
        return self.tokens

    def reply(self, tokens: list[int]) -> None:
        self.tokens += [*tokens, 2]  # EOS ends its turn


class TemplateChat(Chat):
    """A conversation by the model's chat template."""

    def __init__(self, llm: Speaker, system: str | None = None) -> None:
        self._tokenizer, self._template = llm.tokenizer, ChatTemplate(llm.tokenizer)
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.tokens = []
        self.stop = llm.chat_stop

    def say(self, text: str) -> list[int]:
        messages = [*self._messages, {"role": "user", "content": text}]
        self.tokens = self._template.encode(messages)
        self._messages = messages
        return self.tokens

    def reply(self, tokens: list[int]) -> None:
        text = decode(self._tokenizer, tokens)
        self._messages.append({"role": "assistant", "content": text})
