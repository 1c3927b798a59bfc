"""Texts as a model reads them: their token ids, with what belongs around them, and the stream at each token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastllm.errors import ContextError, OptionError, TokenizerError
from fastllm.llm.arguments import token_ids, whole
from fastllm.tokenizer import Frame, Tokenizer, decode

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from fastllm import _core
    from fastllm.config import Config
    from fastllm.engine import Engine

    Ids = str | Sequence[int] | NDArray[np.integer[Any]]


class Texts:
    """The part of an LLM that reads texts. LLM.__init__ sets the fields."""

    config: Config
    context: int
    path: Path
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]
    _opened: Engine | None  # None once the model is closed
    _tokenizer: Tokenizer | TokenizerError
    _isa: str | None
    _tied: bool  # whether the embedding is the head too

    @property
    def _engine(self) -> Engine:
        """Raises OptionError once the model is closed."""
        if self._opened is None:
            raise OptionError(f"{self.path} is closed: load it again")
        return self._opened

    @property
    def _model(self) -> _core.Model:
        return self._engine.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError, which says where one was looked for, when the model has none."""
        if isinstance(self._tokenizer, TokenizerError):
            raise TokenizerError(str(self._tokenizer))
        return self._tokenizer

    @abstractmethod
    def _check_head(self) -> None:
        """Raises OptionError, which says what else the model can do, where it has no head: Labels has it."""

    def tokenize(self, text: str, *, bos: bool = True, special: bool | None = None) -> list[int]:
        """The token ids of a text; with bos, as the model expects a text to begin and end.

        That is BOS before a text to be continued, where the model has one, and around an encoder's text what its
        tokenizer says, such as [CLS] and [SEP]. An empty text becomes BOS, or else the token that ends a text, even
        where texts do without it. special: whether special tokens written in the text ("<mask>", "<|im_end|>") become
        their ids or stay text; None: they do for an encoder, since that is how its texts are masked.

        Raises TokenizerError, OptionError (the tokenizer gives an id that the model does not have).
        """
        if not isinstance(text, str):
            raise OptionError(f"text must be a str, not {type(text).__name__}")
        frame = self._frame
        ids = frame.tokenize(text, special) if bos else frame.encode(text, special)
        self._check_tokens(ids, "text")
        return ids

    @property
    def _frame(self) -> Frame:
        return Frame(self.tokenizer, self.bos, self.stop, encoder=not self.config.causal)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises OptionError for what is none, TokenizerError."""
        ids = token_ids(tokens, "tokens")
        self._check_tokens(ids, "tokens")
        return decode(self.tokenizer, ids)

    def _check_tokens(self, tokens: Sequence[int], what: str) -> None:
        size = self.config.vocab_size
        if not tokens or (min(tokens) >= 0 and max(tokens) < size):
            return
        for token in tokens:
            if not 0 <= token < size:
                why = f"{token}{self._named(token)} is no token id: the vocabulary has {size:,}"
                raise OptionError(f"{what} has a token that the model has not: {why}")

    def _named(self, token: int) -> str:
        """The text of an id that the tokenizer has and the model does not, for an error message."""
        if isinstance(words := self._tokenizer, TokenizerError):
            return ""
        return next((f", {text!r}," for text in (*words.special, *words.added) if words.token_id(text) == token), "")

    def _streams(
        self, texts: list[list[int]], layer: int | None, seconds: Mapping[int, int] = MappingProxyType({})
    ) -> Iterator[NDArray[np.float32]]:
        """Yields the hidden states of each text, float32 [T, dim]. layer: as for LLM.hidden_states. seconds: index of a
        text that is a pair -> the position at which its second text begins."""
        import numpy

        last = self.config.n_layers + 1
        layer = last if layer is None else whole("layer", layer, 0, last)
        pieces: list[NDArray[np.float32]] = []
        for text, rows in self._engine.hidden(texts, layer, self.config.dim, seconds):
            pieces.append(rows)
            if sum(map(len, pieces)) == len(texts[text]):
                stream = numpy.concatenate(pieces)
                stream[numpy.isnan(stream)] = numpy.nan  # one NaN for all: its sign and payload depend on the machine
                yield stream
                pieces = []

    def _ids(self, text: Ids, what: str) -> list[int]:
        """The ids of a text for the model, checked; checks too that the model's files have not changed meanwhile."""
        self._model.check_files()
        ids = self.tokenize(text) if isinstance(text, str) else token_ids(text, what)
        if not ids:
            raise OptionError(f"{what} is empty: it needs a token")
        self._check_tokens(ids, what)
        if len(ids) > self.context:
            limit = ", which is all that kv_bytes has room for" if self.context == self._engine.capacity else ""
            raise ContextError(f"{what} has {len(ids):,} tokens, the context {self.context:,}{limit}")
        return ids
