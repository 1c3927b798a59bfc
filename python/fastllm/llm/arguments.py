"""What callers pass, made into plain values: whole numbers, token ids, one prompt or several.

numpy's numbers and arrays count like Python's; numpy itself is not needed. Each error names the argument as the caller
wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from os import PathLike
from typing import Any

from fastllm.decoding import is_list
from fastllm.errors import OptionError, about

_CUT = 60  # characters of a value that an error shows


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int from `low` to `high`. Raises OptionError for anything else, also for True and 6.0."""
    between = f"{low} or more" if high is None else f"between {low} and {high:,}"
    try:
        number = low - 1 if isinstance(value, bool) else index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, {between}, not {_shown(value)}") from None
    if number < low or (high is not None and number > high):
        raise OptionError(f"{name} must be {between}, not {_shown(value)}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False, numpy's too. Raises OptionError for anything else."""
    if value is True or value is False:
        return value
    if type(value).__name__ in ("bool_", "bool") and getattr(value, "ndim", 1) == 0:
        return bool(value)
    raise OptionError(f"{name} must be True or False, not {_shown(value)}")


def flags(**given: Any) -> None:
    """Raises OptionError unless all arguments, by their names, are True or False."""
    for name, value in given.items():
        flag(name, value)


def several(function: str, name: str, values: Any) -> list[Any]:
    """The items of the argument `name`, which is any iterable but one text. Raises OptionError for anything else."""
    if not is_list(values):
        one = f"not one {name.removesuffix('s')}" if isinstance(values, str) else f"not {_hint(values)}"
        raise OptionError(f"{function} takes a list of {name}, {one}")
    return list(values)


def seeds(seed: Any, count: int, *, alone: bool) -> list[int | None]:
    """A seed for each of `count` prompts: of one number (or None) for all, or of a list or array with one for each.

    alone: whether the caller gave one prompt, so that a list makes no sense.
    """
    if (tolist := getattr(seed, "tolist", None)) is not None:
        seed = tolist()
    if not isinstance(seed, (list, tuple, range)):
        return [None if seed is None else whole("seed", seed, 0, (1 << 64) - 1)] * count
    if alone:
        raise OptionError(f"seed is {_shown(seed)}, though there is one prompt: it must be one number")
    if len(seed) != count:
        raise OptionError(f"seed has {len(seed)} numbers for {count} prompts: it must be one number, or one for each")
    return [None if s is None else whole(f"seed[{i}]", s, 0, (1 << 64) - 1) for i, s in enumerate(seed)]


def token_ids(ids: Any, what: str) -> list[int]:
    """The token ids in a list, tuple, one-dimensional array or another iterable of whole numbers.

    Raises OptionError for anything else; what: the argument that `ids` is, for the message.
    """
    if (tolist := getattr(ids, "tolist", None)) is not None:  # of numpy, torch, array
        ids = tolist()
    if isinstance(ids, (str, bytes, bytearray, Mapping)) or not isinstance(ids, Iterable):
        raise OptionError(f"{what} is neither a text nor token ids: {_hint(ids)}")
    found = list(ids)
    if set(map(type, found)) <= {int}:
        return found
    for i, item in enumerate(found):
        try:
            found[i] = index(item)
        except TypeError:
            found[i] = None
        if found[i] is None or isinstance(item, bool):
            raise OptionError(f"{what} is neither a text nor token ids: item {i} is {_hint(item)}") from None
    return found


def prompts_in(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts in the argument `prompt`, each a text or token ids, and whether it is a single one.

    A text is one prompt, and so is a list, tuple, range or array of ids. Any other iterable is a list of prompts, if it
    begins with something else than a number; an empty list holds no prompt. Raises OptionError for what is neither.
    """
    if (tolist := getattr(prompt, "tolist", None)) is not None:  # an array of ids, or of texts
        prompt = items if isinstance(items := tolist(), list) and items and isinstance(items[0], str) else [prompt]
        return prompt, items is not prompt
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, (bytes, bytearray, Mapping)) or not isinstance(prompt, Iterable):
        raise OptionError(f"prompt is neither a text, nor token ids, nor a list of these: {_hint(prompt)}")
    several = list(prompt)
    if several and _is_number(several[0]):
        return [several], True
    for i, one in enumerate(several):
        with about(i):
            if not isinstance(one, (str, Iterable)) or isinstance(one, (bytes, bytearray, Mapping)):
                raise OptionError(f"prompt {i} is neither a text nor token ids: {_hint(one)}")
    return several, False


def _is_number(value: Any) -> bool:
    """Whether it is one number of any kind, numpy's and torch's too, whose arrays have the same methods."""
    return getattr(value, "ndim", 0) == 0 and (hasattr(value, "__index__") or hasattr(value, "__float__"))


def _hint(value: Any) -> str:
    """A value as an error shows it, and what a caller who passed it may have meant."""
    shown = _shown(value)
    if isinstance(value, (bytes, bytearray)):
        return f"{shown} is bytes, which decode() makes a text"
    if isinstance(value, PathLike):
        return f"{shown} is a path; pass the text that the file holds"
    if isinstance(value, Mapping):
        return f"{shown}; the messages of a conversation go to chat or apply_chat_template"
    if isinstance(value, str) and value.strip().isdigit():
        return f"the string {shown}, which int() makes a token id"
    if isinstance(value, list):
        return f"{shown}; ids have one dimension, and list() makes rows several prompts"
    return shown


def _shown(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= _CUT else f"{shown[: _CUT - 3]}..."
