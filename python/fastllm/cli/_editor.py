"""The editor of messages at a terminal, by prompt_toolkit: import this module only where it is wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from select import select
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

if TYPE_CHECKING:
    from prompt_toolkit.application import Application


class Editor:
    """Reads messages (fastllm.cli._terminal.Reader). Enter sends, Alt-Enter makes a new line, a paste is one message.

    Terminals without bracketed paste send pasted lines like typed ones, only faster: so Enter makes a new line where
    more text has arrived behind it.
    """

    def __init__(
        self, history: Path | None, *, prompt: str, continued: str, again: str, is_command: Callable[[str], bool]
    ) -> None:
        """history: a file that exists, to which messages are added. prompt, continued: what stands before the first
        line, and before others. again: said where Ctrl-C does not leave. is_command: whether a line is a message of its
        own, even in a paste.
        """
        self._again, self._is_command, self._stopped = again, is_command, False
        kept: History = InMemoryHistory() if history is None else _History(str(history))
        self._session: PromptSession[str] = PromptSession(
            prompt,
            prompt_continuation=continued,
            key_bindings=self._bindings(),
            history=kept,
            reserve_space_for_menu=0,
            enable_suspend=True,
            output=create_output(always_prefer_tty=True),  # stderr where stdout is a file
        )

    def read(self, *, stopped: bool) -> str:
        self._stopped = stopped
        return self._session.prompt()

    def _bindings(self) -> KeyBindings:
        keys, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=typing)
        def enter(event: KeyPressEvent) -> None:
            buffer, next_line = event.current_buffer, _arrived(event.app)
            if next_line is None or self._is_command(buffer.text) or self._is_command(next_line):
                buffer.validate_and_handle()
            else:
                buffer.newline(copy_margin=False)

        @keys.add("escape", "enter", filter=typing)
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c", filter=typing)
        @keys.add("<sigint>")
        def interrupt(event: KeyPressEvent) -> None:
            if self._session.default_buffer.text:
                self._session.default_buffer.reset()
            elif self._stopped:
                run_in_terminal(lambda: print(self._again, file=sys.stderr))
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")
            self._stopped = False

        return keys


def _arrived(app: Application[str]) -> str | None:
    """The line that has arrived behind the key that is being handled, maybe incomplete; None where no text has."""
    keys = app.key_processor
    if not keys.input_queue and os.name != "nt" and select([app.input.fileno()], [], [], 0)[0]:
        keys.feed_multiple(app.input.read_keys())
    following = [key for key in keys.input_queue if key.key != Keys.CPRResponse]
    ends = (Keys.ControlM, Keys.ControlJ)
    if not following or (isinstance(following[0].key, Keys) and following[0].key not in (*ends, Keys.BracketedPaste)):
        return None
    return "".join(key.data for key in takewhile(lambda key: key.key not in ends, following))


class _History(FileHistory):
    """A file of messages. An error ends its use, and is said once."""

    _broken = False

    def load_history_strings(self) -> Iterator[str]:
        with self._unless_broken():
            yield from super().load_history_strings()

    def store_string(self, string: str) -> None:
        with self._unless_broken():
            if not self._broken:
                super().store_string(string)

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._broken:
                print(f"the history is not kept: {error}", file=sys.stderr)
            self._broken = True
