"""Messages that come through a pipe, not from a terminal: all of it as one message, or lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastllm.chat import Conversation
from fastllm.cli.lines import write
from fastllm.cli.prompt import piped
from fastllm.errors import FastLLMError, OptionError

if TYPE_CHECKING:
    from fastllm.cli._answers import Answers


def message_of(words: Sequence[str]) -> str:
    """The message to answer: the words given, what a pipe brings, or both, a line between them.

    Raises OptionError where there is neither.
    """
    given = " ".join(words)
    check_text("TEXT", given)
    texts = [text for text in (given, piped(wait=not given)) if text is not None and text.strip()]
    if not texts:
        raise OptionError("there is no message: neither TEXT nor stdin has one")
    return "\n\n".join(texts)


def check_text(name: str, text: str) -> None:
    """Raises OptionError for bytes of the command line that are no UTF-8: in Python they are surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{name} is not UTF-8") from None


def answer_lines(system: Conversation, answers: Answers) -> None:
    """Answers each line of stdin, a conversation of its own, with a line. system: what begins those without one.

    Raises an error that names the line where one is bad; the answers before it are written.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            conversation = Conversation(_messages(line))
            if conversation.system is None:
                conversation.system = system.system
            answers.fit(conversation)
            answer = answers.write(conversation)
        except FastLLMError as error:
            raise type(error)(f"line {number}: {error}") from None
        write(json.dumps(answer, ensure_ascii=False) + "\n")


def _messages(line: bytes) -> list[dict[str, Any]]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"no JSON: {error}") from None
    if isinstance(given, str):
        given = {"role": "user", "content": given}
    messages = given if isinstance(given, list) else [given]
    if not messages or not all(isinstance(message, dict) for message in messages):
        raise OptionError("neither a text, nor a message with role and content, nor a list of messages")
    if messages[-1].get("role") in ("assistant", "system"):
        raise OptionError(f"the last message is the {messages[-1]['role']}'s, which nothing answers")
    return messages
