"""The text that a model is calibrated, pruned or measured with: one that the user gives, or our own, calibration.txt.

Our own is prose of several registers, dialogue, code, tables and mathematics, written for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastllm.errors import CheckpointError, OptionError, TokenizerError
from fastllm.files import read_file
from fastllm.tokenizer import Frame, stop_tokens

if TYPE_CHECKING:
    from fastllm.weights.source import Opened

_LEAST, _MOST = 256, 16384  # tokens of a text: fewer say nothing, more say little more and are sampled
DEFAULT = Path(__file__).with_name("calibration.txt")


class Text(NamedTuple):
    """A text as a model reads it. begin: the ids that its texts begin with, such as BOS; tokens: the text's own."""

    begin: Sequence[int]
    tokens: Sequence[int]

    def pieces(self, longest: int) -> list[list[int]]:
        """Pieces from all over the text, each after `begin`, of `longest` tokens at most: of a text of more than _MOST
        tokens every n-th. Raises OptionError for a text, or pieces, of too few tokens."""
        if len(self.tokens) < _LEAST:
            raise OptionError(f"the calibration text has {len(self.tokens)} tokens: it needs {_LEAST} at least")
        room = longest - len(self.begin)
        if room < 1:
            raise OptionError(f"a context of {longest} tokens is too short to calibrate with")
        whole = [[*self.begin, *self.tokens[at : at + room]] for at in range(0, len(self.tokens), room)]
        return whole[:: max(1, -(-len(self.tokens) // _MOST))]


def read(path: Path) -> str:
    """The text of a user's file. Raises OptionError."""
    try:
        return read_file(path).decode("utf-8")
    except (CheckpointError, UnicodeDecodeError) as error:
        raise OptionError(f"the calibration text {path} cannot be read: {error}") from None


def given(opened: Opened, words: str) -> Text:
    """A user's text, for a checkpoint. Raises the TokenizerError that the checkpoint has, and OptionError."""
    text = _tokens(opened, words)
    text.pieces(opened.recipe.config.max_seq)
    return text


def default(opened: Opened) -> Text | str:
    """Our own text, for a checkpoint; or why it says nothing about this one."""
    config = opened.recipe.config
    if not (config.causal and config.head):
        return "it is no causal language model"
    try:
        return given(opened, DEFAULT.read_text(encoding="utf-8"))
    except (TokenizerError, OptionError) as error:
        return str(error)


def _tokens(opened: Opened, text: str) -> Text:
    recipe, words = opened.recipe, opened.tokenizer
    if isinstance(words, TokenizerError):
        raise words
    stop, _ = stop_tokens(recipe.stop, recipe.chat_stop, words.ends)
    frame = Frame(words, recipe.bos, stop, encoder=not recipe.config.causal)
    return Text(frame.tokenize(""), words.encode(text))
