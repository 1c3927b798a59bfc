"""The prompt that a command is given: in words, by an option, in a file, or through a pipe."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path

from fastllm.errors import OptionError

_PATIENCE = 5  # seconds in which a pipe must bring something


def prompt_options(parser: argparse.ArgumentParser) -> None:
    """TEXT, -i and --file. The first positional argument, MODEL, is the command's own."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="the prompt (default: what a pipe brings); - is stdin")
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument("-i", "--prompt", metavar="TEXT", help="the prompt, which here needs no MODEL before it")
    prompt.add_argument("--file", metavar="FILE", help="the prompt is in a file, in UTF-8; - is stdin")


def prompt_of(args: argparse.Namespace) -> str | None:
    """The prompt, or None where there is none.

    Of stdin and files, one line end at the end does not count. Without any other prompt, what a pipe brings is one.
    Raises OptionError where there are several, or one cannot be read or is not UTF-8.
    """
    ways = {"TEXT": " ".join(args.text) if args.text else None, "-i/--prompt": args.prompt, "--file": args.file}
    given: dict[str, str] = {name: value for name, value in ways.items() if value is not None}
    if len(given) > 1:
        raise OptionError(f"the prompt is given by {' and by '.join(given)}: one of them is enough")
    if not given:
        return piped()
    ((name, value),) = given.items()
    if value == "-":
        return _stdin()
    if name == "--file":
        return file_text(value)
    try:
        value.encode()  # bytes of the command line that are no UTF-8 are surrogates
    except UnicodeEncodeError:
        raise OptionError(f"the prompt ({name}) is not UTF-8") from None
    return value


def file_text(path: str) -> str:
    """What a file of UTF-8 says. Raises OptionError."""
    try:
        return _decoded(Path(path).expanduser().read_bytes(), path)
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL; ~somebody who is not there
        raise OptionError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def piped(*, wait: bool = False) -> str | None:
    """What a pipe or a file brings through stdin; None where stdin is a terminal or another device, or closed.

    A pipe may be one that the process inherited and into which nothing is ever written (of a daemon, ssh, a CI job).
    So one that neither brings anything nor ends in five seconds counts as no prompt, and that is said. wait: for a
    command that has nothing else to do.
    """
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except OSError:  # not a file of the system
        return None
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        if not wait and not _comes():
            said = f"nothing came through stdin within {_PATIENCE} s, so there is no prompt (-i - waits for one)"
            print(f"fastllm: {said}", file=sys.stderr)
            return None
        return _stdin()
    return _stdin() if stat.S_ISREG(kind) else None


def _comes() -> bool:
    """Whether stdin has something to read, or its end, within _PATIENCE."""
    if os.name == "nt":  # only sockets can be waited for
        return True
    from select import select

    return bool(select([sys.stdin], [], [], _PATIENCE)[0])


def _stdin() -> str:
    try:
        return _decoded(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise OptionError(f"stdin cannot be read: {error.strerror}") from None


def _decoded(blob: bytes, name: str) -> str:
    """UTF-8, with or without the mark that Windows' editors put before it, without one line end at its end."""
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is not UTF-8: byte {error.start} is 0x{blob[error.start]:02x}") from None
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
