"""What a terminal shows while something takes long: a progress bar for work on many bytes, or a note."""

from __future__ import annotations

import sys
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

_PATIENCE = 1.0  # seconds of work before the bar appears


def note(sentence: str) -> None:
    """Says on stderr, where there is one, why nothing happens for now."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"fastllm: {sentence}", file=sys.stderr, flush=True)


class Bar:
    """A progress callback, bar(bytes done, bytes in all), that shows both and the time left.

    It appears after a second, and only where stderr is a terminal and the rich library is installed.
    """

    def __init__(self, text: str) -> None:
        self._text, self._start = text, monotonic()
        self._wanted = sys.stderr.isatty()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and self._wanted and monotonic() - self._start > _PATIENCE:
            self._wanted = False
            try:
                bar = _rich_bar()
                bar.start()
            except (ImportError, OSError, RuntimeError):  # RuntimeError: it cannot start its thread
                return
            self._bar = bar
            self._bar.add_task(self._text)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: tuple[type[BaseException], BaseException, TracebackType] | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
