"""A terminal: messages that a person types or pastes, and how answers are shown."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastllm.cli.lines import shown
from fastllm.errors import LibraryError, import_error

if TYPE_CHECKING:
    from types import ModuleType

_MOST_HISTORY = 1 << 20  # bytes
_PROMPT, _CONTINUED = "> ", ". "
_AGAIN = "Ctrl-C once more leaves."
# Control characters but tab and newline: a model must not move the cursor or rename the window.
_CONTROLS = {i: 0xFFFD for i in (*range(32), *range(127, 160)) if i not in (9, 10)}


class Reader(Protocol):
    """Reads messages at a terminal."""

    def read(self, *, stopped: bool) -> str:
        """The next message, maybe of several lines. stopped: whether the answer before it was stopped by Ctrl-C.

        Ctrl-C clears what is typed; on an empty line it raises KeyboardInterrupt, for the talk to end. After an answer
        that was stopped, a first Ctrl-C does not, because it may have been meant for the answer. Ctrl-D raises
        EOFError.
        """


def say(text: str) -> None:
    """Tells the user something that is no answer."""
    print(text, file=sys.stderr, flush=True)


def reader(*, history: bool) -> Reader:
    """An editor by prompt_toolkit, or else a plain reader. history: whether the editor keeps messages in a file."""
    if os.environ.get("TERM", "") in ("dumb", "unknown") or not (sys.stdout.isatty() or sys.stderr.isatty()):
        return Lines()
    try:
        from fastllm.cli._editor import Editor
    except (ImportError, OSError) as error:
        missing = LibraryError("for editing, a history and pasted lines: pip install 'fastllm[chat]'")
        say(str(import_error(error, "prompt_toolkit", missing)))
        return Lines()
    return Editor(
        _history_file() if history else None,
        prompt=_PROMPT,
        continued=_CONTINUED,
        again=_AGAIN,
        is_command=is_command,
    )


def is_command(line: str) -> bool:
    """Whether a line looks like a command, which is a message of its own even where it arrives with other lines."""
    return re.match(r"/[a-z]+(\s|$)", line) is not None


def _history_file() -> Path | None:
    """A private file in the folder of the user's state, made if need be; None, which is said, where that fails."""
    try:
        if os.name == "nt":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            # https://specifications.freedesktop.org/basedir/latest: a relative path is to be ignored
            state = os.environ.get("XDG_STATE_HOME", "")
            folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
        path = folder / "fastllm" / "chat_history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as file:
            path.chmod(0o600)
            blob = file.read()
            if len(blob) > _MOST_HISTORY:  # the older half goes, up to the end of a message
                file.truncate(0)
                file.write(blob[blob.find(b"\n\n", len(blob) - _MOST_HISTORY // 2) + 1 :])
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        say(f"no history is kept: {error}")
        return None
    return path


class Lines:
    """Reads lines with input(), which edits them where Python has readline. Lines that arrive at once are a message."""

    def __init__(self) -> None:
        self._readline: ModuleType | None = None
        with suppress(ImportError):
            import readline

            self._readline = readline
        self._ahead: list[str] = []  # a line that was read and does not belong to the message before it
        self._ended = False

    def read(self, *, stopped: bool) -> str:
        while self._ahead or not self._ended:
            lines, self._ahead = self._ahead, []
            try:
                lines = lines or [self._line(_PROMPT)]
                while not is_command(lines[0]) and _more():
                    line = self._line("")
                    if is_command(line):
                        self._ahead = [line]
                        break
                    lines.append(line)
            except EOFError:
                self._ended = True
            except KeyboardInterrupt:
                print(file=sys.stderr)
                typed = self._readline is not None and self._readline.get_line_buffer()
                if not typed and not stopped:
                    raise
                if not typed:
                    say(_AGAIN)
                stopped = False
                continue
            if lines:
                return "\n".join(lines)
        raise EOFError

    def _line(self, prompt: str) -> str:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()


def _more() -> bool:
    """Whether more lines have arrived already."""
    from select import select

    try:
        return bool(select([sys.stdin], [], [], 0.05)[0])
    except OSError:  # Windows waits for sockets only
        return False


class Screen:
    """Shows answers: at a terminal with thinking, which is dim, or without; elsewhere as they are, without thinking."""

    def __init__(self, *, thinking: bool) -> None:
        """thinking: whether a terminal shows it."""
        self._terminal = sys.stdout.isatty()
        self._thinking = thinking and self._terminal
        dim = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        self._dim, self._bright = ("\x1b[2m", "\x1b[0m") if dim else ("", "")
        self._part = ""  # the kind of what was shown last, in this answer

    def show(self, kind: str, piece: Any) -> None:
        """kind: "thinking", "text" or "tool_call"."""
        if kind == "thinking" and not self._thinking:
            return
        piece = piece if kind == "thinking" else shown(kind, piece)
        if kind != self._part:
            self._end_thinking("\n\n")
            sys.stdout.write(self._dim if kind == "thinking" else "")
            self._part = kind
        sys.stdout.write(piece.translate(_CONTROLS) if self._terminal else piece)
        sys.stdout.flush()

    def end(self) -> None:
        """Ends an answer, also one that was stopped while it was thinking."""
        self._end_thinking("")
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._part = ""

    def _end_thinking(self, after: str) -> None:
        if self._part == "thinking":
            sys.stdout.write(self._bright + after)
