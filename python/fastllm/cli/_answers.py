"""The answers of a model to conversations, with the settings of a talk."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastllm.cli._terminal import Screen, say
from fastllm.errors import ContextError, OptionError

if TYPE_CHECKING:
    from fastllm.chat import Conversation, Message
    from fastllm.cli._stand_in import ChatStream
    from fastllm.decoding import Sampling
    from fastllm.llm import LLM


class Answers:
    """Answers conversations, each with what LLM.chat would write for the same messages, seed and settings.

    sampling, seed, max_tokens: may be changed between answers. cached: how many tokens of the last prompt were in the
    cache.
    """

    def __init__(self, llm: LLM, draft: LLM | None, sampling: Sampling, seed: int, args: argparse.Namespace) -> None:
        from fastllm.chat import chat_format

        self.llm, self.sampling, self.seed, self.max_tokens = llm, sampling, seed, args.max_tokens
        self.cached = 0
        self._draft, self._lookup = draft, args.lookup
        self._format = chat_format(llm)
        self._variables: dict[str, Any] = {}
        if args.no_think:
            if not re.search(r"\benable_thinking\b", llm.tokenizer.chat_template or ""):
                raise OptionError(f"--no-think: the chat template of {llm.path} has no enable_thinking")
            self._variables["enable_thinking"] = False
        if self.max_tokens is not None and self.max_tokens < 0:
            raise OptionError(f"--max-tokens must be 0 or more, not {self.max_tokens}")

    def settings(self) -> dict[str, object]:
        """The settings by name. (The bias of logits is an option of the command, and no setting.)"""
        sampling = self.sampling._asdict()
        del sampling["logit_bias"]
        return {"seed": self.seed, "max_tokens": self.max_tokens, **sampling}

    def set(self, values: Mapping[str, object]) -> None:
        """Changes settings: all of them, or none and an OptionError."""
        from fastllm.decoding import Sampling

        known: dict[str, Any] = self.settings()
        for name, value in values.items():
            if name not in known:
                raise OptionError(f"there is no setting {name!r}; settings are {', '.join(known)}")
            known[name] = value
        seed, max_tokens = known.pop("seed"), known.pop("max_tokens")
        _check_whole("seed", seed, (1 << 64) - 1)
        if max_tokens is not None:
            _check_whole("max_tokens", max_tokens, (1 << 63) - 1)
        self.sampling = Sampling(**known, logit_bias=self.sampling.logit_bias)
        self.seed, self.max_tokens = seed, max_tokens

    def count(self, messages: Sequence[Message], *, asking: bool = True) -> int:
        """How many tokens a conversation has. asking: with the beginning of the answer to it."""
        return len(self._format.encode(messages, add_generation_prompt=asking, **self._variables))

    def fit(self, conversation: Conversation) -> None:
        """Forgets the oldest turns of a conversation until it fits into the context, with room for an answer.

        The room is a quarter of the context, or max_tokens where that is less; the last message may take it. Raises
        ContextError where the last message does not fit alone.
        """
        context, before = self.llm.context, conversation.messages.copy()
        room = context // 4 if self.max_tokens is None else min(self.max_tokens, context // 4)
        forgotten = 0
        while (count := self.count(conversation.messages)) + room > context and conversation.forget():
            forgotten += 1
        if count > context:
            conversation.messages = before
            raise ContextError(f"the message makes a prompt of {count:,} tokens, more than the context of {context:,}")
        if forgotten:
            turns = f"{forgotten} oldest turns are" if forgotten > 1 else "oldest turn is"
            say(f"[the context of {context:,} tokens is full: the {turns} forgotten]")

    def start(self, messages: list[dict[str, Any]]) -> ChatStream:
        """An answer, to iterate over."""
        import fastllm.cli._stand_in  # noqa: F401

        return self.llm.chat(
            messages,
            stream=True,
            chat_template_kwargs=self._variables,
            max_tokens=self.max_tokens,
            seed=self.seed,
            lookup=self._lookup,
            draft=self._draft,
            **self.sampling._asdict(),
        )

    def write(self, conversation: Conversation) -> dict[str, Any]:
        """The answer to a conversation as plain data: a message, and what is to be told about it."""
        stream = self.start(conversation.messages)
        for _ in stream.pieces():
            pass
        return {
            **_plain(stream.message),
            "finish_reason": stream.finish_reason,
            "prompt_tokens": stream.prompt_tokens,
            "generated_tokens": len(stream.tokens),
            "seed": self.seed,
        }

    def answer(self, conversation: Conversation, screen: Screen) -> bool:
        """Adds an answer to a conversation while it is shown. Returns False where Ctrl-C stopped it.

        What was written by then is in the conversation: maybe nothing, where the prompt was still being read.
        """
        stream = self.start(conversation.messages)
        whole = True
        try:
            for kind, piece in stream.pieces():
                screen.show(kind, piece)
        except KeyboardInterrupt:
            whole = False
        finally:
            stream.close()
            screen.end()
        conversation.messages.append(_plain(stream.message))
        self.cached = stream.cached_tokens
        used = stream.prompt_tokens + len(stream.tokens)
        if stream.finish_reason == "length" and used > self.llm.context:
            say(f"[the answer ends here because the context of {self.llm.context:,} tokens is full]")
        return whole


def _check_whole(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise OptionError(f"{name} must be a whole number from 0 to {most}, not {value!r}")


def _plain(message: Message) -> dict[str, Any]:
    """A message as plain data: its content without what LLM.chat tells about it."""
    return {name: str(value) if isinstance(value, str) else value for name, value in message.items()}
