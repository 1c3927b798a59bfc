"""Lines of stdin as texts, and texts as lines of stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fastllm.errors import FastLLMError


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def lines() -> list[str]:
    return [without_end(line) for line in sys.stdin]


def without_end(line: str) -> str:
    """A line of stdin without its end, of Unix or of Windows."""
    return line.removesuffix("\n").removesuffix("\r")


def in_parts(texts: Sequence[str], what: str, size: int, write: Callable[[Sequence[str]], None]) -> None:
    """Writes what becomes of texts, so many at a time: the first lines come before the last are computed."""
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        try:
            write(part)
        except FastLLMError as error:
            if error.text is None:
                raise
            write(part[: error.text])  # those before it are good
            said = str(error).replace(f"text {error.text}", f"{what} {start + error.text + 1}", 1)
            raise type(error)(said.replace("truncate=True", "--truncate")) from None


def in_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")
