"""The answers of a model to conversations, with the settings of a talk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastllm.cli._terminal import Screen, say
from fastllm.cli.sampling import RARE
from fastllm.decoding import DEFAULTS, Sampling
from fastllm.errors import ContextError, OptionError

if TYPE_CHECKING:
    from fastllm.chat import Conversation, Message
    from fastllm.llm import LLM, ChatStream


class Answers:
    """Answers conversations, each with what LLM.chat writes for the same messages, seed and settings.

    settings: seed, max_tokens and the fields of Sampling that are numbers, by name. cached: how many tokens of the last
    prompt were in the cache.
    """

    def __init__(
        self, llm: LLM, settings: Mapping[str, Any], options: Mapping[str, Any] | None = None, *, think: bool = True
    ) -> None:
        """settings: those that are not the model's defaults. options: other options of LLM.chat, for every answer.

        think: False has the chat template say that the model answers at once. Raises OptionError where it cannot, and
        for settings.
        """
        from fastllm.chat import chat_format

        if not chat_format(llm).reads("enable_thinking") and not think:
            raise OptionError(f"--no-think: the chat template of {llm.path} has no variable enable_thinking")
        self.llm, self.cached, self._options = llm, 0, dict(options or {})
        self._variables: dict[str, Any] = {} if think else {"enable_thinking": False}
        self.settings: dict[str, Any] = {"seed": 0, "max_tokens": None, **_numbers(llm.defaults)}
        self.set(settings)

    def set(self, values: Mapping[str, Any]) -> None:
        """Changes settings: all of them, or none and an OptionError."""
        for name in values:
            if name not in self.settings:
                raise OptionError(f"there is no setting {name!r}; settings are {', '.join(self.settings)}")
            if values[name] is None and name != "max_tokens":
                raise OptionError(f"{name} must be a number, not None")
        settings = {**self.settings, **values}
        _check_whole("seed", settings["seed"], 0, (1 << 64) - 1)
        if settings["max_tokens"] is not None:
            _check_whole("max_tokens", settings["max_tokens"], -1, (1 << 63) - 1)
        before = Sampling(**{name: self.settings[name] for name in _numbers(DEFAULTS)})
        sampling = before.updated(**{name: value for name, value in values.items() if name in Sampling._fields})
        self.settings = {**settings, **_numbers(sampling)}

    @property
    def shown(self) -> dict[str, Any]:
        """The settings that most talks are about, and those that are not as they always are."""
        usual = DEFAULTS._asdict()
        return {name: value for name, value in self.settings.items() if name not in RARE or value != usual[name]}

    def count(self, messages: Sequence[Message], *, asking: bool = True) -> int:
        """How many tokens a conversation has. asking: with the beginning of the answer to it."""
        return len(self.llm.apply_chat_template(messages, add_generation_prompt=asking, **self._variables))

    def fit(self, conversation: Conversation) -> None:
        """Forgets the oldest turns of a conversation until it fits into the context, with room for an answer.

        The room is a quarter of the context, or max_tokens where that is less; the last message may take it. Raises
        ContextError, and forgets nothing, where the last message does not fit alone.
        """
        context, before = self.llm.context, conversation.messages.copy()
        most = self.settings["max_tokens"]
        room = context // 4 if most in (None, -1) else min(most, context // 4)
        forgotten = 0
        while (count := self.count(conversation.messages)) + room > context and conversation.forget():
            forgotten += 1
        if count > context:
            conversation.messages = before
            raise ContextError(f"the message makes a prompt of {count:,} tokens, more than the context of {context:,}")
        if forgotten:
            turns = f"{forgotten} oldest turns are" if forgotten > 1 else "oldest turn is"
            say(f"[the context of {context:,} tokens is full: the {turns} forgotten]")

    def answer(self, conversation: Conversation, screen: Screen) -> bool:
        """Adds an answer to a conversation while it is shown. Returns False where Ctrl-C stopped it.

        What was written by then is in the conversation: maybe nothing, where the prompt was still being read.
        """
        stream, whole = self._start(conversation.messages), True
        try:
            for kind, piece in stream.pieces():
                screen.show(kind, piece)
        except KeyboardInterrupt:
            whole = False
        finally:
            stream.close()
            screen.end()
        conversation.messages.append(_plain(stream.message))
        text = stream.message["content"]
        self.cached = text.cached_tokens
        # The last token takes no position of the context.
        if text.finish_reason == "length" and text.prompt_tokens + len(text.tokens) > self.llm.context:
            say(f"[the answer ends here because the context of {self.llm.context:,} tokens is full]")
        return whole

    def write(self, conversation: Conversation) -> dict[str, Any]:
        """The answer to a conversation as plain data: a message, and what is to be told about it."""
        stream = self._start(conversation.messages)
        for _ in stream.pieces():
            pass
        text = stream.message["content"]
        return {
            **_plain(stream.message),
            "finish_reason": text.finish_reason,
            "prompt_tokens": text.prompt_tokens,
            "generated_tokens": len(text.tokens),
            "seed": text.seed,
        }

    def _start(self, messages: Sequence[Message]) -> ChatStream:
        return self.llm.chat(
            messages, stream=True, chat_template_kwargs=self._variables, **self.settings, **self._options
        )


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise OptionError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _plain(message: Message) -> dict[str, Any]:
    """A message as plain data: its texts without what LLM.chat tells about them."""
    return {name: str(value) if isinstance(value, str) else value for name, value in message.items()}


def _numbers(sampling: Sampling) -> dict[str, float]:
    """The options that are numbers, which a talk can change."""
    return {name: value for name, value in sampling._asdict().items() if isinstance(value, (int, float))}
