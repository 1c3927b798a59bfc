"""Runs chat templates, which are programs that come with a checkpoint, so that they can do nothing but write a text.

The language is what transformers offers templates: Jinja's immutable sandbox, which keeps code away from anything but
plain data, with all of Jinja's filters. On top of that, time and memory are bounded: seconds of processor time, the
length of each string and list, and the bytes of all of them together. The size of a call's result is estimated before
the call (_sizes.py). This module imports jinja2, so it is imported only when a template is run.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import reduce
from typing import Any

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from fastllm.chat._sizes import FILTERS, LONGEST, METHODS, ExcessError, check, percent, remembering, size
from fastllm.errors import OptionError, TokenizerError

SECONDS = 1.0  # of processor time for one rendering
_LONGEST_TEMPLATE = 128 << 10  # characters
_MOST_BYTES = 256 << 20  # of all strings and lists that one rendering makes, since it may keep them all


def render(source: str, variables: Mapping[str, object]) -> str:
    """The text that a template writes for plain data.

    Raises TokenizerError for a template that is broken or exceeds a bound, OptionError where the template itself
    refuses the messages (it calls raise_exception).
    """
    if len(source) > _LONGEST_TEMPLATE:
        raise TokenizerError(f"the chat template is {len(source):,} characters long, more than {_LONGEST_TEMPLATE:,}")
    try:
        template = _Environment().from_string(source)
        with _deadline(SECONDS), remembering(variables):
            return template.render(variables)
    except OptionError:
        raise
    except ExcessError as error:
        raise TokenizerError(f"the chat template is refused: {error}") from None
    except RecursionError:
        raise TokenizerError("the chat template is refused: it calls itself too deeply") from None
    except Exception as error:  # a template's code may raise anything
        raise TokenizerError(f"the chat template cannot be used: {_line(error)}") from None


def _line(message: object) -> str:
    return " ".join(str(message)[:300].split())


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises ExcessError in this thread after so many seconds of its processor time, checked at each line it runs."""
    end = time.thread_time() + seconds

    def trace(frame: object, event: str, arg: object) -> Any:
        if time.thread_time() > end:
            raise ExcessError(f"it takes longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# ---- what transformers adds to Jinja, or has instead -----------------------------------------------------------------


def _raise(message: object) -> None:
    raise OptionError(f"the chat template refuses the messages: {_line(message)}")


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise ExcessError("it has a date format of more than 100 characters")
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates expect it: without Jinja's HTML escapes."""
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16 or max(map(len, separators or ("",))) > 16:
        raise ExcessError("it indents or separates JSON by more than 16 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined(encoder.iterencode(value))


class _Dict:
    """Stands for `dict` in templates: callable as a function, without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # *args, so that a variable may be named self
        Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ExcessError(f"it has a namespace with the name {name[:40]!r}, which begins with an underscore")


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks text to train on. Here it only writes it, in its own scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("inside"), [], [], body).set_lineno(line)

    def inside(self, caller: Callable[[], str]) -> str:
        return caller()


# ---- bounds ----------------------------------------------------------------------------------------------------------


def _joined(parts: Iterable[Any]) -> str:
    texts, left = [], LONGEST
    for part in parts:
        left -= len(part)
        if left < 0:
            raise ExcessError(f"it writes more than {LONGEST:,} characters")
        texts.append(part)
    return "".join(texts)


class _Bounds(NodeTransformer):
    """Rewrites a template: each concatenation, list, dict and tuple goes through a filter that checks its size."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "concatenated", [], [], None, None, lineno=node.lineno)

    def _check(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "bounded", [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._check(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._check(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._check(node) if node.ctx == "load" else node


class _Formatting(SandboxedFormatter):
    """str.format with bounds on the width of a field, and on the length of all fields together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left = LONGEST

    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search("[0-9]{5}", format_spec):
            raise ExcessError("it formats a field to more than 9,999 characters")
        size(value)
        text = super().format_field(value, format_spec)
        self._left -= len(text)
        check("str.format", LONGEST - self._left)
        return text


class _EscapeFormatting(_Formatting, SandboxedEscapeFormatter):
    """The same for Markup.format."""


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, values: Iterable[Any], d: object = "", attribute: str | None = None) -> str:
    values = list(values)
    check("join", len(str(d)) * len(values) + size(values))
    joined: str = filters.do_join(context, values, d, attribute)
    return joined


@jinja2.pass_environment
def _sum(environment: _Environment, values: Iterable[Any], attribute: str | None = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum cannot add texts")
    if attribute is not None:
        values = map(filters.make_attrgetter(environment, attribute), values)
    return reduce(environment.add, values, start)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,  # else Jinja would compute constant expressions without our bounds
            cache_size=0,
            finalize=self._written,
        )
        self._left = _MOST_BYTES
        self.filters |= {"tojson": _tojson, "join": _join, "sum": _sum}
        self.filters |= {"bounded": lambda value: value, "concatenated": str_join}
        self.filters = {name: self._checked(name, function) for name, function in self.filters.items()}
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def concat(self, parts: Iterable[str]) -> str:
        text: str = self._kept(_joined(parts))
        return text

    def _written(self, value: Any) -> Any:
        size(value)
        return value

    def _kept(self, value: Any) -> Any:
        """Counts a new value's bytes, for as long as the template runs, since the template may keep it."""
        size(value)
        if isinstance(value, (str, list, tuple, dict)):
            self._left -= sys.getsizeof(value)
            if self._left < 0:
                raise ExcessError(f"it makes more than {_MOST_BYTES:,} bytes of text and lists")
        return value

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks the sizes of its arguments and its result."""
        skipped = (
            1 if hasattr(function, "jinja_pass_arg") else 0
        )  # the first argument is an environment or a context, not a value
        estimate = FILTERS.get(name)

        def checked(*args: Any, **kwargs: Any) -> Any:
            size((*args[skipped:], *kwargs.values()))
            if estimate is not None:
                check(name, estimate(*args[skipped:], **kwargs))
            return self._kept(function(*args, **kwargs))

        if skipped:
            checked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return checked

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A bounded str.format or format_map where `value` is one of these: a field may ask for any width."""
        if super().wrap_str_format(value) is None:
            return None
        text, mapped = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if mapped:
                (kwargs,), args = args, ()
            formatter = _EscapeFormatting(self, escape=text.escape) if isinstance(text, Markup) else _Formatting(self)
            made: str = type(text)(formatter.vformat(text, args, kwargs))
            return made

        return formatted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            check("%", percent(left, right))
        elif operator == "*" and numbers:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and numbers:
            _check_bits(left.bit_length() * abs(right))
        elif operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
            sized, times = (right, left) if isinstance(left, int) else (left, right)
            check("*", len(sized) * times if isinstance(times, int) else 0)
        elif operator == "+":
            return self.add(left, right)
        return self._kept(super().call_binop(context, operator, left, right))

    def add(self, left: Any, right: Any) -> Any:
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            check("+", len(left) + len(right))
        return self._kept(left + right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        owner = getattr(__obj, "__self__", None)
        if owner is not None:
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
        size((*args, *given.values()))
        if owner is not None:
            _check_method(owner, getattr(__obj, "__name__", ""), args, given)
        return __self._kept(super().call(__context, __obj, *args, **kwargs))


def _check_bits(count: int) -> None:
    if count > 4096:
        raise ExcessError("it makes a number of more than 4,096 bits")


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if type(owner).__module__.partition(".")[0] in ("jinja2", "fastllm"):
        return  # loop.cycle and the like
    methods = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), {})
    if name not in methods:
        kind = owner if isinstance(owner, type) else type(owner)
        raise ExcessError(f"it calls {kind.__name__}.{name}, which is none of the methods that a template may call")
    estimate = methods[name]
    if estimate is not None:
        check(f"{type(owner).__name__}.{name}", estimate(owner, *args, **kwargs))
