"""What callers give as sampling options, made into plain values: numbers, token ids, words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from fastllm.errors import OptionError

_MOST = 1 << 31  # token ids and counts are below it


def number(value: Any, name: str, low: float, high: float) -> float:
    found = as_float(value)
    if found is None or not low <= found <= high:
        raise OptionError(f"{name} must be a number between {low:g} and {high:g}, not {shown(value)}")
    return found


def whole(value: Any, name: str, low: int) -> int:
    if not is_whole(value) or not low <= value < _MOST:
        raise OptionError(f"{name} must be a whole number from {low} to 2^31 - 1, not {shown(value)}")
    return int(value)


def top_k(value: Any) -> int:
    if not is_whole(value) or not -1 <= value < _MOST:
        raise OptionError(f"top_k must be a whole number from 1 to 2^31 - 1, or 0 or -1 for all, not {shown(value)}")
    return max(int(value), 0)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Token ids of a list of them, of one id, or of None. Raises OptionError for anything else."""
    if (tolist := getattr(value, "tolist", None)) is not None:
        value = tolist()
    given = () if value is None else (value,) if is_whole(value) else value
    if not is_list(given):
        raise OptionError(f"{name} must be token ids, not {shown(value)}")
    found = tuple(given)
    for one in found:
        if not is_whole(one) or not 0 <= one < _MOST:
            raise OptionError(f"{name} has {shown(one)}, which is no token id")
    return tuple(map(int, found))


def is_list(value: Any) -> bool:
    """Whether it has items: not a text, nor a dict, nor an array of no dimension, which numpy's scalars are."""
    return (
        isinstance(value, Iterable)
        and not isinstance(value, (str, bytes, bytearray, Mapping))
        and getattr(value, "ndim", 1) != 0
    )


def phrase(value: Any, name: str) -> str | tuple[int, ...]:
    """A text, or the ids of one or more tokens. Raises OptionError for anything else, and for none."""
    if isinstance(value, str):
        found: str | tuple[int, ...] = str(value)
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise OptionError(f"{name} has {shown(value)}, in which there is half a surrogate pair")
    elif not (is_list(value) or is_whole(value)):
        raise OptionError(f"{name} has {shown(value)}, which is neither a text nor token ids")
    else:
        found = token_ids(value, name)
    if not found:
        raise OptionError(f"{name} has {shown(value)}, in which there is no token")
    return found


def phrases(value: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    """Texts and lists of ids, or one text, as a tuple. Raises OptionError for anything else."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not is_list(value):
        raise OptionError(f"{name} must be a list of texts or of lists of token ids, not {shown(value)}")
    return tuple(phrase(one, name) for one in value)


def forced(value: Any) -> tuple[tuple[str | tuple[int, ...], ...], ...]:
    """force_words: for each phrase its alternatives. Raises OptionError for anything else than a list of phrases."""
    if value is None:
        return ()
    if not is_list(value):
        raise OptionError(f"force_words must be a list of texts, or of lists of texts or token ids, not {shown(value)}")
    found = list[tuple[str | tuple[int, ...], ...]]()
    for one in value:
        many = list(one) if is_list(one) else [one]
        if isinstance(one, str) or (many and all(map(is_whole, many))):  # a text, or the ids of one phrase
            found.append((phrase(one, "force_words"),))
        elif not many:
            raise OptionError("force_words has an empty list, in which there is no phrase")
        else:
            found.append(phrases(many, "force_words"))
    return tuple(found)


def bias(value: Any, name: str, of: str) -> float:
    """What is added to a logit: finite, or -infinity. of: what has it, for the error."""
    found = as_float(value)
    if found is None or not (-1e9 <= found <= 1e9 or found == -math.inf):
        raise OptionError(f"{name} of {of} must be a number between -1e9 and 1e9, or -inf, not {shown(value)}")
    return found


def logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias must be a dict of token ids and numbers, not {shown(value)}")
    biases: dict[int, float] = {}
    for key, given in value.items():
        if not is_whole(key) and not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20):
            raise OptionError(f"logit_bias has {shown(key)}, which is no token id")
        token = int(key)
        if token in biases:
            raise OptionError(f"logit_bias has token {token} twice")
        biases[token] = bias(given, "logit_bias", f"token {token}")
    return biases


def sequence_bias(value: Any) -> dict[str | tuple[int, ...], float]:
    """Biases of phrases from a dict, or as in JSON from a list of pairs. Raises OptionError for anything else."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if not is_list(pairs):
        raise OptionError(
            f"sequence_bias must be a dict of texts or tuples of token ids and numbers, not {shown(value)}"
        )
    found: dict[str | tuple[int, ...], float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise OptionError(f"sequence_bias has {shown(pair)} in place of a phrase and a number")
        key = phrase(pair[0], "sequence_bias")
        if key in found:
            raise OptionError(f"sequence_bias has {shown(key)} twice")
        found[key] = bias(pair[1], "sequence_bias", shown(key))
    return found


def decay(value: Any) -> tuple[int, float] | None:
    """exponential_decay_length_penalty: a start and a factor."""
    name = "exponential_decay_length_penalty"
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(f"{name} must be a start and a factor, such as (100, 1.1), not {shown(value)}")
    return whole(value[0], f"the start of {name}", 0), number(value[1], f"the factor of {name}", 1e-4, 1e4)


def order(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """sampler_order: names of `known` and for llama.cpp's sake typ_p, and before them what always comes first."""
    names = value.replace(",", ";").split(";") if isinstance(value, str) else value
    if not is_list(names):
        raise OptionError(f"sampler_order must be a list of names, not {shown(value)}")
    found: list[str] = []
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"sampler_order has {shown(name)}: it takes {', '.join(known)}")
        own = "typical_p" if name == "typ_p" else name
        if own in ("penalties", "dry") and not found:
            continue
        if own in ("penalties", "dry"):
            raise OptionError(f"sampler_order has {own} after {found[-1]}: penalties come before all that it orders")
        if own not in known:
            raise OptionError(f"sampler_order has {shown(name)}: it takes {', '.join(known)}")
        if own in found:
            raise OptionError(f"sampler_order has {own} twice")
        found.append(own)
    return tuple(found)


def as_float(value: Any) -> float | None:
    """A number, numpy's too, as a float; None for anything else. True and False are no numbers."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:  # an int beyond all floats
        return None


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown(value: Any) -> str:
    return " ".join(repr(value).split())[:80]
