"""The options by which the next token is drawn, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError, OptionError


class _Fields(NamedTuple):
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}


# The least and the largest value of each number.
_RANGES = {
    "temperature": (0, 1e4),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (1e-4, 1e4),
    "presence_penalty": (-1e4, 1e4),
    "frequency_penalty": (-1e4, 1e4),
}
_NOTHING = 1e-37  # a float32 below it may be 0


def _number(value: Any, name: str, low: float, high: float) -> float:
    number = _float(value)
    if number is None or not low <= number <= high:
        raise OptionError(f"{name} must be a number between {low:g} and {high:g}, not {_shown(value)}")
    return number


def _top_k(value: Any) -> int:
    if not _is_whole(value) or not -1 <= value < 1 << 31:
        raise OptionError(f"top_k must be a whole number from 1 to 2^31 - 1, or 0 or -1 for all, not {_shown(value)}")
    return max(int(value), 0)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias must be a dict of token ids and numbers, not {_shown(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not _is_whole(key) and not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20):
            raise OptionError(f"logit_bias has {_shown(key)}, which is no token id")
        token = int(key)
        if token in biases:
            raise OptionError(f"logit_bias has token {token} twice")
        number = _float(bias)
        if number is None or not (-1e9 <= number <= 1e9 or number == -math.inf):
            raise OptionError(
                f"logit_bias of token {token} must be a number between -1e9 and 1e9, or -inf, not {_shown(bias)}"
            )
        biases[token] = number
    return biases


def _float(value: Any) -> float | None:
    """A number, numpy's too, as a float; None for anything else. True and False are no numbers."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:  # an int beyond all floats
        return None


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return repr(value)[:80]


class Sampling(_Fields):
    """The options of a draw, in the order they take effect.

    logit_bias: token id -> number added to its logit, -inf to forbid it; ids may be strings of digits, as in JSON.
    repetition_penalty: of tokens in the prompt or the text, positive logits are divided by it and negative ones
    multiplied; 1 is none (Keskar et al., 2019). presence_penalty, frequency_penalty: subtracted from the logit of a
    token in the new text, once, or as often as it occurs there. temperature: logits are divided by it; 0 (below 1e-6)
    takes the most likely token. top_k: keeps the k most likely tokens; 0 and -1 keep all. top_p: keeps the smallest set
    with more than top_p of the probability; 1 keeps all, and 0 only the most likely token, as temperature 0 does, which
    it becomes (Holtzman et al., 2020). min_p: keeps tokens at least min_p times as likely as the best (Nguyen et al.,
    2024). typical_p: keeps the tokens whose surprise is nearest to the expected surprise, up to that probability; 1
    keeps all (Meister et al., 2022).

    The defaults are llama2.c's. Numbers may be numpy's. Raises OptionError for what is out of range or no number.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> Sampling:
        given = super().__new__(cls, **values)._asdict()
        for name, (low, high) in _RANGES.items():
            given[name] = _number(given[name], name, low, high)
        given["top_k"] = _top_k(given["top_k"])
        given["logit_bias"] = _biases(given["logit_bias"])
        if given["top_p"] < _NOTHING:
            given["temperature"] = 0.0
        return super().__new__(cls, **given)

    def updated(self, **options: Any) -> Sampling:
        """These options with those of `options` that are not None in their place. Raises OptionError."""
        return Sampling(**{**self._asdict(), **{name: value for name, value in options.items() if value is not None}})


DEFAULTS = Sampling()


def checkpoint_defaults(path: Path, options: Mapping[str, Any]) -> Sampling:
    """The options to use with a checkpoint where a user names none. options: those that the checkpoint names, if any.

    A checkpoint that names none has llama2.c's defaults. One that names some was tuned with the others off, as they are
    off in transformers and vLLM: so its top_p is 1 unless it says otherwise. (transformers also takes the 50 most
    likely tokens where a checkpoint gives no top_k; vLLM does not, and nor does fastllm.) Raises CheckpointError.
    """
    try:
        return Sampling(**{"top_p": 1.0, **options}) if options else DEFAULTS
    except (OptionError, TypeError) as error:
        raise CheckpointError(f"{path} has sampling options that are not possible: {error}") from None
