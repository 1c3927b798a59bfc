"""One text being written, token by token."""

from __future__ import annotations

from _thread import allocate_lock
from _weakref import ref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastllm import _core
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.decoding.grammar import Matcher
    from fastllm.engine.engine import Span
    from fastllm.engine.guesses import Proposer

AHEAD = 16  # tokens that a text may be ahead of what was asked for, where it is written together with others


class Logprob(NamedTuple):
    """A token's probability by the model's raw logits, as a logarithm, and (id, logarithm) of the likeliest tokens."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Writer(Protocol):
    """What writes texts: the scheduler, as a Generation sees it."""

    def advance(self, generation: Generation, seen: int) -> None:
        """Returns when the text has more than `seen` new tokens, or has ended."""

    def dropped(self, generation: Generation) -> None:
        """A text was closed, or is about to be freed: what it holds can be freed. It never waits."""


class Written(NamedTuple):
    """What a forward wrote for the spans of one text.

    logits: rows of the whole forward; the text's own, those that its spans wanted, begin with `row`. hidden: layer ->
    the stream of all tokens of the forward, float32 [tokens, dim]; the text's own are `tokens` rows from `token` on.
    """

    logits: _core.Buffer
    row: int
    hidden: Mapping[int, _core.Buffer]
    token: int
    tokens: int


class Search(Protocol):
    """Chooses the tokens of one text, from as many sequences as it likes.

        prompt    the text's sequence, as without a search      read() after each piece, where reads_all
        begin     the search takes that sequence over, and chooses from the logits after its last token
        step      spans() -> forward, together with all other texts -> take()
        close     preempted, or ended: it gives up its sequences; after a preemption it begins again, see there

    A step may be interrupted anywhere (Ctrl-C), and is then tried again from `spans`: so `begin` and `take` change what
    they know by one assignment at their end, and `spans` cuts off what a forward has appended in vain. What a method
    raises ends this text alone; NumericError says that logits are not finite.

    width: rows of logits that a forward of its takes at most, for which room is kept. hidden: layers whose stream it
    needs (numbered as in Model.forward). reads_all: whether it needs that of all of the prompt's tokens, so that
    nothing is taken from earlier texts.
    """

    width: int
    hidden: tuple[int, ...] = ()
    reads_all: bool = False

    def read(self, generation: Generation, written: Written) -> None:
        """A piece of the prompt was read (or, after a preemption, of prompt and tokens): the last one too."""
        return

    def begin(self, generation: Generation, sequence: _core.Sequence, written: Written) -> None:
        """The prompt is in `sequence`, with the tokens so far, and the logits after it in row written.row."""

    def spans(self, generation: Generation) -> list[Span]:
        """What its next forward takes: at least one span."""

    def take(self, generation: Generation, written: Written) -> None:
        """After the forward of these spans: adds to generation.tokens, or ends the text by generation.end or .found."""

    def close(self) -> None:
        """Gives up all sequences."""


class Generation:
    """One text being written: iterate over its new tokens.

    It is its own iterator: a second loop goes on where the first one stopped. Texts that several threads iterate over
    are written together. A text is then up to AHEAD tokens ahead of its loop, in `tokens` too.

    prompt, tokens: the ids of the prompt, and the new ones so far. finish_reason: "stop" at a stop token, where
    `watch` says so, or where its grammar allows no more; "length" at max_tokens or the end of the context; "cancelled"
    after close(); "error" where the text failed, which an iterator raises and `error` keeps; None until then.
    prompt_seconds, decode_seconds: time of the forwards that it took part in, while its prompt was read and after.
    cached: prompt tokens whose keys and values were known already. proposed, accepted: how many tokens were guessed,
    and how many of them became part of the text. logprobs, prompt_logprobs: of the tokens, where they were asked for;
    the first of a prompt has none.
    """

    def __init__(
        self,
        writer: Writer,
        prompt: Sequence[int],
        sampler: _core.Sampler,
        *,
        max_tokens: int,
        stop: Sequence[int],
        proposer: Proposer | None = None,
        search: Search | None = None,
        watch: Callable[[int], bool] | None = None,
        processors: Sequence[Callable[[list[int], Any], Any]] = (),
        matcher: Matcher | None = None,
        logprobs: int | None = None,
        echo: bool = False,
        notify: Callable[[], None] | None = None,
    ) -> None:
        """search: chooses the tokens in place of the sampler. watch: called with each new token by the thread that
        writes; True ends the text. What it raises fails this text alone. processors: called with the ids so far and the
        float32 logits [vocabulary], which they change or replace, before biases and penalties. matcher: of the grammar
        that the text follows. logprobs: for each new
        token so many of the likeliest; None: no logprobs. echo: those of the prompt too. notify: called after new
        tokens and at the end, by the thread that writes.
        """
        self.prompt, self.tokens = list(prompt), list[int]()
        self.finish_reason: str | None = None if max_tokens or echo else "length"
        self.error: Exception | None = None
        self.prompt_seconds = self.decode_seconds = 0.0
        self.cached = self.proposed = self.accepted = 0
        self.logprobs: list[Logprob] | None = None if logprobs is None else []
        self.prompt_logprobs: list[Logprob | None] | None = [None] if echo else None
        self._writer = writer
        self._handed = 0  # tokens that the iterator has given out
        self._iterating = allocate_lock()  # held by the thread that asks for the next token
        self._raised = False  # whether the error has been raised

        # The rest is the scheduler's.
        self.sampler, self.max_tokens, self.stop = sampler, max_tokens, stop
        self.watch, self.processors, self.top, self.notify = watch, processors, logprobs or 0, notify
        self.proposer, self.search, self.matcher = proposer, search, matcher
        self.searching = False  # whether the search has begun: the sequences are its own then
        self.sequence: _core.Sequence | None = None  # None: it has no keys and values yet, or none any more
        self.joined = False  # whether the scheduler knows it
        self.begun = False  # whether the sampler has been given the prompt, for its penalties
        self.taken = 0  # tokens that have been looked at for the end of the text
        self.ahead = AHEAD  # it is written as long as it has fewer tokens
        self.marks: set[int] = set()  # positions at which another text parts from this one's prompt
        self.after: ref[Generation] | None = None  # a text that is reading a beginning of this one's prompt now
        self.owner = 0  # the thread that asked for its tokens last
        self.text: list[int] | None = None  # prompt and tokens, for the proposer

    # ---- for those who want its tokens

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> int:
        if not self._iterating.acquire(False):
            raise OptionError("another thread is iterating over this text")
        try:
            handed = self._handed
            if self.taken <= handed:
                if self.finish_reason is None:
                    self._writer.advance(self, handed)
                if self.taken <= handed:
                    self.raise_error()
                    raise StopIteration
            self._handed = handed + 1
            return self.tokens[handed]
        finally:
            self._iterating.release()

    def wait(self) -> None:
        """Writes the text to its end. Raises what ended it early."""
        if self.finish_reason is None:
            self._writer.advance(self, self.max_tokens)
        self.raise_error()

    def close(self) -> None:
        """Ends the text, as "cancelled", and frees what it holds. Another thread may call it."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self._writer.dropped(self)

    def __del__(self) -> None:
        if getattr(self, "sequence", None) is not None:
            self._writer.dropped(self)

    def raise_error(self) -> None:
        """Raises the error that ended the text, if one did, once."""
        if self.error is not None and not self._raised:
            self._raised = True
            raise self.error

    # ---- for the scheduler

    @property
    def width(self) -> int:
        """How many rows of logits a step of its takes at most, guesses aside."""
        return 1 if self.search is None else self.search.width

    def release(self) -> None:
        """Gives up keys and values; they are computed again, to the same bits, when it goes on."""
        self.sequence = None
        self.pause_guesses()
        if self.search is not None:
            self.searching = False
            self.search.close()

    def pauses(self) -> bool:
        """Whether it has as many tokens as were asked for."""
        return len(self.tokens) >= self.ahead

    def position(self) -> int:
        """How many tokens of prompt and text are to be in the sequence before the next one can be drawn."""
        return len(self.prompt) + len(self.tokens)

    def unread(self) -> int:
        """How many of them are not in it yet."""
        return self.position() - (0 if self.sequence is None else self.sequence.length)

    def part(self, start: int, count: int) -> list[int]:
        """`count` ids of prompt and text from a position on."""
        before = len(self.prompt)
        if start + count <= before:
            return self.prompt[start : start + count]
        if start >= before:
            return self.tokens[start - before : start - before + count]
        return self.prompt[start:] + self.tokens[: start + count - before]

    def take(self) -> None:
        """Looks at the new tokens: which of them belong to the text, and whether it ends with one."""
        tokens = self.tokens
        while self.taken < len(tokens) and self.finish_reason is None:
            token = tokens[self.taken]
            if token in self.stop:
                self.end("stop")
                break
            self.taken += 1
            try:
                if self.watch is not None and self.watch(token):
                    self.end("stop")
            except Exception as error:
                self.fail(error)
            if self.taken == self.max_tokens:
                self.end("stop" if self._is_complete() else "length")
        if self.finish_reason is None and self._is_complete():
            self.end("stop")
        if self.finish_reason is not None:
            del tokens[self.taken :]
            if self.logprobs is not None:
                del self.logprobs[self.taken :]

    def _is_complete(self) -> bool:
        """Whether it has a grammar that it can follow no further."""
        try:
            return self.matcher is not None and self.matcher.follow(self.tokens[: self.taken])
        except Exception as error:
            self.fail(error)
            return False

    def pause_guesses(self) -> None:
        """Has the proposer give up what it holds; it begins again with the whole text."""
        if self.proposer is not None and self.text is not None:
            self.proposer.end(self.prompt + self.tokens)
            self.text = None

    def end_guesses(self) -> None:
        self.pause_guesses()
        self.proposer = None

    def found(self, tokens: list[int], reason: str, logprobs: list[Logprob] | None) -> None:
        """Ends the text with tokens that are known only now."""
        if self.finish_reason is None:
            self.tokens, self.taken, self.logprobs = tokens, len(tokens), logprobs
            self.finish_reason = reason

    def end(self, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason

    def fail(self, error: Exception) -> None:
        """Ends this text, and no other, with an error."""
        if self.finish_reason is None:
            self.finish_reason, self.error = "error", error
