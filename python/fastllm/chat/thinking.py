"""Replies of models that think before they answer, told apart into thinking and text while they are written."""

from __future__ import annotations

from collections.abc import Iterable

from fastllm.tokenizer import Tokenizer

# What models write around their thinking, which precedes the answer.
_MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)


def markers(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """The beginning and the end of a model's thinking, as its chat template or its added tokens name them, if any.

    Special tokens are not shown in a text, so they are no markers.
    """
    written = f"{tokenizer.chat_template or ''}{tokenizer.tool_template or ''}"
    names: Iterable[tuple[str, str]] = (m for m in _MARKERS if m[1] in written or m[1] in tokenizer.added)
    return next((m for m in names if m[1] not in tokenizer.special), None)


class Thinking:
    """Takes a reply piece by piece and tells what is thinking and what is text.

    A reply thinks where it begins with the first marker, or where the prompt ends with that (as templates of models
    that always think write it), up to the second marker. What comes after is text, also where it has markers. White
    space around markers belongs to neither part.

    What may still become a marker, or white space before one, is held back.
    """

    def __init__(self, markers: tuple[str, str] | None, prompt: str = "", said: str = "") -> None:
        """markers: None for a model that does not think: all is text.

        prompt: what the reply continues; said: the beginning of the reply that is the end of the prompt.
        """
        self._open, self._close = markers or ("", "")
        self._held, self._trim = "", False
        self._place = "start" if markers else "text"  # or "thinking"
        if markers:
            before = prompt.rstrip().removesuffix(said.strip()).rstrip()
            self._trim = before.endswith(markers)
            if self._trim:
                self._place = "thinking" if before.endswith(self._open) else "text"
            self.push(said)
            self._held = self._held.lstrip()

    def push(self, piece: str) -> list[tuple[str, str]]:
        """The parts that are certain now, each "thinking" or "text" and what it says: none of them is empty."""
        self._held += piece
        parts: list[tuple[str, str]] = []
        if self._place == "start":
            begun = self._held.lstrip()
            if begun.startswith(self._open):
                self._place, self._held, self._trim = "thinking", begun[len(self._open) :], True
            elif not self._open.startswith(begun):
                self._place = "text"
        if self._place == "thinking":
            self._trimmed()
            thoughts, found, rest = self._held.partition(self._close)
            ready = thoughts[: len(thoughts) - (0 if found else _begun(thoughts, self._close))].rstrip()
            parts.append(("thinking", ready))
            self._held = self._held[len(ready) :]
            if found:
                self._place, self._held, self._trim = "text", rest, True
        if self._place == "text":
            self._trimmed()
            parts.append(("text", self._held))
            self._held = ""
        return [(kind, text) for kind, text in parts if text]

    def end(self) -> list[tuple[str, str]]:
        """The rest, when the reply is over."""
        kind, held, self._held = "thinking" if self._place == "thinking" else "text", self._held, ""
        return [(kind, held)] if held else []

    def _trimmed(self) -> None:
        """Drops white space after a marker."""
        if self._trim:
            self._held = self._held.lstrip()
            self._trim = not self._held


def _begun(text: str, marker: str) -> int:
    """How many characters at the end of a text may be the beginning of a marker."""
    most = min(len(text), len(marker) - 1)
    return next((n for n in range(most, 0, -1) if marker.startswith(text[-n:])), 0)
