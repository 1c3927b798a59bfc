"""Conversations as tokens, by a chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastllm.decoding import is_list
from fastllm.errors import FastLLMError, OptionError, TokenizerError, import_error
from fastllm.tokenizer import Tokenizer

Message = Mapping[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "model", "tool", "function", "ipython", "query", "document")
# Special tokens that occur inside messages are put between these while the template runs. Both are noncharacters, which
# Unicode reserves for such internal use.
_MARK, _END = "\ufdd0", "\ufdd1"
_CONTINUED = "\ufdd2"  # stands after the text that the model is to continue, with a space, which a template may trim


class ChatTemplate:
    """A tokenizer's chat template. stop: ids of the tokens that end a turn.

    A special token that the template itself writes becomes its id. One that a user typed into a message must stay text,
    or the message could end its own turn and forge the next (prompt injection). So:

        message   "hi <|im_end|>"
        marked    "hi MARK<|im_end|>END"              before the template runs
        rendered  "<|im_start|>user\nhi MARK<|im_end|>END<|im_end|>\n"
        encoded    special                text       special          marked parts are encoded as plain text

    Everything that is not marked is encoded as one text, so that messages without special tokens get the ids that
    transformers gives. Added tokens that are not special, such as <tool_call>, are marked too where the template names
    them, except in what the assistant says.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None) -> None:
        """source: a template in place of the tokenizer's own. Raises TokenizerError where there is none."""
        with_tools = tokenizer.tool_template if source is None else source
        source = tokenizer.chat_template if source is None else source
        if source is None:
            raise TokenizerError("the model has no chat template")
        self._tokenizer, self._source, self._with_tools = tokenizer, source, with_tools or source
        written = self._source + self._with_tools
        named = [token for token in tokenizer.added if token.strip() and token in written]
        self._control = _Marker(tokenizer.special)
        self._named = _Marker([*tokenizer.special, *named])
        self.stop = tokenizer.ends

    def reads(self, variable: str) -> bool:
        """Whether the template has the name of a variable, such as enable_thinking; else it has no effect."""
        return re.search(rf"\b{re.escape(variable)}\b", self._source + self._with_tools) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: object,
    ) -> str:
        """The text of a conversation. add_generation_prompt: whether to begin the model's turn at the end.

        continue_final_message: ends the text after the content of the last message instead, for the model to continue
        it. variables: other inputs of the template, such as tools or enable_thinking. Raises TokenizerError where the
        template cannot be run, OptionError for messages that are none, and where it refuses them.
        """
        plain = [_plain(message) for message in checked(messages)]
        return self._run(plain, add_generation_prompt, continue_final_message, _plain(variables))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: object,
    ) -> list[int]:
        """The ids of the text that `render` writes, without a prefix or suffix. Raises like `render`."""
        marked = [self._marked_message(message) for message in checked(messages)]
        extra = {name: self._named.mark(value) for name, value in variables.items()}
        text = self._run(marked, add_generation_prompt, continue_final_message, extra)
        ids: list[int] = []
        # Odd parts were marked. A lone mark or end is left where a template has cut a message in two.
        for i, part in enumerate(re.split(f"{_MARK}([^{_MARK}{_END}]*){_END}", text)):
            if i % 2:
                ids += self._as_text(part)
                continue
            for piece in filter(None, re.split(f"[{_MARK}{_END}]", part)):
                ids += self._tokenizer.encode(piece, special=True, start=not ids)
        return ids

    def _run(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, object],
    ) -> str:
        try:
            from fastllm.chat._sandbox import render
        except (ImportError, OSError) as error:
            missing = TokenizerError("a chat template needs jinja2: pip install 'fastllm[hf]'")
            raise import_error(error, "jinja2", missing) from None
        last = ""
        if continue_final_message:
            last = last_text(messages[-1])
            messages = [*messages[:-1], _open(messages[-1])]
            add_generation_prompt = False
        known = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None, **variables}
        source = self._source if known["tools"] is None else self._with_tools
        inputs = {**self._tokenizer.roles, **known}
        said = [_completed(message) for message in messages]
        try:
            text = render(source, {**inputs, "messages": [_called(message, as_text=False) for message in said]})
        except FastLLMError:
            as_text = [_called(message, as_text=True) for message in said]
            if as_text == said:  # nothing that could be at fault
                raise
            text = render(source, {**inputs, "messages": as_text})
        return _cut(text, last) if continue_final_message else text

    def _marked_message(self, message: Message) -> Message:
        marker = self._control if message.get("role") == "assistant" else self._named
        return {key: value if key == "role" else marker.mark(value) for key, value in message.items()}

    def _as_text(self, token: str) -> list[int]:
        """The ids of a special token's text read as ordinary text."""
        ids = self._tokenizer.encode(token, start=False)
        if self._tokenizer.token_id(token) in ids:  # the tokenizer matches it all the same: encode its characters
            return [i for character in token for i in self._tokenizer.encode(character, start=False)]
        return ids


def checked(messages: Any) -> Sequence[Message]:
    """Messages as a list. Raises OptionError for what is none, naming the message by its index."""
    if not is_list(messages):
        what = "one message" if isinstance(messages, Mapping) else f"a {type(messages).__name__}"
        raise OptionError(f"messages must be a list of messages, each a dict with a role and a content, not {what}")
    listed = list(messages)
    if not listed:
        raise OptionError("messages is empty: a conversation has at least one message")
    for i, message in enumerate(listed):
        if not isinstance(message, Mapping):
            raise OptionError(f"messages[{i}] is a {type(message).__name__}, not a dict with a role and a content")
        if message.get("role") not in _ROLES:
            # Templates write roles next to special tokens, or make special tokens of them: only known ones pass.
            role = f"the role {message['role']!r}"[:60] if "role" in message else "no role"
            raise OptionError(f"messages[{i}] has {role}; roles are {', '.join(_ROLES)}")
        if all(value is None for key, value in message.items() if key != "role"):
            raise OptionError(f"messages[{i}] has no content")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list, tuple)):
            raise OptionError(f"messages[{i}] has a content of type {type(content).__name__}, not a text or a list")
    return listed


def last_text(message: Message) -> str:
    """The content of a message, or its last part that is a text. Raises OptionError for a message without a text."""
    content = message.get("content")
    for part in [content] if isinstance(content, str) else reversed(content or ()):
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            return text
    raise OptionError("continue_final_message: the last message has no text that could be continued")


def _open(message: Message) -> Message:
    """A message with _CONTINUED and a space after its last text."""
    content, end = message["content"], f"{_CONTINUED} "
    if isinstance(content, str):
        return {**message, "content": content + end}
    parts = list(content)
    at = max(i for i, part in enumerate(parts) if isinstance(part, str) or isinstance(part.get("text"), str))
    parts[at] = parts[at] + end if isinstance(parts[at], str) else {**parts[at], "text": parts[at]["text"] + end}
    return {**message, "content": parts}


def _cut(text: str, last: str) -> str:
    """A conversation's text up to _CONTINUED, cut as transformers does. last: the message's text that ends there."""
    at = text.rfind(_CONTINUED)
    if at < 0 or last.strip() not in text:
        raise OptionError("continue_final_message: the chat template changes or omits the end of the last message")
    # Where the template has trimmed the space after it, it trims the end of the message too.
    return text[:at] if text.startswith(f"{_CONTINUED} ", at) else text[:at].rstrip()


def _completed(message: Message) -> Message:
    """A message as transformers gives it to templates: without nulls, and with reasoning under both usual names."""
    given = {key: value for key, value in message.items() if value is not None}
    thoughts = next((given[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given), None)
    return given if thoughts is None else {"thinking": thoughts, **given, "reasoning_content": thoughts}


def _called(message: Message, *, as_text: bool) -> Message:
    """A message whose tool calls have their arguments as objects, which most templates take, or as JSON text.

    OpenAI's API has text, replies have objects; transformers hands on what it is given. What is neither stays.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)):
        return message
    return {**message, "tool_calls": [_with_arguments(call, as_text=as_text) for call in calls]}


def _with_arguments(call: Any, *, as_text: bool) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            read = json.loads(arguments)
            arguments = read if isinstance(read, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _plain(value: Any, text: Callable[[str], str] = str.__str__) -> Any:
    """A copy of plain data with `text` applied to every string but the keys. Raises OptionError for other types."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        keys = (key if key is None or isinstance(key, (str, int, float)) else str(key) for key in value)
        return {key: _plain(item, text) for key, item in zip(keys, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, text) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise OptionError(f"a message has a {type(value).__name__}, which no template can write")


class _Marker:
    """Marks special tokens inside plain data before a template sees it."""

    def __init__(self, tokens: Collection[str]) -> None:
        texts = sorted(filter(None, tokens), key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        # A template may put two values side by side, so that the end of one and the start of the other make a token.
        self._heads = {text[:n] for text in texts for n in range(2, len(text))}
        self._tails = {text[-n:] for text in texts for n in range(2, len(text))}
        self._most = len(texts[0]) if texts else 0

    def mark(self, value: Any) -> Any:
        return _plain(value, self._text)

    def _text(self, text: str) -> str:
        text = re.sub(f"[{_MARK}{_END}{_CONTINUED}]", "\ufffd", text)
        # Templates trim messages, so marks go inside of the spaces around a text.
        body = text.strip()
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if body else ""
        first = any(body[:n] in self._tails for n in range(2, self._most))
        last = any(body[-n:] in self._heads for n in range(2, self._most))
        body = self._whole.sub(lambda found: f"{_MARK}{found[0]}{_END}", body)
        return before + (_MARK + _END) * first + body + (_MARK + _END) * last + after
