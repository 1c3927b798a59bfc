"""A talk at a terminal: turns, and the commands between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastllm.chat import Conversation
from fastllm.cli._answers import Answers
from fastllm.cli._terminal import Reader, Screen, say
from fastllm.errors import FastLLMError, OptionError
from fastllm.files import read_file, replacing

_HELP = """\
/system TEXT     set the system prompt; without TEXT: none
/retry           answer the last message again, with the next seed
/undo            remove the last message and its answer
/temp X          set the temperature
/set NAME VALUE  set seed, max_tokens or an option of sampling, such as top_p; without both: show them
/tokens          how full the context is
/save FILE       write messages and settings as JSON
/load FILE       go on with what /save wrote
/bye             end, like Ctrl-D
Enter sends a message, Alt-Enter makes a new line in it, Ctrl-C stops an answer. // or a space before a slash says a
slash."""


class Talk:
    """A conversation with a person at a terminal."""

    def __init__(self, conversation: Conversation, answers: Answers, screen: Screen) -> None:
        self._conversation, self._answers, self._screen = conversation, answers, screen
        self._commands: dict[str, Callable[[str], None]] = {
            "system": self._system,
            "retry": self._retry,
            "undo": self._undo,
            "temp": lambda value: self._set(f"temperature {value}"),
            "set": self._set,
            "tokens": self._tokens,
            "save": self._save,
            "load": self._load,
            "help": lambda _: say(_HELP),
            "bye": self._bye,
        }
        self._stopped = False  # whether Ctrl-C stopped the last answer
        self._over = False

    def run(self, reader: Reader) -> None:
        """Talks until the user ends it. Raises KeyboardInterrupt where that is by Ctrl-C."""
        while not self._over:
            try:
                text = _clean(reader.read(stopped=self._stopped))
            except EOFError:
                return
            self._stopped = False
            if not text.strip():
                continue
            try:
                self._turn(text)
            except KeyboardInterrupt:  # in a command
                self._stopped = True
            except FastLLMError as error:
                say(f"fastllm: {error}")

    def _turn(self, text: str) -> None:
        if not text.startswith("/") or text.startswith("//"):
            self._ask(text[1:] if text.startswith(("//", " /")) else text)
            return
        name = text[1:].split(maxsplit=1)[0] if text[1:2].strip() else ""
        if (command := self._commands.get(name)) is None:
            raise OptionError(f"there is no command /{name}: /help lists them; // says a slash")
        command(text[1 + len(name) :].strip())

    def _ask(self, text: str) -> None:
        """Adds a message and its answer; neither where that fails. An answer that Ctrl-C prevents is empty."""
        before = self._conversation.messages.copy()
        self._conversation.say(text)
        try:
            self._answers.fit(self._conversation)
            self._stopped = not self._answers.answer(self._conversation, self._screen)
        except KeyboardInterrupt:  # while the prompt was made
            if self._conversation.messages[-1]["role"] == "user":
                self._conversation.messages.append({"role": "assistant", "content": ""})
            self._stopped = True
        except BaseException:
            self._conversation.messages = before
            raise

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        say("[the system prompt is set]" if text else "[there is no system prompt]")

    def _retry(self, _: str) -> None:
        before = self._conversation.messages.copy()
        turn = self._conversation.undo()
        if not turn:
            raise OptionError("there is no message to answer again")
        seed = (self._answers.settings["seed"] + 1) % (1 << 64)
        self._answers.set({"seed": seed})
        say(f"[seed {seed}]")
        try:
            self._ask(turn[0]["content"])
        except BaseException:
            self._conversation.messages = before
            raise

    def _undo(self, _: str) -> None:
        turn = self._conversation.undo()
        if not turn:
            raise OptionError("there is no message to remove")
        said = turn[0]["content"].replace("\n", " ")
        say(f"[removed: {said if len(said) < 60 else said[:57] + '...'}]")

    def _set(self, words: str) -> None:
        given = words.split()
        if len(given) not in (0, 2):
            raise OptionError("/set takes a name and a value, /temp a value")
        if given:
            name, text = given[0].replace("-", "_"), given[1]
            try:
                value = json.loads(text)
            except ValueError:
                raise OptionError(f"{name} must be a number, not {text!r}") from None
            self._answers.set({name: value})
        say(f"[{', '.join(f'{name} {value}' for name, value in self._answers.shown.items())}]")

    def _tokens(self, _: str) -> None:
        messages = self._conversation.messages
        used = self._answers.count(messages, asking=False) if messages else 0
        cached = self._answers.cached
        say(f"[{used:,} of {self._answers.llm.context:,} tokens; {cached:,} of the last prompt's were in the cache]")

    def _save(self, name: str) -> None:
        path = _path(name, "/save")
        whole = {
            "model": str(self._answers.llm.path),
            "settings": self._answers.settings,
            "messages": self._conversation.messages,
        }
        text = json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
        blob = text.encode(errors="backslashreplace")  # half a surrogate pair, which JSON writes so
        with replacing(path, len(blob)) as file:
            file.write(blob)
        say(f"[saved to {path}]")

    def _load(self, name: str) -> None:
        path = _path(name, "/load")
        messages, settings = loaded(read_file(path), path)
        self._answers.set(settings)
        self._conversation.messages = messages
        say(f"[{len(messages)} messages of {path}]")

    def _bye(self, _: str) -> None:
        self._over = True


def loaded(blob: bytes, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages and settings that a file of /save holds. Raises OptionError for any other file."""
    try:
        whole = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is no JSON: {error}") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("messages"), list):
        raise OptionError(f"{path} holds no talk: it has no list of messages")
    messages, settings = whole["messages"], whole.get("settings", {})
    if not isinstance(settings, dict):
        raise OptionError(f"{path} holds no talk: its settings are a {type(settings).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise OptionError(f"message {i + 1} of {path} has no text as its content")
    return Conversation(messages).messages, settings


def _path(name: str, command: str) -> Path:
    if not name or "\0" in name:
        raise OptionError(f"{command} takes the name of a file")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise OptionError(f"{name}: {error}") from None


def _clean(text: str) -> str:
    """A message without its last line ends; bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip("\r\n")
