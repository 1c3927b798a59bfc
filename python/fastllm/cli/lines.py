"""Lines of stdin as texts, and texts as lines of stdout."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastllm.errors import FastLLMError, OptionError

if TYPE_CHECKING:
    from fastllm.llm import LLM


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def lines() -> list[str]:
    """The lines of stdin. Raises OptionError where it cannot be read."""
    try:
        return [without_end(line) for line in sys.stdin]
    except OSError as error:
        raise OptionError(f"stdin cannot be read: {error.strerror}") from None


def unescaped(text: str) -> str:
    """A text in which \\n, \\r, \\t, \\\\, \\xHH and \\uHHHH stand for characters."""
    escapes = r"\\(?:[nrt\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})"
    return re.sub(escapes, lambda found: found[0].encode().decode("unicode_escape"), text)


def without_end(line: str) -> str:
    """A line of stdin without its line end, \\n or \\r\\n."""
    return line.removesuffix("\n").removesuffix("\r")


def in_parts(texts: Sequence[str], what: str, size: int, write: Callable[[Sequence[str]], None]) -> None:
    """Calls `write` with `size` texts at a time, so that the first lines appear before the last are computed.

    Where one text is wrong, those before it are written, and the error names it: `what` and its number from 1.
    """
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        try:
            write(part)
        except FastLLMError as error:
            if error.text is None:
                raise
            write(part[: error.text])
            said = str(error).replace(f"text {error.text}", f"{what} {start + error.text + 1}", 1)
            raise type(error)(said.replace("truncate=True", "--truncate")) from None


def token_texts(llm: LLM, ids: Iterable[int]) -> list[str]:
    """The text of each token by itself, special ones as they are written; of a part of a character, U+FFFD."""
    words = llm.tokenizer
    special, pieces = {words.token_id(token): token for token in words.special}, words.stream().pieces
    return [special.get(i) or (pieces[i].decode("utf-8", "replace") if i < len(pieces) else "") for i in ids]


def in_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")


def shown(kind: str, piece: Any) -> str:
    """A piece of a reply as people see it: text as it is, a tool call as JSON in a line, and no thinking."""
    if kind == "tool_call":
        import json

        return f"{json.dumps(piece['function'], ensure_ascii=False)}\n"
    return str(piece) if kind == "text" else ""
