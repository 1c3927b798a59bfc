"""Conversations with a model."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm.decoding import listed
from fastllm.errors import OptionError
from fastllm.llm.arguments import flag, whole
from fastllm.llm.begun import Begun, generation_of
from fastllm.llm.reply import AsyncChatStream, ChatMessage, ChatStream, Reader, message
from fastllm.llm.stream import AsyncTextStream, Background, Begin, Pieces
from fastllm.llm.writing import Writing

if TYPE_CHECKING:
    from fastllm.chat import ChatTemplate, Llama2Format, Message, ResponseParser
    from fastllm.llm.budget import Budget

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
        write = form.encode if flag("tokenize", tokenize) else form.render
        return write(
            listed_messages,
            add_generation_prompt=flag("add_generation_prompt", add_generation_prompt),
            continue_final_message=flag("continue_final_message", continue_final_message),
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
        max_thinking_tokens: int | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """The model's reply to a conversation: a ChatMessage, or with stream=True a ChatStream of its pieces.

        messages: as for apply_chat_template; a string is one message of the user. tools, chat_template_kwargs,
        continue_final_message: as there; the content of a continued message is its new part. options: those of
        generate; with n above 1 the result is a list.

        The reply is read back into thinking, text and tool calls by the checkpoint's response template, or by that of
        its family. max_thinking_tokens: closes the thinking when it has so many tokens; 0: at once. tool_choice: "auto"
        (None): the model decides whether it calls tools; "none": it sees none; "required", the name of a tool, or
        OpenAI's {"type": "function", "function": {"name": ...}}: it has to call one, or that one. parallel_tool_calls:
        whether it may then call several.

        Raises what apply_chat_template and generate raise.
        """
        asked = Asked(
            self,
            messages,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            continue_final_message=continue_final_message,
            max_thinking_tokens=max_thinking_tokens,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            **options,
        )
        if flag("stream", stream):
            return ChatStream(self._begin(asked).stream(), asked.reader())
        begun = self._begin(asked)
        self._scheduler.run([generation_of(text) for text in begun.texts])
        return _replies(begun, asked)

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
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """chat for asyncio: to be awaited, or with stream=True an AsyncChatStream for `async for`. See agenerate.

        Takes chat's options, and raises what it raises.
        """
        asked = Asked(self, messages, **options)
        if flag("stream", stream):
            background = Background(self._scheduler)
            stream_of = self._begin(asked, background).stream()
            return AsyncChatStream(AsyncTextStream(stream_of, background), asked.reader())

        async def reply() -> Any:
            return _replies(await self._abegun(asked.ids, asked.begin(), asked.options), asked)

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

    def _begin(self, asked: Asked, background: Background | None = None) -> Begun:
        begun: Begun = self.generate(asked.ids, stream=asked.begin(background), **asked.options)
        return begun

    @cached_property
    def _special(self) -> dict[int, str]:
        """The texts of the special tokens by id."""
        words = self.tokenizer
        return {token: text for text in words.special if (token := words.token_id(text)) is not None}


_GRAMMARS = ("grammar", "json_schema", "regex", "choice")


class Asked:
    """What chat was asked for: the prompt, how replies to it are begun and read, and the options of generate."""

    def __init__(
        self,
        llm: Chatting,
        messages: Any,
        *,
        tools: Any = None,
        chat_template_kwargs: Any = None,
        continue_final_message: Any = False,
        max_thinking_tokens: Any = None,
        tool_choice: Any = None,
        parallel_tool_calls: Any = True,
        **options: Any,
    ) -> None:
        """Takes the arguments of chat."""
        from fastllm.chat import last_text, reply_format
        from fastllm.chat.calls import chosen, schemas

        variables, continued = chat_template_kwargs, flag("continue_final_message", continue_final_message)
        parallel = flag("parallel_tool_calls", parallel_tool_calls)
        if not isinstance(variables, Mapping) and variables is not None:
            raise OptionError(f"chat_template_kwargs must be a dict of variables, not {variables!r}"[:200])
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        form, messages, known = llm._conversation(messages, tools, variables or {})
        self._llm, self._tools = llm, schemas(tools)
        forced = chosen(tool_choice, self._tools)
        if tool_choice == "none":
            known.pop("tools", None)
        known["continue_final_message"] = continued
        self.ids, self._format = form.encode(messages, **known), reply_format(llm.tokenizer)
        self._prompt = form.render(messages, **known) if self._format is not None else ""
        self._said = last_text(messages[-1]) if continued else ""
        if self._said:
            self._prompt = self._prompt.rstrip().removesuffix(self._said.strip())
        ends = () if options.get("ignore_eos") else llm.chat_stop
        self.options = {**options, "stop": [*ends, *listed(options.get("stop"))]}
        if forced:
            self._force(forced, parallel)
        else:
            self._answer_after_thinking()
        self._closing: list[int] | None = None
        if max_thinking_tokens is not None:
            self._bound(whole("max_thinking_tokens", max_thinking_tokens, 0), forced=bool(forced))

    def begin(self, background: Background | None = None) -> Begin:
        """How generate begins a reply."""
        special = self._llm._special if self._format is not None else None
        return Begin(background, special, None if self._closing is None else self._budget)

    def reader(self) -> Reader:
        """What reads one reply."""
        return Reader(self._parser(), self._tools)

    def _parser(self) -> ResponseParser | None:
        from fastllm.chat import ResponseParser

        return None if self._format is None else ResponseParser(self._format.template, self._prompt, self._said)

    def _force(self, names: list[str], parallel: bool) -> None:
        """Has the reply call one of these tools: adds the grammar of that to the options."""
        from fastllm.chat.calls import grammar
        from fastllm.chat.formats import THINKING_FIELDS

        if self._said:
            raise OptionError("tool_choice forces a call, which does not go with continue_final_message")
        parser, tools = self._parser(), {name: self._tools[name] for name in names}
        if self._format is None or parser is None:
            made = None
        else:
            thinks = parser.field in THINKING_FIELDS
            made = grammar(self._format, self._llm.tokenizer, tools, several=parallel, thinks=thinks)
        if made is None:
            raise OptionError(f"tool_choice: nothing is known of how {self._llm.path} writes calls, so it forces none")
        for name in _GRAMMARS:
            if self.options.get(name) is not None:
                raise OptionError(f"tool_choice forces a call, which does not go with {name}")
        self.options["grammar"] = made

    def _answer_after_thinking(self) -> None:
        """A grammar is of the answer: where the prompt has begun the thinking, the reply ends that first."""
        from fastllm.chat.calls import after_thinking
        from fastllm.chat.formats import THINKING_FIELDS
        from fastllm.decoding.grammar import rules

        given = {name: value for name in _GRAMMARS if (value := self.options.get(name)) is not None}
        parser = self._parser() if given else None
        if self._format is None or self._format.thinking is None or parser is None or len(given) > 1:
            return
        if parser.field in THINKING_FIELDS:
            (name, value), *_ = given.items()
            self.options.pop(name)
            self.options["grammar"] = after_thinking(self._format, self._llm.tokenizer, rules(name, value))

    def _bound(self, most: int, *, forced: bool) -> None:
        from fastllm.chat.formats import closing

        if self.options.get("penalty_alpha") is not None:
            raise OptionError("max_thinking_tokens does not go with penalty_alpha, which draws nothing")
        thinking = None if self._format is None else self._format.thinking
        if thinking is None:
            raise OptionError(
                f"max_thinking_tokens: {self._llm.path} does not think, or nothing is known of how it ends that"
            )
        words = self._llm.tokenizer
        end = closing(words, thinking)
        if forced:
            end = end.partition("<|channel|>")[0]  # gpt-oss's goes on with the answer, in place of which a call comes
        self._closing = words.encode(end, special=True, start=False)
        self._most = most

    def _budget(self, pieces: Pieces) -> Budget:
        from fastllm.chat.formats import THINKING_FIELDS
        from fastllm.llm.budget import Budget

        parser, llm = self._parser(), self._llm
        assert parser is not None
        assert self._closing is not None
        return Budget(
            pieces,
            parser,
            llm.tokenizer,
            llm._special,
            fields=THINKING_FIELDS,
            closing=self._closing,
            most=self._most,
        )


def _replies(begun: Begun, asked: Asked) -> ChatMessage | list[ChatMessage]:
    """The messages of texts that are written. Raises as generate does."""
    written = begun.written()
    if isinstance(written, list):
        return [message(text, asked.reader()) for text in written]
    return message(written, asked.reader())


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
