"""Hugging Face's tokenizer.json, and every vocabulary that its tokenizers library (the extra "hf") runs.

The library encodes. Decoding is ours, from the file's own decoder, so that a text in pieces is the text as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fastllm.errors import FastLLMError, TokenizerError, import_error
from fastllm.tokenizer._decoders import Decoding
from fastllm.tokenizer._settings import Settings
from fastllm.tokenizer.base import Pair, Stream, Tokenizer

if TYPE_CHECKING:
    import tokenizers


def library(what: str) -> Any:
    """The tokenizers library. Raises TokenizerError, naming the extra, where it is missing."""
    try:
        import tokenizers
    except (ImportError, OSError) as error:
        missing = TokenizerError(f"{what} needs the tokenizers library: pip install 'fastllm[hf]'")
        raise import_error(error, "tokenizers", missing) from None
    return tokenizers


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turns what a library raises into TokenizerError. Panics of the Rust ones are BaseExceptions of their own."""
    try:
        yield
    except (FastLLMError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())[:300]
        raise TokenizerError(f"the {name} library refuses it: {said}") from None


def bert_normalizer(hf: Any, settings: Settings) -> Any:
    """That of transformers' BertTokenizer, which goes by tokenizer_config.json, whatever a tokenizer.json says."""
    lower, chinese = settings.flag("do_lower_case"), settings.flag("tokenize_chinese_chars")
    return hf.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True if chinese is None else chinese,
        strip_accents=settings.flag("strip_accents"),
        lowercase=True if lower is None else lower,
    )


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library. What is put before and after a text is what its template puts there, and what
    `settings` ask for."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()
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
        self._decoding: Decoding | None = None
        self._spaced = self._puts_a_space()
        around = self._template()
        self.prefix, self.suffix = settings.affixes(self.token_id, *around)
        if (self.prefix, self.suffix) == around:
            self.pair = self._pair_template(settings)
        self.special = [token.content for token in added.values() if token.special]
        self.added = [token.content for token in added.values() if not token.special]
        settings.describe(self)

    def _add_tokens(self, settings: Settings) -> None:
        """Adds the tokens that files beside the vocabulary name, and marks those special that they call so.

        As transformers does, a token of the vocabulary keeps its id, and one that is nowhere and whose id is taken
        gets the next.
        """
        hf, tokenizer = library("tokenizer.json"), self._tokenizer
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        later = [token for _, token in sorted(settings.added.items())]
        later += [token for token in settings.special if token.content not in known]
        size, added = tokenizer.get_vocab_size(), []
        settings.check_added(size)
        for i, token in sorted(settings.added.items()):
            if i >= size and tokenizer.token_to_id(token.content) is None:
                # The library counts on: ids between get names that no text has.
                added += [hf.AddedToken(f"\ufdd2{n}", special=True, normalized=False) for n in range(size, i)]
                added.append(hf.AddedToken(**token._asdict()))
                size = i + 1
        tokenizer.add_tokens([*added, *(hf.AddedToken(**token._asdict()) for token in later)])

    def _puts_a_space(self) -> bool:
        """Whether a text's first word is made to look like one after a space."""
        text = "a"
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        if self._tokenizer.pre_tokenizer is not None:
            text = "".join(word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text))
        return text[:1] in (" ", "\u2581", "\u0120")

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that are put around a text."""
        for text in ("a", "A", "0", "."):
            encoding = self._tokenizer.encode(text, add_special_tokens=True)
            ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
            if 0 in added:
                end = len(ids) - added[::-1].index(0)
                return tuple(ids[: added.index(0)]), tuple(ids[end:])
        return (), ()

    def _pair_template(self, settings: Settings) -> Pair | None:
        """The ids that are put around two texts."""
        for text in ("a", "A", "0", "."):
            encoding = self._tokenizer.encode(text, text, add_special_tokens=True)
            ids, texts, types = list(encoding.ids), list(encoding.sequence_ids), list(encoding.type_ids)
            if 0 in texts and 1 in texts:
                end, begin, last = len(texts) - texts[::-1].index(0), texts.index(1), len(texts) - texts[::-1].index(1)
                second = types.index(1) - end if settings.token_types and 1 in types else None
                if second is not None and (any(types[: end + second]) or not 0 <= second <= begin - end):
                    return None
                return Pair(tuple(ids[: texts.index(0)]), tuple(ids[end:begin]), tuple(ids[last:]), second)
        return None

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        # Lone surrogates are bytes that were not UTF-8 to begin with.
        text = text.encode("utf-8", "replace").decode()
        if start or not self._spaced:
            return self._ids(text, special=special)
        # After a line break no space is put; its own tokens are cut off again.
        line, ids = self._ids("\n", special=False), self._ids("\n" + text, special=special)
        return ids[len(line) :] if ids[: len(line)] == line else self._ids(text, special=special)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        with self._lock, refusals("tokenizers"):  # how special tokens are taken is a state of the library's object
            self._tokenizer.encode_special_tokens = not special
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def stream(self, previous: int | None = None) -> Stream:
        if self._decoding is None:
            shown = {i: text for text, i in self._tokenizer.get_vocab().items() if i not in self._special}
            with refusals("tokenizers"):
                self._decoding = Decoding(library("tokenizer.json"), self._tokenizer, shown, self.size)
        return self._decoding.stream(None if previous in self._special else previous)

    def token_id(self, text: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(text)
        return found


_living: WeakSet[LibraryTokenizer] = WeakSet()


def _free_locks() -> None:
    """In a forked child: a thread of the parent that was encoding is not there to give its lock back."""
    for tokenizer in _living:
        tokenizer._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
