"""The options by which the next token is drawn, checked."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastllm.errors import OptionError


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


class Sampling(_Fields):
    """The options of a draw, in the order they take effect.

    logit_bias: token id -> number added to its logit, -inf to forbid it. repetition_penalty: of tokens in the prompt or
    the text, positive logits are divided by it and negative ones multiplied; 1 is none (Keskar et al., 2019).
    presence_penalty, frequency_penalty: subtracted from the logit of a token in the new text, once, or as often as it
    occurs there. temperature: logits are divided by it; 0 (below 1e-6) takes the most likely token. top_k: keeps the k
    most likely tokens; 0 keeps all. top_p: keeps the smallest set with more than top_p of the probability; 1 keeps all
    (Holtzman et al., 2020). min_p: keeps tokens at least min_p times as likely as the best (Nguyen et al., 2024).
    typical_p: keeps the tokens whose surprise is nearest to the expected surprise, up to that probability; 1 keeps all
    (Meister et al., 2022).

    The defaults are llama2.c's. Raises OptionError for what is out of range.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> "Sampling":
        self = super().__new__(cls, **values)
        self._check()
        return self

    def _check(self) -> None:
        self._within("temperature", 0, 1e4)
        self._within("top_p", 0, 1)
        self._within("min_p", 0, 1)
        self._within("typical_p", 0, 1)
        self._within("repetition_penalty", 1e-4, 1e4)
        self._within("presence_penalty", -1e4, 1e4)
        self._within("frequency_penalty", -1e4, 1e4)
        if not isinstance(self.top_k, int) or not 0 <= self.top_k < 1 << 31:
            raise OptionError(f"top_k must be 0 or a positive whole number, not {self.top_k!r}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or not isinstance(bias, (int, float)):
                raise OptionError(f"logit_bias must be token ids and numbers, not {token!r}: {bias!r}")
            if not (-1e9 <= bias <= 1e9 or bias == -math.inf):
                raise OptionError(f"the logit bias of token {token} must be between -1e9 and 1e9, or -inf, not {bias}")

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise OptionError(f"{name} must be between {low:g} and {high:g}, not {value!r}")


DEFAULTS = Sampling()
