"""Conversations: the format in which a model reads them, and their messages turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastllm.chat.template import ChatTemplate, Message, checked
from fastllm.errors import OptionError, TokenizerError
from fastllm.tokenizer import Tokenizer

_LLAMA2_EOS = 2


class Speaker(Protocol):
    """What a format needs of a model."""

    path: Path

    @property
    def tokenizer(self) -> Tokenizer: ...

    def tokenize(self, text: str) -> list[int]: ...


def chat_format(llm: Speaker) -> ChatTemplate | Llama2Format:
    """The format of a model's conversations: its chat template, or Llama 2's format with Llama 2's vocabulary.

    Raises TokenizerError for a model that has no chat template.
    """
    tokenizer = llm.tokenizer
    if tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer)
    if tokenizer.kind == "llama2.c" or (tokenizer.kind == "sentencepiece" and tokenizer.size == 32000):
        return Llama2Format(llm)
    raise TokenizerError(
        f"{llm.path} has no chat template: neither tokenizer_config.json, chat_template.jinja nor GGUF's "
        "tokenizer.chat_template is there, so that it may be no chat model"
    )


class Llama2Format:
    """The format of Llama 2's chat models, as Meta's `chat_completion` and llama2.c's chat mode write it.

    Each message of the user begins a text, with BOS, and each answer ends one, with EOS:

        BOS [INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nuser [/INST] answer EOS BOS [INST] user [/INST]
    """

    def __init__(self, llm: Speaker) -> None:
        self._llm = llm

    def reads(self, variable: str) -> bool:
        """Whether the format knows a variable of chat templates: it knows none."""
        return False

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: object,
    ) -> str:
        """The text of a conversation, without BOS and EOS. Raises OptionError for messages that the format cannot say.

        add_generation_prompt: changes nothing, because nothing stands before an answer.
        """
        return "".join(self._texts(messages, variables))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: object,
    ) -> list[int]:
        """The ids of a conversation. continue_final_message: without the EOS after the last answer, to be continued.

        Raises OptionError like `render`.
        """
        ids: list[int] = []
        for text in self._texts(messages, variables):
            if ids:
                ids.append(_LLAMA2_EOS)
            ids += self._llm.tokenize(text)
        ended = messages[-1]["role"] != "user" and not continue_final_message
        return [*ids, _LLAMA2_EOS] if ended else ids

    def _texts(self, messages: Sequence[Message], variables: Iterable[str]) -> list[str]:
        """The texts between BOS and EOS: one for each message of the user, with the answer where there is one."""
        for name in variables:
            raise OptionError(f"{self._llm.path} has no chat template, and Llama 2's format knows no {name}")
        checked(messages)
        system, turns = "", list(messages)
        if turns[0]["role"] == "system":
            system = f"<<SYS>>\n{_content(turns.pop(0))}\n<</SYS>>\n\n"
        roles = [message["role"] for message in turns]
        if not roles or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
            raise OptionError(
                "in Llama 2's format user and assistant take turns, the user first, after a system message or none"
            )
        texts: list[str] = []
        for i, message in enumerate(turns):
            if i % 2:
                texts[-1] += f" {_content(message).strip()}"
            else:
                said = _content(message) if i else system + _content(message)
                texts.append(f"[INST] {said.strip()} [/INST]")
        return texts


def _content(message: Message) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise OptionError(f"a message's content is a {type(content).__name__}, but Llama 2's format takes text")
    return content


class Conversation:
    """The messages of a talk, which change turn by turn. A turn is a message of the user and all up to the next one.

    messages: what a model's format and LLM.chat take, a system message first where there is one.
    """

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        """Raises OptionError for what is no message."""
        given = list(messages)
        self.messages: list[dict[str, Any]] = [dict(message) for message in (checked(given) if given else ())]

    @property
    def system(self) -> str | None:
        """The system prompt; None removes it."""
        return self.messages[0]["content"] if self._begin() else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.messages[: self._begin()] = [] if text is None else [{"role": "system", "content": text}]

    def say(self, text: str) -> None:
        """Adds a message of the user."""
        self.messages.append({"role": "user", "content": text})

    def undo(self) -> list[dict[str, Any]]:
        """Removes the last turn and returns its messages: none where there is no turn."""
        at = max(self._turns(), default=len(self.messages))
        self.messages, removed = self.messages[:at], self.messages[at:]
        return removed

    def forget(self) -> bool:
        """Removes the oldest turn, but not the system prompt. Returns False where only one turn is left."""
        turns = self._turns()
        if len(turns) < 2:
            return False
        del self.messages[self._begin() : turns[1]]
        return True

    def _begin(self) -> int:
        """Where the first turn begins."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _turns(self) -> list[int]:
        """Where each turn begins."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "user"]
