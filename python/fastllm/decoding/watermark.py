"""The watermark of a text: tokens that it has more often than chance, and how they are found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.decoding import _checks as checks
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm import _core


class Detection(NamedTuple):
    """What a text shows of a watermark.

    tokens: how many were looked at; green: how many of these were green. z_score: how many standard deviations that is
    above chance; p_value: how likely chance gives as many. found: whether z_score is above the threshold.
    """

    tokens: int
    green: int
    z_score: float
    p_value: float
    found: bool


class _Fields(NamedTuple):
    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1


class Watermark(_Fields):
    """Green tokens, a pseudorandom share of the vocabulary that a text prefers (Kirchenbauer et al., 2023).

    Fields, defaults and green lists are those of WatermarkingConfig of the transformers library, whose detector finds
    these texts. greenlist_ratio: the share that is green. bias: what is added to the logits of green tokens, once the
    filters are through. hashing_key: whoever knows it can find the watermark. seeding_scheme: "lefthash": the list
    depends on the last token; "selfhash": on the last context_width tokens, of which the very last is the one that is
    asked about; then only the 40 most likely tokens may be green, and a draw takes longer.

    Raises OptionError for what is out of range.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> Watermark:
        given = super().__new__(cls, **values)
        ratio = checks.number(given.greenlist_ratio, "greenlist_ratio of the watermark", 0, 1)
        if not 0 < ratio < 1:
            raise OptionError(f"greenlist_ratio of the watermark must be between 0 and 1, not {ratio:g}")
        key = given.hashing_key
        if not checks.is_whole(key) or not 0 <= key < 1 << 63:
            raise OptionError(
                f"hashing_key of the watermark must be a whole number below 2^63, not {checks.shown(key)}"
            )
        if given.seeding_scheme not in ("lefthash", "selfhash"):
            scheme = checks.shown(given.seeding_scheme)
            raise OptionError(f"seeding_scheme of the watermark must be 'lefthash' or 'selfhash', not {scheme}")
        return super().__new__(
            cls,
            greenlist_ratio=ratio,
            bias=checks.number(given.bias, "bias of the watermark", -80, 80),
            hashing_key=int(key),
            seeding_scheme=given.seeding_scheme,
            context_width=checks.whole(given.context_width, "context_width of the watermark", 1),
        )

    @classmethod
    def of(cls, value: Any) -> Watermark | None:
        """A watermark of itself, of a dict of its fields, or of None. Raises OptionError for anything else."""
        if value is None or isinstance(value, Watermark):
            return value
        if not isinstance(value, Mapping) or not set(value) <= set(cls._fields):
            raise OptionError(
                f"watermark must be a Watermark or a dict of {', '.join(cls._fields)}, not {checks.shown(value)}"
            )
        return cls(**value)

    def lists(self, vocab_size: int) -> _core.Watermark:
        """Its green lists of a vocabulary, as the sampler takes them."""
        return _lists(self, vocab_size)

    def detect(
        self,
        tokens: Iterable[int],
        vocab_size: int,
        *,
        z_threshold: float = 3.0,
        ignore_repeated_ngrams: bool = False,
    ) -> Detection:
        """Looks for the watermark in the ids of a text, without the id that texts begin with (BOS).

        vocab_size: of the model that wrote it (config.vocab_size). ignore_repeated_ngrams: a token is counted once for
        each context. Raises OptionError for a text that is too short, or has an id outside the vocabulary.
        """
        ids = checks.token_ids(tokens, "tokens")
        width = self.context_width + (self.seeding_scheme == "lefthash")  # the token itself and those before it
        if len(ids) <= self.context_width:
            raise OptionError(f"tokens has {len(ids)} tokens: to find the watermark it needs {self.context_width + 1}")
        lists = self.lists(vocab_size)
        grams = [ids[i : i + width] for i in range(len(ids) - width + 1)]
        is_green = {gram: lists.green(gram[:-1], gram[-1]) for gram in dict.fromkeys(grams)}
        counted = list(is_green) if ignore_repeated_ngrams else grams
        green, count, ratio = sum(is_green[gram] for gram in counted), len(counted), self.greenlist_ratio
        z_score = (green - ratio * count) / math.sqrt(count * ratio * (1 - ratio))
        return Detection(count, green, z_score, 0.5 * math.erfc(z_score / math.sqrt(2)), z_score > z_threshold)


@lru_cache(maxsize=4)
def _lists(watermark: Watermark, vocab_size: int) -> _core.Watermark:
    from fastllm import _core

    return _core.Watermark(
        vocab_size,
        ratio=watermark.greenlist_ratio,
        bias=watermark.bias,
        key=watermark.hashing_key,
        selfhash=watermark.seeding_scheme == "selfhash",
        width=watermark.context_width,
    )
