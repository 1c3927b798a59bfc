"""Conversations with a model."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm.decoding import listed
from fastllm.errors import OptionError
from fastllm.llm.reply import AsyncChatStream, ChatMessage, ChatStream, message
from fastllm.llm.text import Text
from fastllm.llm.writing import Writing

if TYPE_CHECKING:
    from fastllm.chat import ChatTemplate, Llama2Format, Message, Thinking

# Arguments of their own, here or in transformers' apply_chat_template, which a template would take for variables.
_NO_VARIABLES = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
)


class Chatting(Writing):
    """The part of an LLM that talks."""

    @overload
    def apply_chat_template(
        self, messages: Iterable[Message], *, tokenize: Literal[True] = True, **options: Any
    ) -> list[int]: ...
    @overload
    def apply_chat_template(self, messages: Iterable[Message], *, tokenize: Literal[False], **options: Any) -> str: ...
    def apply_chat_template(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **chat_template_kwargs: Any,
    ) -> list[int] | str:
        """The token ids of a conversation, or with tokenize=False its text, in the format of the model's own template.

        messages: each a dict with a role, and a content that is a text or a list of parts. Special tokens written in a
        content stay text, so that no message can end its turn (the ids are those of transformers where there are none).
        tools: JSON schemas of functions that the model may call. add_generation_prompt: whether the model's turn begins
        at the end. continue_final_message: ends after the content of the last message instead, for the model to
        continue it. chat_template_kwargs: other variables of the template, such as enable_thinking or documents.

        Raises TokenizerError (no template, or one that cannot be run), OptionError (messages that the template refuses
        or that are none, a variable that the template does not have).
        """
        form, listed_messages, variables = self._conversation(messages, tools, chat_template_kwargs)
        write = form.encode if _flag("tokenize", tokenize) else form.render
        return write(
            listed_messages,
            add_generation_prompt=_flag("add_generation_prompt", add_generation_prompt),
            continue_final_message=_flag("continue_final_message", continue_final_message),
            **variables,
        )

    @overload
    def chat(self, messages: str | Iterable[Message], *, stream: Literal[True], **options: Any) -> ChatStream: ...
    @overload
    def chat(
        self, messages: str | Iterable[Message], *, stream: Literal[False] = False, **options: Any
    ) -> ChatMessage: ...
    def chat(
        self,
        messages: str | Iterable[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """The model's reply to a conversation: a ChatMessage, or with stream=True a ChatStream of its pieces.

        messages: as for apply_chat_template; a string is one message of the user. tools, chat_template_kwargs,
        continue_final_message: as there; the content of a continued message is its new part. options: those of
        generate; with n above 1 the result is a list.

        Raises what apply_chat_template and generate raise.
        """
        ids, thinking, options = self._asked(messages, tools, chat_template_kwargs, continue_final_message, options)
        if _flag("stream", stream):
            return ChatStream(self.generate(ids, stream=True, **options), thinking())
        return _replies(self.generate(ids, **options), thinking)

    @overload
    def achat(self, messages: str | Iterable[Message], *, stream: Literal[True], **options: Any) -> AsyncChatStream: ...
    @overload
    def achat(
        self, messages: str | Iterable[Message], *, stream: Literal[False] = False, **options: Any
    ) -> Coroutine[Any, Any, ChatMessage]: ...
    def achat(
        self,
        messages: str | Iterable[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """chat for asyncio: to be awaited, or with stream=True an AsyncChatStream for `async for`. See agenerate."""
        ids, thinking, options = self._asked(messages, tools, chat_template_kwargs, continue_final_message, options)
        if _flag("stream", stream):
            return AsyncChatStream(self.agenerate(ids, stream=True, **options), thinking())

        async def reply() -> Any:
            return _replies(await self.agenerate(ids, **options), thinking)

        return reply()

    def _conversation(
        self, messages: Any, tools: Any, variables: Mapping[str, Any]
    ) -> tuple[ChatTemplate | Llama2Format, Sequence[Message], dict[str, Any]]:
        """The format of the model's conversations, the messages as a list, and the format's variables; all checked."""
        from fastllm.chat import chat_format, checked

        form = chat_format(self)
        known = dict(variables)
        for name in known:
            if name in _NO_VARIABLES:
                raise OptionError(f"{name} is no variable of a chat template that can be set")
            if not form.reads(name):
                raise OptionError(f"the chat template of {self.path} has no variable {name}")
        _check_dicts("documents", known.get("documents"))
        _check_dicts("tools", tools)
        if tools is not None:
            if tools and not form.reads("tools"):
                raise OptionError(f"the chat template of {self.path} takes no tools")
            known["tools"] = list(tools)
        return form, checked(messages), known

    def _asked(
        self, messages: Any, tools: Any, variables: Any, continued: bool, options: dict[str, Any]
    ) -> tuple[list[int], Callable[[], Thinking], dict[str, Any]]:
        """The prompt of a reply, what tells its thinking from its text, and the options of generate."""
        from fastllm.chat import Thinking, last_text, markers

        if not isinstance(variables, Mapping) and variables is not None:
            raise OptionError(f"chat_template_kwargs must be a dict of variables, not {variables!r}"[:200])
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        form, messages, known = self._conversation(messages, tools, variables or {})
        known["continue_final_message"] = _flag("continue_final_message", continued)
        ids, pair = form.encode(messages, **known), markers(self.tokenizer)
        prompt = form.render(messages, **known) if pair else ""
        said = last_text(messages[-1]) if continued else ""
        ends = () if options.get("ignore_eos") else self.chat_stop
        options = {**options, "stop": [*ends, *listed(options.get("stop"))]}
        return ids, lambda: Thinking(pair, prompt, said), options


def _replies(written: Text | list[Text], thinking: Callable[[], Thinking]) -> ChatMessage | list[ChatMessage]:
    """The messages of one or several texts."""
    if isinstance(written, list):
        return [_reply(text, thinking()) for text in written]
    return _reply(written, thinking())


def _reply(text: Text, thinking: Thinking) -> ChatMessage:
    return message(text, [*thinking.push(text), *thinking.end()])


def _flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    raise OptionError(f"{name} must be True or False, not {value!r}"[:200])


def _check_dicts(name: str, values: Any) -> None:
    """Raises OptionError unless an argument is None or a list of dicts."""
    if values is None:
        return
    if not isinstance(values, (list, tuple)):
        raise OptionError(f"{name} must be a list of dicts, not {values!r}"[:200])
    for i, value in enumerate(values):
        if not isinstance(value, Mapping):
            what = "a function: give its JSON schema" if callable(value) else repr(value)
            raise OptionError(f"{name}[{i}] must be a dict, not {what}"[:200])
