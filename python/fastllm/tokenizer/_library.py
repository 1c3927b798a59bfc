"""Vocabularies that Hugging Face's tokenizers library runs (the extra "hf"): https://huggingface.co/docs/tokenizers.

The library encodes. Decoding is done here (_decoders.py), by the steps of the tokenizer's own decoder, so that a text
that is decoded token by token equals the text decoded at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fastllm import _core
from fastllm.errors import FastLLMError, TokenizerError, import_error
from fastllm.tokenizer._decoders import Decoder
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Bytes, Pair, Stream, Tokenizer

if TYPE_CHECKING:
    import tokenizers

# Texts to see what a tokenizer puts around any text: the first of which something is left by the normalizer will do.
_PROBES = ("a", "A", "0", ".")


def library(what: str) -> Any:
    """The tokenizers library. Raises TokenizerError, which says that `what` needs it, where it is not installed."""
    try:
        import tokenizers
    except (ImportError, OSError) as error:
        missing = TokenizerError(f"{what} needs the tokenizers library: pip install 'fastllm[hf]'")
        raise import_error(error, "tokenizers", missing) from None
    return tokenizers


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turns what the library `name` raises inside the block into TokenizerError.

    A panic of a Rust library is a BaseException of its own type, hence the wide except.
    """
    try:
        yield
    except (FastLLMError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())[:300]
        raise TokenizerError(f"the {name} library refuses it: {said}") from None


def bert_normalizer(hf: Any, settings: Settings) -> Any:
    """The normalizer of transformers' BertTokenizer. Its flags come from tokenizer_config.json, not from a
    tokenizer.json."""
    lower, chinese = settings.flag("do_lower_case"), settings.flag("tokenize_chinese_chars")
    return hf.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True if chinese is None else chinese,
        strip_accents=settings.flag("strip_accents"),
        lowercase=True if lower is None else lower,
    )


class LibraryTokenizer(Tokenizer):
    """A tokenizers.Tokenizer, which this class takes over and changes.

    prefix, suffix and pair are what its post-processor puts around a text, and BOS and EOS where `settings` ask for
    them. Raises TokenizerError for ids that leave huge gaps.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()
        # Of one that was taken apart (_merges.py): what merges, and the parts that it was made of.
        self._merges: _core.Merges | None = None
        self._parts: Sequence[Bytes] = ()
        _living.add(self)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._add_tokens(settings)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.size = max(vocabulary.values(), default=-1) + 1
        if self.size > 4 * len(vocabulary) + (1 << 16):
            raise TokenizerError(f"it has ids up to {self.size - 1:,} for {len(vocabulary):,} tokens")
        self.plain = max((i for i in vocabulary.values() if i not in added), default=-1) + 1
        self._decoder: Decoder | None = None
        self._spaced = self._puts_a_space()
        around = self._around_one()
        self.prefix, self.suffix = settings.affixes(self.token_id, *around)
        if (self.prefix, self.suffix) == around:
            self.pair = self._around_two(settings)
        self.special = [token.content for token in added.values() if token.special]
        self.added = [token.content for token in added.values() if not token.special]
        settings.describe(self)

    def _add_tokens(self, settings: Settings) -> None:
        """Adds the tokens that the files beside the vocabulary name, or updates their flags.

        As in transformers, a token that the vocabulary has keeps its id; a new one gets the id that the files say, or
        the next free one where they say none or it is taken.
        """
        hf, tokenizer = library("tokenizer.json"), self._tokenizer
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        later = [token for _, token in sorted(settings.added.items())]
        later += [token for token in settings.special if token.content not in known]
        size, added = tokenizer.get_vocab_size(), []
        settings.check_added(size)
        for i, token in sorted(settings.added.items()):
            if i >= size and tokenizer.token_to_id(token.content) is None:
                # The library numbers added tokens without gaps: ids up to i get fillers that occur in no text.
                added += [hf.AddedToken(f"\ufdd2{n}", special=True, normalized=False) for n in range(size, i)]
                added.append(hf.AddedToken(**token._asdict()))
                size = i + 1
        tokenizer.add_tokens([*added, *(hf.AddedToken(**token._asdict()) for token in later)])

    def _puts_a_space(self) -> bool:
        """Whether a space is put before a text, so that its first word is the same token as after a space."""
        text = "a"
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        if self._tokenizer.pre_tokenizer is not None:
            text = "".join(word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text))
        return text[:1] in (" ", "\u2581", "\u0120")  # as SentencePiece and as GPT-2's byte alphabet write a space

    def _around_one(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor puts before and after a text: those that the mask calls special."""
        for text in _PROBES:
            encoding = self._tokenizer.encode(text, add_special_tokens=True)
            ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
            if 0 in added:
                end = len(ids) - added[::-1].index(0)
                return tuple(ids[: added.index(0)]), tuple(ids[end:])
        return (), ()

    def _around_two(self, settings: Settings) -> Pair | None:
        """The ids that the post-processor puts around two texts; None where they, or their token types, fit no Pair."""
        for text in _PROBES:
            encoding = self._tokenizer.encode(text, text, add_special_tokens=True)
            ids, texts, types = list(encoding.ids), list(encoding.sequence_ids), list(encoding.type_ids)
            if 0 in texts and 1 in texts:
                # The first text ends before `end`, the second is begin to last - 1.
                end, begin, last = len(texts) - texts[::-1].index(0), texts.index(1), len(texts) - texts[::-1].index(1)
                second = types.index(1) - end if settings.token_types and 1 in types else None
                if second is not None and (any(types[: end + second]) or not 0 <= second <= begin - end):
                    return None
                return Pair(tuple(ids[: texts.index(0)]), tuple(ids[end:begin]), tuple(ids[last:]), second)
        return None

    def parts(self) -> tuple[dict[str, Any], list[Bytes]]:
        """What from_parts makes it of again."""
        from fastllm.tokenizer._merges import Parted

        about = {"special_ids": sorted(self._special), "spaced": self._spaced}
        if self._merges is not None:
            return about | {"whole": self._merges.whole}, list(self._parts)
        text = self._tokenizer.to_str()
        parted = Parted.of(text, library("its vocabulary").pre_tokenizers.ByteLevel.alphabet())
        if parted is None:
            return about, [text.encode()]
        return about | {"whole": parted.whole}, [parted.small.encode(), *parted.tables]

    @classmethod
    def from_parts(cls, about: Mapping[str, Any], parts: Sequence[Bytes]) -> LibraryTokenizer:
        """A tokenizer without what all kinds have (ready.py). Raises TokenizerError."""
        self = cls.__new__(cls)
        with refusals("tokenizers"):
            self._tokenizer = library("its vocabulary").Tokenizer.from_str(str(parts[0], "utf-8"))
        self._merges = _core.Merges(*parts[1:], whole=about["whole"]) if len(parts) > 1 else None
        self._parts = parts
        self._lock, self._decoder = Lock(), None
        self._special, self._spaced = set(about["special_ids"]), about["spaced"]
        _living.add(self)
        return self

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # A lone surrogate stands for a byte that was not UTF-8 when the text was read; it becomes "?".
        text = text.encode("utf-8", "replace").decode()
        if start or not self._spaced:
            return self._ids(text, special=special)
        # The text continues another, so that it gets no space: encoded after a line break, whose ids are dropped.
        line, ids = self._ids("\n", special=False), self._ids("\n" + text, special=special)
        return ids[len(line) :] if ids[: len(line)] == line else self._ids(text, special=special)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # Whether special tokens are matched is a state of the library's object: one thread at a time.
        with self._lock, refusals("tokenizers"):
            self._tokenizer.encode_special_tokens = not special
            found = self._tokenizer.encode(text, add_special_tokens=False)
            ids = list(found.ids)
            return ids if self._merges is None else self._merges.encode(ids, found.word_ids)

    def _word(self, i: int) -> str | None:
        """The token with an id, as the vocabulary has it."""
        found: str | None = self._tokenizer.id_to_token(i)
        if found is None and self._merges is not None and i < self._merges.size:
            return self._merges.token(i).decode() or None
        return found

    def stream(self, previous: int | None = None) -> Stream:
        if self._decoder is None:
            word, special = self._word, self._special
            with refusals("tokenizers"):
                self._decoder = Decoder(
                    library("tokenizer.json"), self._tokenizer, lambda i: None if i in special else word(i), self.size
                )
        return self._decoder.stream(None if previous in self._special else previous)

    def token_id(self, text: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(text)
        return self._merges.find(text) if found is None and self._merges is not None else found


_living: WeakSet[LibraryTokenizer] = WeakSet()


def _free_locks() -> None:
    """Runs in a child of fork: a lock held by a thread of the parent would never be released there."""
    for tokenizer in _living:
        tokenizer._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
