"""What belongs around the texts that a model reads."""

from __future__ import annotations

from typing import NamedTuple

from fastllm.tokenizer.base import Tokenizer


class Frame(NamedTuple):
    """The ids before and after a model's texts: what its tokenizer's files say, else the BOS of its family.

    bos: the model's own BOS, None without. stop: the ids that end what it writes. encoder: whether it reads a text as a
    whole, which then has both ends and may have special tokens written in it.
    """

    tokenizer: Tokenizer
    bos: int | None
    stop: tuple[int, ...]
    encoder: bool

    @property
    def prefix(self) -> tuple[int, ...]:
        prefix = self.tokenizer.prefix
        return prefix if prefix is not None else () if self.bos is None else (self.bos,)

    @property
    def suffix(self) -> tuple[int, ...]:
        return self.tokenizer.suffix or ()

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The ids of a text alone. special: whether special tokens written in it become their ids; None: an
        encoder's do."""
        return self.tokenizer.encode(text, special=self.encoder if special is None else special)

    def around(self, text: str, *, suffix: bool, special: bool | None = None) -> list[int]:
        """The ids of a text behind the prefix, and with `suffix` before the suffix."""
        return [*self.prefix, *self.encode(text, special), *(self.suffix if suffix else ())]

    def tokenize(self, text: str, special: bool | None = None) -> list[int]:
        """The ids of a text as the model reads it: an encoder's whole, another's to be continued.

        An empty text is what a text of the model's own begins after: BOS, else what training put between texts.
        """
        ids = self.around(text, suffix=self.encoder, special=special)
        first = self._first() if not ids else None
        return ids if first is None else [first]

    def _first(self) -> int | None:
        if self.bos is not None:
            return self.bos
        roles = self.tokenizer.roles
        named = (self.tokenizer.token_id(roles[role]) for role in ("bos_token", "eos_token") if role in roles)
        return next((i for i in named if i is not None), self.stop[0] if self.stop else None)


def stop_tokens(
    stop: tuple[int, ...], chat_stop: tuple[int, ...], ends: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """The ids that end a model's texts, and its turns: its config's, and those its tokenizer knows as ends.

    Where the config has texts end elsewhere than turns (at BOS, as run.c's do), the tokenizer says nothing of texts.
    """
    turn = tuple(dict.fromkeys((*chat_stop, *ends)))
    return (turn if stop == chat_stop else stop), turn
