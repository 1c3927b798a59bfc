"""A model's reply to a conversation: a message, whole or while it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypedDict, TypeVar

from fastllm.llm.stream import AsyncTextStream, Special, TextStream
from fastllm.llm.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastllm.chat import ResponseParser
    from fastllm.chat.response import Part

_Stream = TypeVar("_Stream", bound="TextStream | AsyncTextStream")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Function(TypedDict):
    """A function that a model calls. arguments: by name, as plain data."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A call that a model wants made. id: 9 letters and digits, which follow from the reply; type: "function"."""

    id: str
    type: str
    function: Function


Piece: TypeAlias = tuple[str, Any]  # ("thinking" or "text", a str) or ("tool_call", a ToolCall)


class _Message(TypedDict):
    role: str
    content: Text


class ChatMessage(_Message, total=False):
    """A reply, as plain data that json.dumps writes and that belongs into `messages` of the next turn.

    role: "assistant". content: the Text without thinking and calls; its attributes, such as tokens, are those of the
    whole reply. reasoning: what a model thought before that, if it did. tool_calls: the calls that it asks for, if any.
    A response template of the checkpoint may name more fields.
    """

    reasoning: str
    tool_calls: list[ToolCall]


class Reader:
    """Reads one reply back into pieces of a message."""

    def __init__(self, parser: ResponseParser | None, tools: Mapping[str, Any]) -> None:
        """parser: None: all is text. tools: name of a function -> JSON schema of its arguments."""
        self._parser, self._tools = parser, tools
        self.more: dict[str, Any] = {}  # other fields of the message
        self._calls = 0

    def push(self, piece: str, of: Text | TextStream | AsyncTextStream) -> list[Piece]:
        """What is certain with a further piece. of: the text or stream that it is of."""
        special = type(piece) is Special
        if self._parser is None:
            return [] if special else [("text", piece)]
        return self._pieces(self._parser.feed(piece, special=special), of)

    def end(self, of: Text | TextStream | AsyncTextStream) -> list[Piece]:
        """The rest, when the reply is over."""
        return [] if self._parser is None else self._pieces(self._parser.end(), of)

    def _pieces(self, parts: list[Part], of: Text | TextStream | AsyncTextStream) -> list[Piece]:
        from fastllm.chat.formats import THINKING_FIELDS

        pieces = list[Piece]()
        for name, text, value in parts:
            if name == "tool_calls":
                calls = value if isinstance(value, list) else [value]
                pieces += [("tool_call", self._call(call, of)) for call in calls]
            elif name == "content" or name in THINKING_FIELDS:
                pieces.append(("text" if name == "content" else "thinking", _as_text(text, value)))
            elif text is not None:
                self.more[name] = self.more.get(name, "") + text
            else:
                self.more[name] = value
        return pieces

    def _call(self, call: Mapping[str, Any], of: Text | TextStream | AsyncTextStream) -> ToolCall:
        from fastllm.chat.calls import typed

        name, arguments = call["function"]["name"], call["function"]["arguments"]
        self._calls += 1
        known = call.get("id")
        id_ = known if isinstance(known, str) and known else _id(of.seed, of.prompt_tokens, self._calls)
        return {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": typed(arguments, self._tools.get(name))},
        }


def _as_text(text: str | None, value: Any) -> str:
    if text is not None or isinstance(value, str):
        return text if text is not None else str(value)
    import json

    return json.dumps(value, ensure_ascii=False)


def _id(*of: int) -> str:
    """An id of a call: as some templates want it, and the same whenever the same reply is written again."""
    from hashlib import blake2b

    digest = int.from_bytes(blake2b(repr(of).encode(), digest_size=8).digest(), "little")
    return "".join(_ALPHABET[digest // len(_ALPHABET) ** i % len(_ALPHABET)] for i in range(9))


def message(text: Text, reader: Reader) -> ChatMessage:
    """The message of a reply that is written. text: as TextStream.rest gives it."""
    said = vars(text).pop("pieces", [text])
    pieces = [piece for one in said for piece in reader.push(one, text)]
    return _message(text, [*pieces, *reader.end(text)], reader.more)


def _message(text: Text, pieces: list[Piece], more: Mapping[str, Any]) -> ChatMessage:
    """text: all of the reply, as far as it is read; more: other fields."""
    content = Text("".join(said for kind, said in pieces if kind == "text"))
    vars(content).update(vars(text))
    reply: ChatMessage = {"role": "assistant", "content": content}
    if any(kind == "thinking" for kind, _ in pieces):
        reply["reasoning"] = "".join(said for kind, said in pieces if kind == "thinking")
    if calls := [call for kind, call in pieces if kind == "tool_call"]:
        reply["tool_calls"] = calls
    return {**more, **reply}  # type: ignore[typeddict-item]  # what a checkpoint's own template names


class _Reply(Generic[_Stream]):
    """A reply that is being written. stream: its text, with all that is known of it so far."""

    def __init__(self, stream: _Stream, reader: Reader) -> None:
        self.stream = stream
        self._reader, self._over = reader, False
        self._ready = deque[Piece]()
        self._taken: list[Piece] = []

    @property
    def message(self) -> ChatMessage:
        """The reply as far as its pieces have been taken."""
        return _message(self.stream.text, self._taken, self._reader.more)

    def close(self) -> None:
        """Ends the reply where it is ("cancelled"), and frees what it holds. Does nothing once it has ended."""
        self._ready.clear()
        self._over = True
        self.stream.close()

    def _add(self, piece: str | None) -> None:
        """Takes a piece of the text, None at its end."""
        self._over = piece is None
        self._ready.extend(self._reader.end(self.stream) if piece is None else self._reader.push(piece, self.stream))

    def _take(self) -> Piece:
        part = self._ready.popleft()
        self._taken.append(part)
        return part


class ChatStream(_Reply[TextStream]):
    """Iterates over the pieces of a reply's content as it is written; pieces() has its thinking and calls too.

    It may be left at any time, like a TextStream. message: the reply so far, all of it in the end.
    """

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the reply: ("thinking", str), ("text", str) and, each whole, ("tool_call", ToolCall)."""
        while True:
            while not self._ready:
                if self._over:
                    return
                self._add(next(self.stream, None))
            yield self._take()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> str:
        return str(next(piece for kind, piece in self.pieces() if kind == "text"))

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncChatStream(_Reply[AsyncTextStream]):
    """A ChatStream for `async for`, like an AsyncTextStream."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of the reply, as those of a ChatStream."""
        while True:
            while not self._ready:
                if self._over:
                    return
                self._add(await anext(self.stream, None))
            yield self._take()

    def __aiter__(self) -> AsyncChatStream:
        return self

    async def __anext__(self) -> str:
        async for kind, piece in self.pieces():
            if kind == "text":
                return str(piece)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """As close, for contextlib.aclosing."""
        self.close()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
