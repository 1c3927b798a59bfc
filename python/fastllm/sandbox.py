"""Chat templates are programs that come with a checkpoint: Jinja, run so that none can do more than write a text.

Jinja's sandbox refuses what is not data; here every way to make much out of little is bounded too: the time, the length
of each string and list, and the methods and filters there are. Imported only where a template is run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from fastllm.errors import OptionError, TokenizerError

SECONDS = 1.0
_LONGEST = 2 << 20  # characters of a text, and values inside a list
_LONGEST_TEMPLATE = 128 << 10

_METHODS = {
    str: "strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith lower upper title "
    "capitalize replace join find rfind index count removeprefix removesuffix isdigit isalpha isalnum isspace isupper "
    "islower",
    dict: "get items keys values",
    list: "index count",
    tuple: "index count",
}
_ALLOWED = {kind: frozenset(names.split()) for kind, names in _METHODS.items()}
_FILTERS = """
    abs capitalize count d default dictsort first float int items last length list lower map max min reject rejectattr
    reverse select selectattr sort string title trim unique upper
"""
_GLOBALS = ("range", "dict", "namespace", "joiner", "cycler")


class _ExcessError(Exception):
    """What a template is stopped by."""


def render(source: str, variables: Mapping[str, object]) -> str:
    """The text that a template makes of plain data.

    Raises TokenizerError where it is broken or takes more than is allowed, OptionError where it says itself that it
    cannot take such messages (raise_exception).
    """
    if len(source) > _LONGEST_TEMPLATE:
        raise TokenizerError(f"the chat template is {len(source):,} characters long, more than {_LONGEST_TEMPLATE:,}")
    try:
        template = _Environment().from_string(source)
        with _deadline(SECONDS):
            return template.render(variables)
    except OptionError:
        raise
    except _ExcessError as error:
        raise TokenizerError(f"the chat template is refused: {error}") from None
    except RecursionError:
        raise TokenizerError("the chat template is refused: it calls itself too deeply") from None
    except Exception as error:  # whatever its code runs into
        raise TokenizerError(f"the chat template cannot be used: {str(error)[:300]}") from None


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends this thread's Python code after some time, by looking at its processor time at every line."""
    end = time.thread_time() + seconds

    def trace(frame: object, event: str, arg: object) -> Any:
        if time.thread_time() > end:
            raise _ExcessError(f"it takes longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _bounded(value: Any) -> Any:
    """The value, unless it is larger than is allowed, what is inside of it included."""
    left, inside = _LONGEST, [value]
    while inside:
        item = inside.pop()
        left -= len(item) + 1 if isinstance(item, (str, Mapping, list, tuple)) else 1
        if left < 0:
            raise _ExcessError(f"it makes a value of more than {_LONGEST:,} characters or items")
        if isinstance(item, Mapping):
            inside += item.keys()
            inside += item.values()
        elif isinstance(item, (list, tuple)):
            inside += item
    return value


def _joined(parts: Iterable[Any]) -> str:
    texts, left = [], _LONGEST
    for part in parts:
        left -= len(part)
        if left < 0:
            raise _ExcessError(f"it writes more than {_LONGEST:,} characters")
        texts.append(part)
    return "".join(texts)


def _raise(message: object) -> None:
    raise OptionError(f"the chat template refuses the messages: {str(message)[:300]}")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no HTML escapes."""
    if indent is not None and (type(indent) is not int or not 0 <= indent <= 16):
        raise _ExcessError("it indents JSON by more than 16")
    if separators is not None and max(map(len, separators)) > 16:
        raise _ExcessError("it separates JSON by more than 16 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined(encoder.iterencode(_bounded(value)))


def _indent(text: object, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if type(width) is not int or not 0 <= width <= 64:
        raise _ExcessError("it indents by more than 64")
    return filters.do_indent(str(_bounded(text)), width, first, blank)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, values: Iterable[Any], by: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = map(filters.make_attrgetter(environment, attribute), values)
    return _with_between(str(by), [str(_bounded(value)) for value in values])


def _with_between(by: str, parts: list[str]) -> str:
    if len(by) * len(parts) + sum(map(len, parts)) > _LONGEST:
        raise _ExcessError(f"it writes more than {_LONGEST:,} characters")
    return by.join(parts)


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise _ExcessError("it has a date format of more than 100 characters")
    return datetime.now().strftime(form)


def _replaced(text: object, old: object, new: object, count: int | None = None) -> str:
    text, old, new = str(_bounded(text)), str(_bounded(old)), str(_bounded(new))
    if len(text) + text.count(old) * len(new) > _LONGEST:
        raise _ExcessError(f"it makes a text of more than {_LONGEST:,} characters")
    return text.replace(old, new, -1 if count is None else count)


class _Generation(Extension):
    """{% generation %} marks what is trained on: here it is what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Lets everything that puts values together pass through the filter "bounded"."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)

    def _check(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "bounded", [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._check(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._check(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._check(node) if node.ctx == "load" else node


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_joined)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,  # constants are put together with the same bounds
            cache_size=0,
            finalize=_bounded,
        )
        self.filters = {name: _checked(self.filters[name]) for name in _FILTERS.split()}
        self.filters |= {"bounded": _bounded, "safe": _bounded, "tojson": _tojson}
        self.filters |= {"replace": _replaced, "join": _join, "indent": _indent}
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _ALLOWED.items():
            if isinstance(obj, kind) and callable(value):
                return attr in names
        return super().is_safe_attribute(obj, attr, value) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """No str.format: a field may be as wide as it says."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator in ("**", "%") and not numbers:
            raise _ExcessError(f"it uses {operator} for more than numbers")
        if numbers and operator in ("*", "**") and max(abs(left), abs(right)) > (1 << 31 if operator == "*" else 64):
            raise _ExcessError(f"it uses {operator} for large numbers")
        if operator == "*" and not numbers:
            sized, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(times, int) or not hasattr(sized, "__len__") or len(sized) * times > _LONGEST:
                raise _ExcessError(f"it repeats a value to more than {_LONGEST:,} characters or items")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            total = len(left) + len(right)
            if total > _LONGEST:
                raise _ExcessError(f"it makes a value of more than {_LONGEST:,} characters or items")
        result = super().call_binop(context, operator, left, right)
        return result if isinstance(result, (str, int, float)) else _bounded(result)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replaced(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return _with_between(owner, list(*args))
        return _checked_value(super().call(__context, __obj, *args, **kwargs))


def _checked_value(value: Any) -> Any:
    return _bounded(value) if type(value) in (str, list, tuple, dict) else value


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with bounds on what it is given and on what it gives."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if type(value) is int and abs(value) > 1 << 31:
                raise _ExcessError("it gives a filter a large number")
            _checked_value(value)
        if function.__name__ in ("do_int", "do_float") and isinstance(args[0], str) and len(args[0]) > 100:
            raise _ExcessError("it reads a number of more than 100 digits")
        return _checked_value(function(*args, **kwargs))

    if hasattr(function, "jinja_pass_arg"):
        checked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return checked
