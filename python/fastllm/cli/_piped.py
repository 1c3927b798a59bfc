"""Messages that come through a pipe, not from a terminal: all of it as one message, or lines of JSON."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from fastllm.chat import Conversation
from fastllm.cli.lines import write
from fastllm.errors import FastLLMError, OptionError

if TYPE_CHECKING:
    from fastllm.cli._answers import Answers


def question(given: str | None) -> str:
    """The message to answer: the one given, what a pipe brings, or both, the given one first.

    Raises OptionError where there is neither.
    """
    piped = ""
    if sys.stdin is not None and not sys.stdin.isatty():
        if given is not None:
            _tell_waiting()
        piped = sys.stdin.read().rstrip("\r\n")
    texts = [text for text in (given, piped) if text is not None and text.strip()]
    if not texts:
        raise OptionError("there is no message: neither TEXT nor stdin has one")
    return "\n\n".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _tell_waiting() -> None:
    """Says so if a pipe brings nothing for two seconds: it may be one that was inherited, and never ends."""
    if os.name == "nt" or stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode):
        return
    from select import select

    if not select([sys.stdin], [], [], 2)[0]:
        print("fastllm: waiting for stdin, which follows TEXT (with </dev/null nothing does)", file=sys.stderr)


def answer_lines(system: Conversation, answers: Answers) -> None:
    """Answers each line of stdin, a conversation of its own, with a line. system: what begins those without one.

    Raises an error that names the line where one is bad; the answers before it are written.
    """
    if sys.stdin is None:
        raise OptionError("there are no lines: stdin is closed")
    for number, line in enumerate(sys.stdin, 1):
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


def _messages(line: str) -> list[dict[str, Any]]:
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
