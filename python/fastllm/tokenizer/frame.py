"""What is put around the texts that a model reads, and which ids end those that it writes."""

from __future__ import annotations

from typing import NamedTuple

from fastllm.tokenizer.base import Tokenizer


class Frame(NamedTuple):
    """How a model's tokenizer is used: which ids stand before and after a text.

    bos: the model's own BOS, None where it has none; put first where the tokenizer's files do not say what is. stop:
    the ids that end what the model writes. encoder: whether the model reads a text as a whole (BERT). Then the text
    gets its suffix too, and special tokens written in it, such as [MASK], become their ids.
    """

    tokenizer: Tokenizer
    bos: int | None
    stop: tuple[int, ...]
    encoder: bool

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids before a text: as the tokenizer's files say, else the model's BOS."""
        prefix = self.tokenizer.prefix
        return prefix if prefix is not None else () if self.bos is None else (self.bos,)

    @property
    def suffix(self) -> tuple[int, ...]:
        """The ids after a text."""
        return self.tokenizer.suffix or ()

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The ids of a text alone, without prefix and suffix.

        special: whether special tokens written in the text become their ids; None: only an encoder's do.
        """
        return self.tokenizer.encode(text, special=self.encoder if special is None else special)

    def around(self, text: str, *, suffix: bool, special: bool | None = None) -> list[int]:
        """The prefix, the ids of a text, and the suffix if `suffix` is true."""
        return [*self.prefix, *self.encode(text, special), *(self.suffix if suffix else ())]

    def tokenize(self, text: str, special: bool | None = None) -> list[int]:
        """The ids that the model reads: with the suffix for an encoder, without it for a model that continues the text.

        An empty text without a prefix becomes the one id that texts start after: BOS, else the one that ends a text, as
        in training it stands between two texts.
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
    """The ids that end a text that the model writes, and those that end its turn in a conversation.

    stop, chat_stop: the same two of the model's config. ends: Tokenizer.ends. These end turns always; texts only where
    the config does not tell the two apart (llama2.c's texts end at BOS, its turns at EOS).
    """
    turn = tuple(dict.fromkeys((*chat_stop, *ends)))
    return (turn if stop == chat_stop else stop), turn
