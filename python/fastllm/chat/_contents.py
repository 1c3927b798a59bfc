"""What a field of a response template makes of the text between its delimiters: values of JSON's types.

Each parser takes the text and the field's `content_args`, and raises ValueError for a text that is none of its kind.
The kinds are those of transformers' response templates (docs/source/en/chat_response_parsing.md of that project), but
for "python-arguments", which is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

DEPTH = 100  # levels of lists and objects, as of a reply that is still sensible

_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")


def parse(kind: str, text: str, args: Mapping[str, Any]) -> Any:
    """The value of a text. Raises ValueError."""
    try:
        return PARSERS[kind](text, args)
    except RecursionError:
        raise ValueError(f"{kind}: nested too deeply") from None


def _text(text: str, args: Mapping[str, Any]) -> str:
    return text.strip() if args.get("strip", True) else text


def _bool(text: str, args: Mapping[str, Any]) -> bool:
    return _text(text, args).lower() in ("true", "1")


def _json(text: str, args: Mapping[str, Any]) -> Any:
    """JSON, or what models write for it.

    args: string_delims: pairs of what strings begin and end with instead of quotation marks; unquoted_keys: whether
    keys of objects may lack quotation marks; allow_non_json: whether a text that is none is returned as it is.
    """
    try:
        return json.loads(_as_json(text, args.get("string_delims", ()), keys=bool(args.get("unquoted_keys", False))))
    except ValueError:
        if args.get("allow_non_json"):
            return _text(text, args)
        raise


def _as_json(text: str, delims: Any, *, keys: bool) -> str:
    """The text with its own strings, and keys without quotation marks, written as JSON writes them."""
    ways = [f"(?:{re.escape(begin)}(?P<own{i}>.*?){re.escape(end)})" for i, (begin, end) in enumerate(delims)]
    if keys:
        ways += [r'"(?:\\.|[^"\\])*"', r"(?<=[{,])(?P<before>\s*)(?P<key>\w+)(?P<after>\s*):"]
    if not ways:
        return text

    def written(found: re.Match[str]) -> str:
        groups = found.groupdict()
        if groups.get("key") is not None:
            return f'{groups["before"]}"{groups["key"]}"{groups["after"]}:'
        own = next((value for name, value in groups.items() if name.startswith("own") and value is not None), None)
        return found[0] if own is None else json.dumps(own)

    return re.sub("|".join(ways), written, text, flags=re.DOTALL)


def _valued(text: str, args: Mapping[str, Any]) -> Any:
    """A value inside of another one, by the args' own "value_parser"."""
    parser = args.get("value_parser")
    return text if parser is None else parse(parser.get("name", "text"), text, parser.get("args", {}))


def _xml(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the tags in a text.

    args: tag_pattern, a Pattern with the groups "key" and "value"; merge_duplicates: whether the values of a tag that
    comes again become a list, else the last one counts.
    """
    out: dict[str, Any] = {}
    lists: set[str] = set()
    for found in args["tag_pattern"].finditer(text):
        groups = found.groupdict()
        key, value = groups["key"], _valued(groups.get("value") or "", args)
        if key in out and args.get("merge_duplicates"):
            if key not in lists:
                lists.add(key)
                out[key] = [out[key]]
            out[key].append(value)
        else:
            out[key] = value
    return out


def _lines(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """An object of lines "key: value". args: line_sep, kv_sep, strip, value_parser."""
    out = {}
    for line in text.split(args.get("line_sep", "\n")):
        key, found, value = _text(line, args).partition(args.get("kv_sep", ":"))
        if found:
            out[_text(key, args)] = _valued(_text(value, args), args)
    return out


# ---- calls as Python writes them -------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[-.][A-Za-z0-9_]+)*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_STRING = re.compile(r"""(?s:'((?:[^'\\\n\r]|\\.)*)'|"((?:[^"\\\n\r]|\\.)*)")""")
_ESCAPED = re.compile(r"(?s)\\(?:u([0-9a-fA-F]{4})(?:(?<=u[dD][89abAB]..)\\u([dD][c-fC-F][0-9a-fA-F]{2}))?|(.))")
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_LARGEST = 2**53 - 1  # what every reader of JSON takes for the whole number that it is


class _Calls:
    """Reads calls with arguments by name, and the values in them, from a text. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def refuse(self, what: str) -> ValueError:
        return ValueError(f"{what} at character {self.at} of a list of calls")

    def sees(self, character: str) -> bool:
        found = _SPACE.match(self.text, self.at)
        self.at = self.at if found is None else found.end()
        return self.text.startswith(character, self.at)

    def expect(self, character: str) -> None:
        if not self.sees(character):
            raise self.refuse(f"no {character!r}")
        self.at += 1

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        self.sees("")
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.refuse(f"no {what}")
        self.at = found.end()
        return found

    def listed(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Items with commas between, up to `end`."""
        items: list[Any] = []
        while not self.sees(end):
            if items:
                self.expect(",")
            items.append(item())
        self.at += 1
        return items

    def named(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise self.refuse("a name that comes twice")
        return dict(pairs)

    def calls(self) -> list[dict[str, Any]]:
        self.expect("[")
        found = self.listed("]", self.call)
        self.finish()
        return found

    def finish(self) -> None:
        self.sees("")
        if self.at < len(self.text):
            raise self.refuse("something")

    def call(self) -> dict[str, Any]:
        name = self.take(_NAME, "name of a function")[0]
        self.expect("(")
        return {"name": name, "arguments": self.arguments(")")}

    def arguments(self, end: str) -> dict[str, Any]:
        return self.named(self.listed(end, self.argument))

    def argument(self) -> tuple[str, Any]:
        name = self.take(_NAME, "name of an argument")[0]
        self.expect("=")
        return name, self.value(0)

    def value(self, depth: int) -> Any:
        """depth: how many lists and objects are around it."""
        if self.sees("'") or self.sees('"'):
            return self.string()
        if self.sees("[") or self.sees("{"):
            if depth >= DEPTH:
                raise self.refuse("a list too deep")
            self.at += 1
            if self.text[self.at - 1] == "[":
                return self.listed("]", lambda: self.value(depth + 1))
            return self.named(self.listed("}", lambda: self.pair(depth + 1)))
        if found := _NUMBER.match(self.text, self.at):
            whole = found[1] is None and found[2] is None
            number = float(found[0])
            if abs(number) > _LARGEST if whole else number in (float("inf"), float("-inf")):
                raise self.refuse("too large a number")
            self.at = found.end()
            return int(found[0]) if whole else number
        name = self.take(_NAME, "value")[0]
        if name not in _CONSTANTS:
            raise self.refuse("no value")
        return _CONSTANTS[name]

    def pair(self, depth: int) -> tuple[str, Any]:
        if not (self.sees("'") or self.sees('"')):
            raise self.refuse("no string")
        key = self.string()
        self.expect(":")
        return key, self.value(depth)

    def string(self) -> str:
        found = self.take(_STRING, "string")
        text = _ESCAPED.sub(self.escaped, found[1] if found[1] is not None else found[2])
        if re.search("[\ud800-\udfff]", text):
            raise self.refuse("half a surrogate pair")
        return text

    def escaped(self, found: re.Match[str]) -> str:
        if found[1] is None:
            if found[3] not in _ESCAPES:
                raise self.refuse("an unknown escape")
            return _ESCAPES[found[3]]
        units = int(found[1], 16).to_bytes(2, "big") + (int(found[2], 16).to_bytes(2, "big") if found[2] else b"")
        return units.decode("utf-16-be", "surrogatepass")


def _call_list(text: str, args: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[f(a=1), g()] as [{"name": "f", "arguments": {"a": 1}}, ...]."""
    return _Calls(text).calls()


def _arguments(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """a=1, b='x'): the arguments of one call, after its opening parenthesis; further closing ones may follow."""
    reader = _Calls(text.rstrip())
    found = reader.arguments(")")
    while reader.sees(")"):
        reader.at += 1
    reader.finish()
    return found


PARSERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "text": _text,
    "int": lambda text, args: int(_text(text, args)),
    "float": lambda text, args: float(_text(text, args)),
    "bool": _bool,
    "json": _json,
    "xml-inline": _xml,
    "kv-lines": _lines,
    "python-call-list": _call_list,
    "python-arguments": _arguments,
}


# ---- transforms ------------------------------------------------------------------------------------------------------


def is_placeholder(text: str) -> bool:
    """Whether a text is a placeholder, "{name}" or "{name.key}". Raises ValueError where it only has one in it."""
    if _PLACEHOLDER.search(text) and not _PLACEHOLDER.fullmatch(text):
        raise ValueError(f"the text {text!r} has a placeholder in it, but must be one, or have none")
    return _PLACEHOLDER.fullmatch(text) is not None


def transformed(transform: Any, scope: Mapping[str, Any]) -> Any:
    """A copy of plain data with each placeholder replaced by its value in `scope`. Raises ValueError if it has none."""
    if isinstance(transform, dict):
        return {key: transformed(value, scope) for key, value in transform.items()}
    if isinstance(transform, list):
        return [transformed(value, scope) for value in transform]
    if not isinstance(transform, str) or not is_placeholder(transform):
        return transform
    value: Any = scope
    for key in transform[1:-1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"there is no {transform}")
        value = value[key]
    return value
