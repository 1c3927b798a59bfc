"""What `convert` is asked to prune: a method with its amount, a number of layers to drop."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastllm.errors import OptionError

METHODS = ("magnitude", "threshold", "wanda", "sparsegpt")
_LEARNING = ("wanda", "sparsegpt")  # they look at the inputs of matrices, and so need a text


class Method(NamedTuple):
    """A method and its amount.

    share: of the weights that become zero; None for threshold. threshold: below which a weight does. of_four: 2 of each
    4 neighbours of a row become zero, the form that GPUs multiply faster (Mishra et al., 2021,
    https://arxiv.org/abs/2104.08378); share is then 0.5.
    """

    name: str
    share: float | None
    threshold: float = 0.0
    of_four: bool = False

    def __str__(self) -> str:
        amount = self.threshold if self.share is None else "2of4" if self.of_four else self.share
        return f"{self.name}:{amount}"

    @property
    def learns(self) -> bool:
        """Whether it needs a text."""
        return self.name in _LEARNING


def parse(prune: str) -> Method:
    """The method of a text such as magnitude:0.5, threshold:0.1 or wanda:2of4. Raises OptionError."""
    name, colon, amount = prune.partition(":") if isinstance(prune, str) else ("", "", "")
    if name not in METHODS or not colon:
        raise OptionError(
            f"prune must be one of {', '.join(METHODS)} with an amount, such as magnitude:0.5, not {prune!r}"
        )
    if amount == "2of4" and name != "threshold":
        return Method(name, 0.5, of_four=True)
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if name == "threshold":
        if not (math.isfinite(number) and number >= 0):
            raise OptionError(f"prune threshold:T takes a number of at least 0, not {amount!r}")
        return Method(name, None, number)
    if not 0 <= number <= 1:
        raise OptionError(f"prune {name}:SHARE takes a share between 0 and 1, or 2of4, not {amount!r}")
    return Method(name, number)


def check(method: Method | None, drop_layers: int | None, *, text: bool) -> None:
    """Raises OptionError for a number that is none of layers, and where a text is needed and there is none."""
    if drop_layers is not None and (type(drop_layers) is not int or drop_layers < 1):
        raise OptionError(f"drop_layers must be a whole number of at least 1, not {drop_layers!r}")
    if not text and method is not None and method.learns:
        raise OptionError(f"prune {method.name} looks at what a text does to the model: not without calibrate")
    if not text and drop_layers is not None:
        raise OptionError("drop_layers looks at what a text does to the model: not without calibrate")
