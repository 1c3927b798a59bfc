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


def in_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")
