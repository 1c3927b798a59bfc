"""A text while it is written: its pieces as the model draws its tokens, for a thread or for asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fastllm.decoding import Scan, Stops
from fastllm.engine import Generation, Scheduler
from fastllm.llm.text import Text

if TYPE_CHECKING:
    import asyncio

    from fastllm.engine import Logprob
    from fastllm.tokenizer import Stream, Tokenizer


_NONE: deque[str] = deque()  # what a text that has not begun has: it is never added to


class Pieces:
    """Makes text of one Generation's tokens: it is the `watch` that the generation calls with each of them.

    ready: the pieces that are certain and not yet taken. found: whether a stop has come. A text that waits for its turn
    holds no decoder: both that and `ready` are made at its first token.
    """

    __slots__ = ("_decoder", "_previous", "_scan", "_stops", "_tokenizer", "found", "ready")

    def __init__(self, tokenizer: Tokenizer, previous: int, stops: Stops) -> None:
        """previous: the prompt's last id, on which the first piece may depend."""
        self._tokenizer, self._previous, self._stops = tokenizer, previous, stops
        self._decoder: Stream | None = None
        self._scan: Scan | None = None  # None: nothing but a token ends the text
        self.ready = _NONE
        self.found = False

    def __call__(self, token: int) -> bool:
        """Takes the next token; returns whether the text ends with it."""
        if (decoder := self._decoder) is None:
            decoder = self._begin()
        if piece := decoder.push(token):
            if self._scan is not None:
                piece = self._scan.push(piece)
                self.found = self._scan.found
            if piece:
                self.ready.append(piece)
        return self.found

    def _begin(self) -> Stream:
        self._decoder = self._tokenizer.stream(self._previous)
        self._scan = self._stops.scan() if self._stops else None
        self.ready = deque()
        return self._decoder

    def end(self) -> None:
        """Adds to `ready` what is still held back, once the last token has come. Called again it does nothing."""
        if (decoder := self._decoder) is None:
            return
        piece = decoder.flush()
        if self._scan is not None:
            piece = self._scan.push(piece) + self._scan.end()
            self.found = self._scan.found
        if piece:
            self.ready.append(piece)
        self._decoder = self._scan = None


class _Written:
    """What is known so far of a text that is being written: the attributes of a Text, and more.

    generation: the tokens as they are drawn. finish_reason: None until all pieces have been taken. text: the pieces
    taken so far. The other attributes are Text's.
    """

    def __init__(self, generation: Generation, pieces: Pieces, seed: int) -> None:
        """pieces: the generation's `watch`. seed: of its sampler."""
        self.generation, self.seed = generation, seed
        self.finish_reason: str | None = None
        self._pieces, self._taken = pieces, list[str]()

    @property
    def text(self) -> Text:
        text = Text("".join(self._taken))
        for name in Text.__annotations__:
            setattr(text, name, getattr(self, name))
        return text

    @property
    def tokens(self) -> list[int]:
        return self.generation.tokens.copy()

    @property
    def prompt_tokens(self) -> int:
        return len(self.generation.prompt)

    @property
    def cached_tokens(self) -> int:
        return self.generation.cached

    @property
    def logprobs(self) -> list[Logprob] | None:
        found = self.generation.logprobs
        return None if found is None else found.copy()

    @property
    def prompt_logprobs(self) -> list[Logprob | None] | None:
        found = self.generation.prompt_logprobs
        return None if found is None else found.copy()

    @property
    def score(self) -> float | None:
        return None

    @property
    def prompt_seconds(self) -> float:
        return self.generation.prompt_seconds

    @property
    def decode_seconds(self) -> float:
        return self.generation.decode_seconds

    @property
    def proposed_tokens(self) -> int:
        return self.generation.proposed

    @property
    def accepted_tokens(self) -> int:
        return self.generation.accepted

    def close(self) -> None:
        """Ends the text where it is ("cancelled"), and frees what it holds. Does nothing once it has ended."""
        self.generation.close()
        self._pieces.ready.clear()
        self.finish_reason = self.finish_reason or "cancelled"

    def _take(self) -> str:
        """The next of the pieces that are ready."""
        piece = self._pieces.ready.popleft()
        self._taken.append(piece)
        return piece

    def _end(self) -> None:
        """Adds the last piece and sets finish_reason, once the generation has ended. Raises its error if it has one."""
        self.finish_reason = self.generation.finish_reason
        if self.generation.error is not None:
            raise self.generation.error
        self._pieces.end()
        if self._pieces.found:
            self.finish_reason = "stop"


class TextStream(_Written):
    """Iterates over the pieces of a text as it is written; a piece is one or more whole characters.

    It may be left at any time: what a text holds is freed when its stream is closed, leaves its `with` block, or is no
    longer referenced (`break`). An exception of a callable or of the model comes after the pieces before it. Attributes
    are those of a Text, so far; `text` has the pieces taken so far as one. One thread at a time may iterate.
    """

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while not self._pieces.ready:
            if self.finish_reason is not None:
                raise StopIteration
            try:
                token = next(self.generation, None)
            except Exception:
                self.finish_reason = self.generation.finish_reason
                raise
            if token is None:
                self._end()
        return self._take()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rest(self) -> Text:
        """The whole text, once its generation has ended elsewhere. Raises the generation's error if it has one."""
        self._end()
        self._taken.extend(self._pieces.ready)
        self._pieces.ready.clear()
        return self.text


class AsyncTextStream(_Written):
    """A TextStream for `async for`: another thread writes, and the event loop goes on meanwhile.

    The first step starts the writing. Closing it (`aclose`, `async with`), cancelling the task that waits for a piece,
    or dropping the last reference ends the text.
    """

    def __init__(self, stream: TextStream, background: Background) -> None:
        super().__init__(stream.generation, stream._pieces, stream.seed)
        self._background, self._begun = background, False

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        if not self._begun:
            self._begun = True
            self._background.write([self.generation])
        try:
            while not self._pieces.ready:
                if self.finish_reason is not None:
                    raise StopAsyncIteration
                await self._background.until(self._has_news)
                if not self._pieces.ready:
                    self._end()
        except BaseException as error:
            if not isinstance(error, Exception):  # the task was cancelled
                self.close()
            raise
        return self._take()

    def _has_news(self) -> bool:
        return bool(self._pieces.ready) or self.generation.finish_reason is not None

    async def aclose(self) -> None:
        """As close, for contextlib.aclosing."""
        self.close()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.generation.close()  # the thread that writes has a reference of its own


class Background:
    """Has generations written by another thread, and wakes the coroutine that waits for them: it is their `notify`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._rung = scheduler, False
        self._loop: asyncio.AbstractEventLoop | None = None

    def write(self, generations: Sequence[Generation]) -> None:
        """Begins to write them. Called in the event loop that is to be woken."""
        import asyncio

        self._loop, self._bell = asyncio.get_running_loop(), asyncio.Event()
        for generation in generations:
            self._scheduler.write_in_background(generation)

    def __call__(self) -> None:
        """Called in the writing thread after each token and at the end."""
        if self._loop is not None and not self._rung:
            self._rung = True
            with suppress(RuntimeError):  # the loop is closed: no coroutine waits any more
                self._loop.call_soon_threadsafe(self._bell.set)

    async def until(self, done: Callable[[], bool]) -> None:
        """Waits until `done`, which is asked again whenever there is something new."""
        while not done():
            self._bell.clear()
            self._rung = False
            if not done():  # what came before the bell was free to ring again
                await self._bell.wait()
