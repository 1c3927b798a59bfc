"""The fastllm command: its parser, and what becomes of errors.

Generated text goes to stdout, everything else to stderr. Exit codes: 0; 2 for a wrong option, file or model, with one
sentence that names the cause; 130 for Ctrl-C, but 2 where that leaves a conversion undone; 141 where the reader of
stdout has gone. What else ends a process (SIGTERM, SIGHUP, SIGQUIT) does as ever, but for a conversion, which it ends
like Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from fastllm import __version__
from fastllm.errors import CheckpointWarning, FastLLMError, reason

# Name of a command, and of its module here -> what it is in the list of commands, and above its own help.
_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("write text", "Write text from a model."),
    "chat": (
        "talk to a model",
        "Talk to a model, in the format of its chat template: a line is a turn, end with Ctrl-D.",
    ),
    "embed": (
        "texts as vectors",
        "Print one vector for each text, a line each: of the arguments, or of the lines of stdin.",
    ),
    "classify": (
        "labels of texts, or of their tokens",
        "Print the likeliest label, its probability and the text, for each argument or each line of stdin. "
        "Of a model that labels tokens, a line for each token, and an empty one after each text.",
    ),
    "rerank": (
        "documents by how well they answer a query",
        "Print score, index and document, the best first: of the arguments, or of the lines of stdin.",
    ),
    "convert": (
        "make the file that loads at once",
        "Convert a checkpoint to a file that is mapped and run as it lies on disk, tokenizer inside.",
    ),
    "bench": (
        "how fast a model runs, and the machine",
        "Measure prompts and writing for each combination of types, threads and batches, in turns, beside what the "
        "machine reads and multiplies.",
    ),
    "info": (
        "what this machine and build can do",
        "Instruction sets built, found and chosen; threads and why; the families of models that are known.",
    ),
    "inspect": (
        "what a model file holds",
        "Config, tensors, types and sizes of a model file.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        args = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.simplefilter("default", CheckpointWarning)
            warnings.showwarning = partial(_warn, warnings.showwarning)
            code: int = args.command(args)
        sys.stdout.flush()
    except (FastLLMError, MemoryError, ImportError) as error:
        print(f"fastllm: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader of stdout has gone
        return 141
    except OSError as error:
        _drop_output()
        print(f"fastllm: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 2
    return code


def _warn(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours in a line, like an error, without the place in the program; those of libraries as ever."""
    if issubclass(category, CheckpointWarning):
        print("fastllm: " + str(message).replace("\n", "\\n"), file=sys.stderr)
    else:
        others(message, category, *place)


def _sentence(error: FastLLMError | MemoryError | ImportError) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, ImportError):
        return f"{error.name or 'a library'} cannot be loaded: {reason(error)}"
    return str(error).replace("\n", "\\n")  # of a file's name


def _drop_output() -> None:
    """Python would complain again when it flushes at exit."""
    with suppress(OSError):  # no more files can be opened
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> _Parser:
    parser = _Parser(prog="fastllm", description="Run language models on the computer you have.")
    parser.add_argument("--version", action="version", version=f"fastllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Command)
    for name, (about, description) in _COMMANDS.items():
        commands.add_parser(name, help=about, description=description, module=f"fastllm.cli.{name}")
    return parser


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        """As wide as the terminal. argparse makes one for every option, and would import shutil to ask: 4 ms."""
        try:
            width = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            width = 80
        super().__init__(prog, width=width - 2)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        """One sentence, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Command(_Parser):
    def __init__(self, *, module: str, **about: Any) -> None:
        """A command's parser. Its module is imported when it is the one that is asked for: all take milliseconds."""
        super().__init__(**about)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        module = import_module(self._module)
        module.options(self)
        self.set_defaults(command=module.run)
        return super().parse_known_args(args, namespace)
