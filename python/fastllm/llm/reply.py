"""A model's reply to a conversation: a message, whole or while it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

from fastllm.llm.stream import AsyncTextStream, TextStream
from fastllm.llm.text import Text

if TYPE_CHECKING:
    from fastllm.chat import Thinking

_Stream = TypeVar("_Stream", bound="TextStream | AsyncTextStream")


class _Message(TypedDict):
    role: str
    content: Text


class ChatMessage(_Message, total=False):
    """A reply, as plain data that json.dumps writes and that belongs into `messages` of the next turn.

    role: "assistant". content: the Text without thinking; its attributes, such as tokens, are those of the whole reply.
    reasoning_content: what a model thought before that, if it did.
    """

    reasoning_content: str


def message(text: Text, parts: list[tuple[str, str]]) -> ChatMessage:
    """The message of a reply. text: all of it; parts: what of it is "thinking" and what is "text"."""
    content = Text("".join(said for kind, said in parts if kind == "text"))
    vars(content).update(vars(text))
    reply: ChatMessage = {"role": "assistant", "content": content}
    if any(kind == "thinking" for kind, _ in parts):
        reply["reasoning_content"] = "".join(said for kind, said in parts if kind == "thinking")
    return reply


class _Reply(Generic[_Stream]):
    """A reply that is being written. stream: its text, with all that is known of it so far."""

    def __init__(self, stream: _Stream, thinking: Thinking) -> None:
        self.stream = stream
        self._thinking, self._over = thinking, False
        self._ready = deque[tuple[str, str]]()
        self._taken: list[tuple[str, str]] = []

    @property
    def message(self) -> ChatMessage:
        """The reply as far as its pieces have been taken."""
        return message(self.stream.text, self._taken)

    def close(self) -> None:
        """Ends the reply where it is ("cancelled"), and frees what it holds. Does nothing once it has ended."""
        self._ready.clear()
        self._over = True
        self.stream.close()

    def _add(self, piece: str | None) -> None:
        """Takes a piece of the text, None at its end."""
        self._over = piece is None
        self._ready.extend(self._thinking.end() if piece is None else self._thinking.push(piece))

    def _take(self) -> tuple[str, str]:
        part = self._ready.popleft()
        self._taken.append(part)
        return part


class ChatStream(_Reply[TextStream]):
    """Iterates over the pieces of a reply's content as it is written, without its thinking; pieces() has that too.

    It may be left at any time, like a TextStream. message: the reply so far, all of it in the end.
    """

    def pieces(self) -> Iterator[tuple[str, str]]:
        """The pieces of the reply, each "thinking" or "text" and what it says."""
        while True:
            while not self._ready:
                if self._over:
                    return
                self._add(next(self.stream, None))
            yield self._take()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> str:
        return next(piece for kind, piece in self.pieces() if kind == "text")

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncChatStream(_Reply[AsyncTextStream]):
    """A ChatStream for `async for`, like an AsyncTextStream."""

    async def pieces(self) -> AsyncIterator[tuple[str, str]]:
        """The pieces of the reply, each "thinking" or "text" and what it says."""
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
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """As close, for contextlib.aclosing."""
        self.close()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
