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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn, TextIO

from fastllm import __version__
from fastllm.errors import CacheWarning, CheckpointWarning, FastLLMError, OptionError, reason

# What argparse is given for a text or value "--", which Python before 3.13 drops. No argument has a null character.
_DASHES = "\0--"

_ABOUT = "Run language models on the CPU you have: one command, no server, no GPU."

_START = """
start:
  fastllm run                                        a story from the built-in model
  fastllm run stories15M.bin "One day, Lily"         go on with a text; a model is a file, a folder,
  fastllm chat HuggingFaceTB/SmolLM2-135M-Instruct   or a name of the Hugging Face hub
"""

# Group -> name of a command, and of its module here -> what it is in the list of commands, and above its own help.
_COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "write": {
        "run": ("write text", "Write text from a model, on from a prompt or from nothing."),
        "chat": ("talk to a model", "Talk to a model, in the format of its chat template."),
    },
    "read": {
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
    },
    "models": {
        "pull": (
            "download a model of the hub",
            "Download of a model on the Hugging Face hub what it takes to run it, and print where it is.",
        ),
        "list": (
            "the models of the hub that are here",
            "Print the models in the cache of the Hugging Face hub, with the names that other commands take.",
        ),
        "inspect": ("what a model file holds", "Config, tensors, types and sizes of a model file."),
        "cache": (
            "packed weights that are kept for the next start",
            "List the packed weights that fastllm keeps for the next start of a model, or remove them: fastllm cache "
            "clear removes all, fastllm cache clear NAME those of a model. FASTLLM_CACHE names their folder; 0 or off "
            "keeps none.",
        ),
        "convert": (
            "make the file that loads at once",
            "Convert a checkpoint to a file that is mapped and run as it lies on disk, tokenizer inside.",
        ),
    },
    "machine": {
        "info": (
            "what this machine and build can do",
            "Instruction sets built, found and chosen; threads, memory for keys and values, and why; the families of "
            "models that are known.",
        ),
        "bench": (
            "how fast a model runs, and the machine",
            "Measure prompts and writing for each combination of types, threads and batches, in turns, beside what the "
            "machine reads and multiplies.",
        ),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    _open_closed_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except (FastLLMError, MemoryError, ImportError) as error:
        return _fail(2, _sentence(error))
    except KeyboardInterrupt:
        return _fail(130)
    except BrokenPipeError:  # the reader of stdout has gone
        return _fail(141)
    except OSError as error:
        return _fail(2, f"{error.filename or 'the output'}: {error.strerror or error}")


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed help, the version or a mistake
        return int(end.code or 0)
    command: _Command = args.command
    with warnings.catch_warnings():
        warnings.simplefilter("default", CheckpointWarning)
        warnings.simplefilter("default", CacheWarning)
        warnings.showwarning = partial(_warn, warnings.showwarning)
        try:
            return command.run(args)
        except OptionError as error:
            raise OptionError(command.with_options(str(error))) from None


def _fail(code: int, sentence: str = "") -> int:
    """Writes what is left for stdout, then the sentence to stderr, where they can be written; returns the code."""
    _write(sys.stdout, "")
    _write(sys.stderr, f"fastllm: {sentence}\n" if sentence else "")
    return code


def _write(stream: TextIO, text: str) -> None:
    """Writes and flushes; a stream that fails is replaced, or Python would complain when it flushes it at exit."""
    try:
        if text:
            stream.write(text)
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Opens streams that were closed when the process started (None in sys, >&- in a shell) on the null device.

    Otherwise the next file to be opened would get the number, and what is written to the stream. stdin is then empty,
    and stderr goes nowhere; writing to stdout is an error as it would be for any program.
    """
    for number, (name, flags) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue  # it is open, though Python has no stream for it
            os.open(os.devnull, flags)  # gets the lowest free number, this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _warn(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours in a line, like an error, without the place in the program; those of libraries as ever."""
    if issubclass(category, (CheckpointWarning, CacheWarning)):
        print("fastllm: " + str(message).replace("\n", "\\n"), file=sys.stderr)
    else:
        others(message, category, *place)


def _sentence(error: FastLLMError | MemoryError | ImportError) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, ImportError):
        return f"{error.name or 'a library'} cannot be loaded: {reason(error)}"
    return str(error).replace("\n", "\\n")  # of a file's name


def _parser() -> _Parser:
    parser = _Parser(prog="fastllm", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"fastllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Command)
    for group in _COMMANDS.values():
        for name, (about, description) in group.items():
            commands.add_parser(name, help=about, description=description, module=f"fastllm.cli.{name}")
    return parser


def _with_dashes(value: Any) -> Any:
    """The value of an argument, or the list of its values, with "--" for _DASHES."""
    if isinstance(value, list):
        return [_with_dashes(one) for one in value]
    return "--" if value == _DASHES else value


def _usage(positional: argparse.Action) -> str:
    forms = {"?": "[{}]", "*": "[{} ...]"}
    return forms.get(str(positional.nargs), "{}").format(positional.metavar)


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
        """Without abbreviations: the first parser would look for its own in the words of a command."""
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def format_help(self) -> str:
        """The list of commands in groups."""
        parts = [f"usage: {self.prog} COMMAND [OPTIONS]\n\n{self.description}\n{_START}"]
        for title, commands in _COMMANDS.items():
            lines = [f"  {name:10}{about}\n" for name, (about, _) in commands.items()]
            parts.append(f"\n{title}:\n{''.join(lines)}")
        return "".join([*parts, f"\n{self.prog} COMMAND --help lists a command's options; {self.prog} --version.\n"])

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse hides that the message could not be written."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        """One sentence, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Command(_Parser):
    """A command's parser. Its module is imported when it is the one that is asked for: all take milliseconds."""

    run: Callable[[argparse.Namespace], int]

    def __init__(self, *, module: str, **about: Any) -> None:
        super().__init__(**about)
        self._module = module

    def format_help(self) -> str:
        positionals = self._get_positional_actions()
        self.usage = " ".join([self.prog, *map(_usage, positionals), "[OPTIONS]"])
        return argparse.ArgumentParser.format_help(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        module = import_module(self._module)
        module.options(self)
        self.run = module.run
        self.set_defaults(command=self)
        found, rest = super().parse_known_args(self._options_first(args), namespace)
        if rest:
            self.error(f"{rest[-1]!r} is one argument too many")
        for name, value in vars(found).items():
            setattr(found, name, _with_dashes(value))
        return found, rest

    def _options_first(self, words: Iterable[str]) -> list[str]:
        """The words of a command line with the options before all else, each in one word with its value.

        So options may stand before, between and after texts, of which argparse would take only the first row, and a
        value may begin with a dash. Words after "--" are no options, nor are numbers and whatever has spaces in it.
        """
        options: list[str] = []
        texts: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                texts += rest
            elif (option := self._option(word)) is None:
                texts.append(word)
            else:
                name, value, action = option
                if value is None and action.nargs is None:
                    value = next(rest, None)
                    if value is None or value in self._option_string_actions:
                        self.error(f"{word} needs a value")
                options.append(name if value is None else f"{name}={_DASHES if value == '--' else value}")
        return [*options, *(["--", *(_DASHES if text == "--" else text for text in texts)] if texts else [])]

    def _option(self, word: str) -> tuple[str, str | None, argparse.Action] | None:
        """The option that a word is, by its long name, and the value that is joined to it; None for a text."""
        known = self._option_string_actions
        if not word.startswith("-") or word == "-" or word[1].isdigit() or word[1] == ".":
            return None
        name, joined, value = word.partition("=")
        if not word.startswith("--"):  # one letter, with or without a sign between it and its value
            name, joined, value = word[:2], word[2:], word[2:].removeprefix("=")
        names = [name] if name in known else [other for other in known if other.startswith(name)]
        actions = {id(known[other]): known[other] for other in names}
        if len(actions) > 1:
            self.error(f"{name} may mean {' or '.join(names)}")
        for action in actions.values():
            return action.option_strings[-1], value if joined else None, action
        if len(word.split()) == 1:
            self.error(f"unknown option {word}")
        return None

    def with_options(self, sentence: str) -> str:
        """A sentence that begins with an argument of the API, such as top_p, with the option in its place."""
        first, space, rest = sentence.partition(" ")
        names = next((a.option_strings for a in self._actions if a.dest == first and a.option_strings), [first])
        return "/".join(names) + space + rest
