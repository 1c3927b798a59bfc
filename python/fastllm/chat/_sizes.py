"""Estimates how large the result of a chat template's operation would be, before it is computed.

An operation that is not listed here returns about as much as it is given. A size counts characters, items and digits,
and counts content as often as it occurs: a list that holds another list twice is as large as its written form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

LONGEST = 2 << 20  # characters of a text, and values inside a list
_VIEWS = (KeysView, ValuesView, ItemsView)
# %(name)-0*.*f: name, width and precision
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


class ExcessError(Exception):
    """A template exceeds a bound; the message says which."""


def check(what: str, amount: float) -> None:
    """Raises ExcessError where an operation would make more than LONGEST characters or items."""
    if not amount <= LONGEST:
        raise ExcessError(f"its {what} would make more than {LONGEST:,} characters or items, or take as long")


class _Known(dict[int, tuple[object, int]]):
    """A cache of sizes: id of a list or dict -> that object, kept so that the id is not reused, and its size.

    Templates look at the same messages again and again. Lists and dicts cannot change while a template runs; namespaces
    can, so their sizes are not kept.
    """

    most = 0  # entries it may have


_known: ContextVar[_Known] = ContextVar("known")


@contextmanager
def remembering(variables: Mapping[str, object]) -> Iterator[None]:
    """Within the block, sizes of the template's variables are measured once, and those of 64 values that it makes."""
    known = _Known()
    known.most = LONGEST
    token = _known.set(known)

    def measure(value: Any) -> None:
        if isinstance(value, (dict, list, tuple)):
            for item in value.values() if isinstance(value, dict) else value:
                measure(item)
            size(value)

    try:
        measure(variables)
        known.most = len(known) + 64
        yield
    finally:
        _known.reset(token)


def size(value: Any) -> int:
    """The size of a value with all that is in it. Raises ExcessError for more than LONGEST."""
    known = _known.get(_Known())
    total, fixed = 0, isinstance(value, (dict, list, tuple))
    inside: list[Any] = [value]
    while inside:
        item = inside.pop()
        if (found := known.get(id(item))) is not None:
            total += found[1]
            continue
        if isinstance(item, Namespace):
            item, fixed = item._Namespace__attrs, False
        if isinstance(item, Mapping):
            inside += item.keys()
            inside += item.values()
        elif isinstance(item, (list, tuple, *_VIEWS)):
            inside += item
        elif isinstance(item, int):
            total += item.bit_length() // 3
        elif isinstance(item, str):
            total += len(item)
        total += 1
        if total + len(inside) > LONGEST:
            break
    if total + len(inside) > LONGEST:
        raise ExcessError(f"it makes a value of more than {LONGEST:,} characters or items")
    if fixed and known.most and id(value) not in known:
        if len(known) >= known.most:
            known.popitem()  # drops the newest
        known[id(value)] = value, total
    return total


def percent(text: str, values: Any) -> int:
    """An upper bound of the length of text % values."""
    conversions = _CONVERSION.findall(text)
    given = values if isinstance(values, tuple) else values.values() if isinstance(values, Mapping) else (values,)
    sizes = [size(value) for value in given]
    widths = [width for conversion in conversions for width in conversion if width]
    most = max((abs(value) for value in given if isinstance(value, int)), default=0)  # `*` takes its width from a value
    # Positional values are written once each; named ones may be written by every conversion.
    written = len(conversions) * max(sizes, default=0) if isinstance(values, Mapping) else sum(sizes)
    return len(text) + written + sum(most if width == "*" else _number(width) for width in widths)


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 10 else LONGEST


def _width(_: Any, width: int = 80, *__: Any, **___: Any) -> int:
    return abs(width)


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    text, found = str(text), str(text).count(str(old))
    return len(text) + (found if count is None or count < 0 else min(found, count)) * len(str(new))


def _translated(text: str, table: Any) -> int:
    values = table.values() if isinstance(table, Mapping) else table
    return len(text) * max((len(value) for value in values if isinstance(value, str)), default=1)


def _indented(text: Any, width: int | str = 4, *_: Any, **__: Any) -> int:
    return (len(str(text).splitlines()) + 1) * (len(width) if isinstance(width, str) else abs(width))


def _wrapped(text: str, width: int = 79, words: bool = True, wrapstring: str | None = None, *_: Any, **__: Any) -> int:
    return _slow(text) * (1 + len(wrapstring or ""))


def _slow(text: Any, *_: Any, **__: Any) -> int:
    """For operations whose time grows with the square of the text's length."""
    return len(str(text)) * 128


def _number_size(value: Any, *_: Any, **__: Any) -> int:
    """For operations that parse a number: texts of up to 100 digits pass."""
    return len(value) * (LONGEST // 100) if isinstance(value, str) else 0


def _named(names: str) -> dict[str, Callable[..., int] | None]:
    return dict.fromkeys(names.split())


# Kind of value -> the methods that a template may call, with an estimate of the result's size; None: about that of the
# arguments. Left out on purpose: encode, since some codecs take very long, and whatever makes bytes.
METHODS: dict[Any, dict[str, Callable[..., int] | None]] = {
    str: _named(
        "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
        "isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title unescape upper"
    )
    | {
        "center": _width,
        "expandtabs": lambda text, tabsize=8: text.count("\t") * abs(tabsize),
        "join": lambda text, parts: len(text) * len(parts) + size(parts),
        "ljust": _width,
        "replace": _replaced,
        "rjust": _width,
        "striptags": _slow,
        "translate": _translated,
        "zfill": _width,
    },
    dict: _named("copy get items keys values"),
    list: _named("copy count index"),
    tuple: _named("count index"),
    range: _named("count index"),
    int: _named("as_integer_ratio bit_count bit_length conjugate is_integer"),
    float: _named("as_integer_ratio conjugate hex is_integer"),
    _VIEWS: _named("isdisjoint"),
}

FILTERS: dict[str, Callable[..., int]] = {
    "batch": _width,
    "center": _width,
    "float": _number_size,
    "format": lambda text, *args, **kwargs: percent(str(text), kwargs or args),
    "indent": _indented,
    "int": _number_size,
    "replace": _replaced,
    "round": lambda _, precision=0, *__, **___: abs(precision) * 4096,
    "slice": _width,
    "striptags": _slow,
    "urlize": _slow,
    "wordcount": _slow,
    "wordwrap": _wrapped,
}
