"""Options of what is more than a draw from a model's logits: contrastive search, DoLa, guidance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastllm.decoding import _checks as checks
from fastllm.errors import OptionError


class _Fields(NamedTuple):
    penalty_alpha: float = 0.0
    dola_layers: str | tuple[int, ...] | None = None
    guidance_scale: float = 1.0
    negative_prompt: Any = None


class SearchOptions(_Fields):
    """How the next token is chosen, if not by a draw from the logits alone. One of three goes with a text.

    penalty_alpha: contrastive search (Su et al., 2022): of the top_k likeliest tokens the one of largest
    (1 - penalty_alpha) p - penalty_alpha s, s being the largest cosine of its hidden state and an earlier one; 0 is
    off. dola_layers: DoLa (Chuang et al., 2023): draws from the difference between the model's prediction and that of
    an earlier layer, of these the one that differs most: "low" or "high", half of the layers, or a list, where 0 is the
    embedding. guidance_scale: classifier-free guidance (Sanchez et al., 2023): draws from scale (ln p - ln q) + ln q,
    where q is the prediction after negative_prompt, a text or ids, in place of the prompt, or where there is none after
    the prompt's last token alone; 1 is off.

    Raises OptionError for what is impossible.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> SearchOptions:
        given = super().__new__(cls, **values)._asdict()
        given["penalty_alpha"] = checks.number(given["penalty_alpha"], "penalty_alpha", 0, 1)
        given["guidance_scale"] = checks.number(given["guidance_scale"], "guidance_scale", -1e4, 1e4)
        given["dola_layers"] = _layers(given["dola_layers"])
        if given["negative_prompt"] is not None and "guidance_scale" not in values:
            raise OptionError("negative_prompt needs guidance_scale, such as 1.5")
        on = [name for name in SEARCHES if given[name] != cls._field_defaults[name]]
        if len(on) > 1:
            raise OptionError(f"{on[0]} does not go with {on[1]}: a text is searched in one way")
        return super().__new__(cls, **given)

    @property
    def name(self) -> str | None:
        """The option that is on; None: all are off."""
        return next((name for name in SEARCHES if getattr(self, name) != self._field_defaults[name]), None)


SEARCHES = ("penalty_alpha", "dola_layers", "guidance_scale")


def _layers(value: Any) -> str | tuple[int, ...] | None:
    if value is None or (isinstance(value, str) and value in ("low", "high")):
        return value
    if (tolist := getattr(value, "tolist", None)) is not None:
        value = tolist()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise OptionError(f'dola_layers must be "low", "high" or a list of layers, not {checks.shown(value)}')
    found = tuple(value)
    if not found:
        raise OptionError("dola_layers is an empty list: it needs a layer")
    for layer in found:
        if not checks.is_whole(layer) or not 0 <= layer < 1 << 31:
            raise OptionError(f"dola_layers has {checks.shown(layer)}, which is no layer")
    return tuple(map(int, found))
