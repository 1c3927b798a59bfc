"""Reads the part of YAML 1.1 (https://yaml.org/spec/1.1/) in which configs are written; refuses all else.

Read: mappings and sequences in blocks or in brackets, scalars of one line, plain or quoted, comments, anchors, aliases.
Refused: tags, scalars of several lines (| and >), merges (<<), complex keys, dates, numbers to base 60, tabs, a second
document. Values are those of PyYAML's safe_load.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_MOST_DEPTH = 50
_MOST_KEY = 1000  # characters; YAML's own limit is 1,024

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_INT = re.compile(r"[-+]?(0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# Numbers to base 60, dates, = and <<, which YAML 1.1 does not read as the text they look like.
_REFUSED = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*|=|<<")
_ESCAPES = dict(zip('0abtnvfre "\\/N_LP', '\0\a\b\t\n\v\f\r\x1b "\\/\x85\xa0\u2028\u2029', strict=True))
_CODES = {"x": 2, "u": 4, "U": 8}
_ANCHOR = re.compile(r"&([0-9A-Za-z_-]+)(?= |$)")
_ALIAS = re.compile(r"\*([0-9A-Za-z_-]+)")
_UNPRINTABLE = re.compile("[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class YAMLError(ValueError):
    """The text is not YAML, or uses a part of YAML that is not read here. The message begins with the line's number."""


class _Line(NamedTuple):
    """A line with content. number: from 1. indent: spaces before the content. begin, end: its place in the text."""

    number: int
    indent: int
    begin: int
    end: int


def load(text: str) -> Any:
    """The value of a text's only document. Raises YAMLError."""
    return _Reader(text.removeprefix("\ufeff").replace("\r\n", "\n")).document()


class _Reader:
    """Parses by recursive descent: blocks line by line, values within a line or brackets character by character."""

    def __init__(self, text: str) -> None:
        self._text, self._anchors, self._depth = text, dict[str, Any](), 0
        if found := _UNPRINTABLE.search(text):
            number = text.count("\n", 0, found.start()) + 1
            raise YAMLError(f"line {number:,} has the character {found[0]!r}, which is not read here")
        self._lines: list[_Line] = []
        at = 0
        for number, line in enumerate(text.split("\n"), 1):
            content = line.lstrip(" ")
            if content and content[0] != "#":
                indent = len(line) - len(content)
                self._lines.append(_Line(number, indent, at + indent, at + len(line)))
            at += len(line) + 1
        self._at = 0  # index of the next line to read

    def document(self) -> Any:
        if self._lines and self._lines[0].indent == 0 and self._rest().rstrip(" ") == "---":
            self._at += 1
        for line in self._lines[self._at :]:
            if line.indent == 0 and self._text.startswith(("---", "...", "%"), line.begin):
                raise self._error("begins another document, or a directive", line)
        value = self._node() if self._line() is not None else None
        if self._line() is not None:
            raise self._error("is indented as nothing before it")
        return value

    # ---- lines

    def _line(self) -> _Line | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _rest(self) -> str:
        line = self._lines[self._at]
        return self._text[line.begin : line.end]

    def _error(self, what: str, line: _Line | None = None) -> YAMLError:
        line = line or self._lines[min(self._at, len(self._lines) - 1)]
        return YAMLError(f"line {line.number:,} {what}")

    # ---- blocks

    def _node(self) -> Any:
        """The value that begins at the next line: a sequence, a mapping or a scalar."""
        line = self._lines[self._at]
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise self._error(f"is nested too deeply: more than {_MOST_DEPTH} levels")
        rest = self._rest()
        if _is_entry(rest):
            value: Any = self._sequence(line.indent)
        elif self._key(rest) is not None:
            value = self._mapping(line.indent)
        else:
            value = self._value(line.begin, line.indent - 1, nested=False)
        self._depth -= 1
        return value

    def _sequence(self, indent: int) -> list[Any]:
        values = []
        while (line := self._line()) is not None and line.indent == indent and _is_entry(self._rest()):
            begin = self._content(line.begin + 1, line.end)
            inner = self._text[begin : line.end]
            if _is_entry(inner) or (inner and inner[0] not in "&*#[{" and self._key(inner) is not None):
                # "- key: value": a block begins on its dash's line. Read it as if that line began with the block.
                self._lines[self._at] = line._replace(indent=indent + begin - line.begin, begin=begin)
                values.append(self._node())
            else:
                values.append(self._value(begin, indent, nested=True))
        return values

    def _mapping(self, indent: int) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        while (line := self._line()) is not None and line.indent == indent:
            found = self._key(self._rest())
            if found is None:
                raise self._error("has no key")
            key, length = found
            begin = self._content(line.begin + length, line.end)
            values[key] = self._value(begin, indent, nested=True, in_mapping=True)
        return values

    def _content(self, at: int, end: int) -> int:
        while at < end and self._text[at] == " ":
            at += 1
        return at

    def _key(self, rest: str) -> tuple[Any, int] | None:
        """The key at the beginning of a line and its length with the colon; None if the line has no key."""
        if rest[0] in "'\"":
            key, end = self._quoted(rest, 0)
            colon = end + len(rest[end:]) - len(rest[end:].lstrip(" "))
            if rest[colon : colon + 2] not in (":", ": "):
                return None
            length = colon + 1
        else:
            colon = min((i for i in (rest.find(": "), len(rest) - 1 if rest[-1] == ":" else -1) if i >= 0), default=-1)
            comment = rest.find(" #")
            if colon < 1 or 0 <= comment < colon or rest[0] in "[{&*!|>%@`":
                return None
            key, length = self._plain(rest[:colon].rstrip(" ")), colon + 1
        if length > _MOST_KEY:
            raise self._error("has a key that is too long")
        return key, length

    def _value(self, begin: int, indent: int, *, nested: bool, in_mapping: bool = False) -> Any:
        """The value at `begin` of the next line; if nothing is there, in the lines below that are indented by more.

        indent: the one that those lines must exceed. nested: whether the value belongs to an entry or a key.
        in_mapping: whether to a key, whose value may also be a sequence that is indented as the key is.
        """
        line = self._lines[self._at]
        name = None
        if found := _ANCHOR.match(self._text[begin : line.end]):
            if not nested:
                raise self._error("begins with an anchor, which is not read here")
            name, begin = found[1], self._content(begin + found.end(), line.end)
        if begin == line.end or (self._text[begin] == "#" and self._text[begin - 1] == " "):
            value = self._below(indent, in_mapping=in_mapping)
        else:
            value, end = self._flow(begin, line.end, within=False)
            self._advance(end)
            if (after := self._line()) is not None and after.indent > indent and nested:
                raise self._error("goes on with the line before it, which is not read here, or is indented too much")
        if name is not None:
            if name in self._anchors:
                raise self._error(f"has the anchor &{name} a second time", line)
            self._anchors[name] = value
        return value

    def _below(self, indent: int, *, in_mapping: bool) -> Any:
        """The value in the lines after this one; None if they are not indented as a value's."""
        self._at += 1
        if (after := self._line()) is None:
            return None
        if after.indent > indent or (in_mapping and after.indent == indent and _is_entry(self._rest())):
            return self._node()
        return None

    def _advance(self, end: int) -> None:
        """Goes to the line after the one that contains `end`, a value's end, after which only a comment may follow."""
        while self._lines[self._at].end < end:
            self._at += 1
        line = self._lines[self._at]
        after = self._content(end, line.end)
        if after < line.end and not (self._text[after] == "#" and after > end):
            raise self._error("has something after its value")
        self._at += 1

    # ---- values within a line, or within brackets

    def _flow(self, at: int, end: int, *, within: bool) -> tuple[Any, int]:
        """The value at `at` and its end. within: whether brackets are open, so that commas and brackets end it too."""
        first = self._text[at]
        if within and first in ":?":
            raise self._error(f"has {first} where a value begins")
        if first in "[{":
            self._depth += 1
            if self._depth > _MOST_DEPTH:
                raise self._error(f"is nested too deeply: more than {_MOST_DEPTH} levels")
            value, at = self._brackets(at, first)
            self._depth -= 1
            return value, at
        if first in "'\"":
            return self._quoted(self._text, at)
        if found := _ALIAS.match(self._text, at, end):
            if found[1] not in self._anchors:
                raise self._error(f"has the alias *{found[1]}, which is no value before it")
            return self._anchors[found[1]], found.end()
        stop = at
        while stop < end:
            letter, after = self._text[stop], self._text[stop + 1 : stop + 2]
            if letter == ":" and (after in ("", " ", "\n") or (within and after in ",[]{}")):
                break
            if (within and letter in ",?[]{}\n") or (letter == " " and after == "#"):
                break
            stop += 1
        return self._plain(self._text[at:stop].rstrip(" ")), stop

    def _brackets(self, at: int, opening: str) -> tuple[Any, int]:
        """The sequence or mapping in brackets that begins at `at`, and its end."""
        closing = "]" if opening == "[" else "}"
        values: list[Any] = []
        pairs: dict[Any, Any] = {}
        at = self._skip(at + 1)
        while self._text[at] != closing:
            if self._text[at] in ",]}":
                raise self._error("has no value where one belongs between brackets")
            value, at = self._flow(at, len(self._text), within=True)
            if opening == "{":
                at = self._content(at, len(self._text))  # the colon must be on the key's line
                if self._text[at : at + 1] != ":" or isinstance(value, (list, dict)):
                    raise self._error("has a { } with something that is no pair of a key and its value")
                at = self._skip(at + 1)
                pairs[value], at = self._flow(at, len(self._text), within=True)
            at = self._skip(at)
            values.append(value)
            if self._text[at] == ",":
                at = self._skip(at + 1)
            elif self._text[at] != closing:
                raise self._error("has something that is not read here between brackets")
        return (values if opening == "[" else pairs), at + 1

    def _skip(self, at: int) -> int:
        """The next place between brackets that is no space, comment or end of a line."""
        while at < len(self._text):
            if self._text[at] == "#" and self._text[at - 1] in " \n":
                end = self._text.find("\n", at)
                at = len(self._text) if end < 0 else end
            elif self._text[at] not in " \n":
                return at
            else:
                at += 1
        raise self._error("opens a bracket that is not closed")

    def _quoted(self, text: str, at: int) -> tuple[str, int]:
        """The quoted scalar at `at` and its end, which must be on the same line."""
        quote, out, at = text[at], [], at + 1
        while at < len(text) and text[at] != "\n":
            letter = text[at]
            if letter == "'" == quote and text[at + 1 : at + 2] == "'":
                out.append(letter)
                at += 2
            elif letter == quote:
                return "".join(out), at + 1
            elif letter == "\\" and quote == '"':
                character, at = self._escaped(text, at + 1)
                out.append(character)
            else:
                out.append(letter)
                at += 1
        raise self._error("has a quoted text that does not end on it")

    def _escaped(self, text: str, at: int) -> tuple[str, int]:
        """The character of the escape whose backslash is before `at`, and the escape's end."""
        letter = text[at : at + 1]
        if letter in _ESCAPES:
            return _ESCAPES[letter], at + 1
        digits = text[at + 1 : at + 1 + _CODES.get(letter, 0)]
        code = int(digits, 16) if re.fullmatch("[0-9A-Fa-f]+", digits) else -1
        if len(digits) != _CODES.get(letter) or not 0 <= code < 0x110000 or 0xD800 <= code < 0xE000:
            raise self._error(f"has the escape \\{letter}, which is not read here")
        return chr(code), at + 1 + len(digits)

    def _plain(self, text: str) -> Any:
        """The value of a scalar without quotes: null, a boolean, a number, or the text itself."""
        if text and (text[0] in ",[]{}#&*!|>'\"%@`" or (text[0] in "-?:" and text[1:2] in ("", " "))):
            raise self._error(f"has {text[:20]!r} where a value begins")
        if _REFUSED.fullmatch(text):
            what = "merges keys with <<" if text == "<<" else f"has {text[:40]!r}, a date or a number to base 60"
            raise self._error(f"{what}, which is not read here")
        if text in _NULL:
            return None
        if text.lower() in _BOOL and text in (text.lower(), text.title(), text.upper()):
            return _BOOL[text.lower()]
        try:
            if _INT.fullmatch(text):
                return _integer(text.replace("_", ""))
            if _FLOAT.fullmatch(text):
                return float(text.replace("_", ""))
        except ValueError:
            raise self._error(f"has {text[:40]!r}, which is no number") from None
        if found := _SPECIAL_FLOAT.fullmatch(text):
            return float(f"{found[1]}inf" if found[2] else "nan")
        return text


def _is_entry(rest: str) -> bool:
    """Whether a line is an entry of a sequence."""
    return rest[:2] == "- " or rest == "-"


def _integer(text: str) -> int:
    """YAML 1.1's integers: a leading 0 is octal."""
    digits = text.lstrip("+-")
    base = {"0b": 2, "0x": 16}.get(digits[:2], 8 if len(digits) > 1 and digits[0] == "0" else 10)
    return int(text, base)
