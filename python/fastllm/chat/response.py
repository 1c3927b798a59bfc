"""Replies read back: response templates, which are the inverse of chat templates, and the parser that runs them.

A response template says in plain data how a model writes the fields of its message: what opens and closes a region of
the reply, and what its text means. It is transformers' format (docs/source/en/chat_response_parsing.md of that project,
version 1); checkpoints have it in tokenizer_config.json, and chat/formats.py has some for those that have none:

    {"start_anchor": "<|im_start|>assistant\\n",
     "fields": {"thinking": {"open": "<think>", "close": "</think>"},
                "tool_calls": {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
                               "transform": {"type": "function", "function": "{content}"}},
                "content": {}}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastllm.chat._contents import PARSERS, is_placeholder, parse, transformed
from fastllm.chat._delimiters import Found, Literals, Pattern
from fastllm.errors import TokenizerError

_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD_KEYS = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args"),
    *("repeats", "join", "optional", "transform", "transform_each"),
}
_MOST_FIELDS = 100
_KEPT = 1024  # characters before the place that has been read up to, for patterns that look back


class Field(NamedTuple):
    """A field of the message, and the regions of a reply that hold it.

    opens, closes: what a region begins and ends with; opens is None of the field that takes what is in no region,
    closes is None of a region that ends with the reply. kind, args: what its text means, see _contents. repeats: the
    values of several regions become a list, or with join one text. transform: what the value is put into.
    """

    name: str
    opens: Literals | Pattern | None
    closes: Literals | Pattern | None
    kind: str
    args: dict[str, Any]
    repeats: bool
    join: str | None
    transform: Any
    transform_each: bool

    @property
    def streams(self) -> bool:
        """Whether the text of its regions is its value."""
        return self.kind == "text" and self.transform is None and (self.join is not None or not self.repeats)

    def value(self, text: str, groups: Mapping[str, str]) -> Any:
        """The value of a region. groups: what the named groups of its delimiters matched. Raises ValueError."""
        value = parse(self.kind, text, self.args)
        if self.transform is not None and not self.transform_each:
            value = transformed(self.transform, {**groups, "content": value})
        elif self.transform_each:
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise ValueError(f"{self.name} must be a list of objects")
            value = [transformed(self.transform, {**groups, **item}) for item in value]
        if self.name == "tool_calls":
            for call in value if isinstance(value, list) else [value]:
                _check_call(call)
        return value


def _check_call(call: Any) -> None:
    """Raises ValueError for what is no tool call; arguments that are a text become the object that it is JSON of."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("a tool call has a function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = function["arguments"] = parse("json", arguments, {})
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a tool call are an object")


class ResponseTemplate:
    """A response template, checked. defaults: fields that a message has where its reply has none."""

    def __init__(self, spec: Any) -> None:
        """spec: the template as JSON has it. Raises TokenizerError, which names what is wrong."""
        if not isinstance(spec, Mapping):
            raise TokenizerError(f"response_template must be an object, not {spec!r}"[:200])
        _known("response_template", spec, _KEYS)
        if spec.get("version", 1) != 1:
            raise TokenizerError(f"response_template has version {spec['version']!r}; known is 1"[:200])
        defaults, fields = spec.get("defaults", {}), spec.get("fields")
        if not isinstance(defaults, dict):
            raise TokenizerError("response_template: defaults must be an object")
        if not isinstance(fields, dict) or not 0 < len(fields) <= _MOST_FIELDS:
            raise TokenizerError(f"response_template: fields must be an object with 1 to {_MOST_FIELDS} fields")
        self.defaults = dict(defaults)
        self.fields = {name: _field(f"response_template: {name}", name, about) for name, about in fields.items()}
        rest = [field for field in self.fields.values() if field.opens is None]
        if len(rest) > 1:
            names = " and ".join(field.name for field in rest)
            raise TokenizerError(f"response_template: {names} have no open, which only one field may lack")
        self.rest = rest[0] if rest else None
        anchor = _delimiter("response_template", spec, "start_anchor")
        if anchor is None:
            raise TokenizerError("response_template has neither start_anchor nor start_anchor_pattern")
        self._anchor = anchor

    def begun(self, prompt: str) -> str:
        """What a prompt has of the reply already: what follows the last start anchor."""
        end = len(prompt)
        for found in self._anchor.finditer(prompt):
            end = found.end()
        return prompt[end:]


def _known(what: str, about: Mapping[str, Any], keys: set[str]) -> None:
    if unknown := [key for key in about if key not in keys]:
        raise TokenizerError(f"{what} has the unknown key {unknown[0]!r}"[:200])


def _delimiter(what: str, about: Mapping[str, Any], key: str) -> Literals | Pattern | None:
    if key in about and f"{key}_pattern" in about:
        raise TokenizerError(f"{what} has both {key} and {key}_pattern")
    if f"{key}_pattern" in about:
        return Pattern(about[f"{key}_pattern"], f"{what}: {key}_pattern")
    if key not in about:
        return None
    strings = [about[key]] if isinstance(about[key], str) else about[key]
    if not isinstance(strings, list) or not strings or not all(isinstance(one, str) and one for one in strings):
        raise TokenizerError(f"{what}: {key} must be a text or a list of texts, none of them empty")
    return Literals(strings)


def _field(what: str, name: str, about: Any) -> Field:
    if not isinstance(about, dict):
        raise TokenizerError(f"{what} must be an object")
    _known(what, about, _FIELD_KEYS)
    kind, join, transform = about.get("content", "text"), about.get("join"), about.get("transform")
    if not isinstance(kind, str) or kind not in PARSERS:
        raise TokenizerError(f"{what}: unknown content {kind!r}; known are {', '.join(PARSERS)}"[:300])
    for key in ("repeats", "optional", "transform_each"):
        if not isinstance(about.get(key, False), bool):
            raise TokenizerError(f"{what}: {key} must be true or false")
    if join is not None and not (isinstance(join, str) and about.get("repeats")):
        raise TokenizerError(f"{what}: join must be a text, and needs repeats")
    if about.get("transform_each") and transform is None:
        raise TokenizerError(f"{what}: transform_each needs a transform")
    opens, closes = _delimiter(what, about, "open"), _delimiter(what, about, "close")
    if transform is None and any(delimiter is not None and delimiter.groups for delimiter in (opens, closes)):
        raise TokenizerError(f"{what}: a pattern has named groups, which need a transform")
    try:
        _check_transform(transform)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{what}: transform: {error}"[:200]) from None
    args = _args(what, kind, about.get("content_args", {}))
    each = bool(about.get("transform_each"))
    return Field(name, opens, closes, kind, args, bool(about.get("repeats")), join, transform, each)


def _check_transform(transform: Any) -> None:
    for value in (
        transform.values() if isinstance(transform, dict) else transform if isinstance(transform, list) else ()
    ):
        _check_transform(value)
    if isinstance(transform, str):
        is_placeholder(transform)


def _args(what: str, kind: str, args: Any) -> dict[str, Any]:
    """content_args, checked; patterns are compiled."""
    if not isinstance(args, dict):
        raise TokenizerError(f"{what}: content_args must be an object")
    known = dict(args)
    for key in ("line_sep", "kv_sep"):
        if key in known and not (isinstance(known[key], str) and known[key]):
            raise TokenizerError(f"{what}: {key} must be a text that is not empty")
    if "string_delims" in known:
        pairs = known["string_delims"]
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, str) and end for end in pair)
            for pair in pairs
        ):
            raise TokenizerError(f"{what}: string_delims must be a list of pairs of texts")
    if kind == "xml-inline":
        known["tag_pattern"] = Pattern(known.get("tag_pattern"), f"{what}: tag_pattern")
        if "key" not in known["tag_pattern"].groups:
            raise TokenizerError(f'{what}: tag_pattern needs a group named "key"')
    if known.get("value_parser") is not None:
        inner = known["value_parser"]
        if not isinstance(inner, dict) or inner.get("name", "text") not in list(PARSERS):
            raise TokenizerError(f"{what}: value_parser must be an object with the name of a parser")
        try:
            known["value_parser"] = {**inner, "args": _args(what, inner.get("name", "text"), inner.get("args", {}))}
        except RecursionError:
            raise TokenizerError(f"{what}: value_parser is nested too deeply") from None
    return known


class Part(NamedTuple):
    """A part of a message. field: its name. text: a piece of a field that is text; None: `value` is a whole value."""

    field: str
    text: str | None
    value: Any = None


class ResponseParser:
    """Takes a reply piece by piece and tells what of its message is certain. field: that which it writes now, or None.

    Cut into whatever pieces, a reply gives the same message. Text that may still become a delimiter is held back. A
    region that is not what its field says, such as JSON that has no end, is text as the model wrote it. Texts of
    several regions of a field are put together, with `join` between; of values the last counts, or all with `repeats`.

    Special tokens are pieces of their own: they are part of delimiters and values, but not of texts.
    """

    def __init__(self, template: ResponseTemplate, prompt: str = "", said: str = "") -> None:
        """prompt, said: what the reply continues: the prompt may have the beginning of the message after the start
        anchor, and a beginning that the prompt ends with may be given as `said`. No part has any of them.
        """
        self._template = template
        self._buffer, self._at = "", 0
        self._hidden: list[tuple[int, int]] = []  # where special tokens are in the buffer
        self._texts: set[str] = set()  # fields that have text already
        self._begin(template.rest, None)
        self.feed(template.begun(prompt), special=True)
        self.feed(said, special=True)

    @property
    def field(self) -> str | None:
        """The field of the next character, unless that makes a delimiter at the end longer; None: it has none."""
        found = self._first(over=True)[0]
        if found is None or found[2].end < len(self._buffer) or found[2].start == found[2].end:
            return None if self._field is None else self._field.name
        return found[1].name if found[3] else self._template.rest and self._template.rest.name

    def feed(self, text: str, *, special: bool = False) -> list[Part]:
        """The parts that are certain with a further piece. Raises TokenizerError where a pattern takes too long."""
        if special:
            self._hidden.append((len(self._buffer), len(self._buffer) + len(text)))
        self._buffer += text
        return self._read(over=False)

    def end(self) -> list[Part]:
        """The rest, when the reply is over."""
        return self._read(over=True)

    def _read(self, *, over: bool) -> list[Part]:
        self._parts: list[Part] = []
        going = True
        while going:
            first, held = self._first(over=over)
            if first is not None and (over or first[2].start < held):
                going = self._pass(first[1], first[2], opens=first[3])
            else:
                self._take(held)
                going = False
        if over:
            self._take(len(self._buffer))
            self._close()
        self._forget()
        return self._parts

    def _first(self, *, over: bool) -> tuple[tuple[tuple[int, int, int], Field, Found, bool] | None, int]:
        """The delimiter that is next, if any is certain: its rank, field, place, and whether it opens a region of the
        field. Then the place from which on the text may still become a delimiter."""
        first, held = None, len(self._buffer)
        for rank, (field, opens) in enumerate(self._watched()):
            delimiter = field.opens if opens else field.closes
            assert delimiter is not None
            found, begun = delimiter.find(self._buffer, self._at, over=over)
            held = min(held, begun)
            if found is not None:
                one = (found.start, found.start - found.end, rank), field, found, opens
                first = one if first is None or one[0] < first[0] else first
        return first, held

    def _watched(self) -> list[tuple[Field, bool]]:
        """The delimiters that count now, and whether each opens a region; of two in one place the first one counts."""
        rest, current = self._template.rest, self._field
        if current is not rest and current is not None:
            return [(current, False)] if current.closes is not None else []
        fields = sorted(self._template.fields.values(), key=lambda field: field.name)
        watched = [(field, True) for field in fields if field.opens is not None]
        return watched + ([(rest, False)] if rest is not None and rest.closes is not None else [])

    def _pass(self, field: Field, found: Found, *, opens: bool) -> bool:
        """Goes past a delimiter. False for one that is empty and ends nothing, which would come again and again."""
        self._take(found.start)
        delimiter = self._shown(found.start, found.end)
        self._at = found.end
        if opens:
            self._close()
            self._begin(field, delimiter, found.groups)
            return True
        was_open = self._raw is not None
        self._groups.update(found.groups)
        self._close(delimiter)
        return was_open or found.end > found.start

    # ---- the region that is open

    def _begin(self, field: Field | None, delimiter: str | None, groups: Mapping[str, str] | None = None) -> None:
        """delimiter: what opened the region; None: it is that of the rest, which begins with its first character."""
        self._field, self._groups = field, dict(groups or {})
        self._raw: list[str] | None = None if delimiter is None else [delimiter]  # all of it, as it is shown
        self._body: list[str] = []
        self._said, self._blank = False, ""  # whether it has text, and white space that may be its end

    def _take(self, end: int) -> None:
        """Adds the text up to `end` to the region."""
        field, start, self._at = self._field, self._at, max(end, self._at)
        if field is None or start >= end:
            return
        shown = self._shown(start, end)
        if self._raw is None:
            self._raw = []
        if field.streams:
            # What the prompt has said is hidden, but it is text before this.
            self._said = self._said or (len(shown) < end - start and bool(self._buffer[start:end].strip()))
            self._say(field, shown)
        else:
            self._raw.append(shown)
            self._body.append(self._buffer[start:end])

    def _say(self, field: Field, text: str) -> None:
        if field.args.get("strip", True):
            text = self._blank + text
            text = text if self._said else text.lstrip()
            cut = text.rstrip()
            self._blank, text = text[len(cut) :], cut
        if not text:
            return
        if not self._said and field.name in self._texts and field.join:
            self._parts.append(Part(field.name, field.join))
        self._said = True
        self._texts.add(field.name)
        self._parts.append(Part(field.name, text))

    def _close(self, delimiter: str = "") -> None:
        """Ends the region, with what closes it."""
        field, raw, rest, failed = self._field, self._raw, self._template.rest, False
        if field is not None and raw is not None and not field.streams:
            try:
                self._parts.append(Part(field.name, None, field.value("".join(self._body), self._groups)))
            except ValueError:
                name, failed = "content" if rest is None else rest.name, True
                self._parts.append(Part(name, "".join(raw) + delimiter))
                self._texts.add(name)
        self._begin(rest, None)
        self._said = failed  # what comes next continues that text

    def _shown(self, start: int, end: int) -> str:
        """The buffer from start to end, without special tokens."""
        shown, at = "", start
        for begin, stop in self._hidden:
            if stop > at and begin < end:
                shown += self._buffer[at:begin]
                at = stop
        return shown + self._buffer[at:end]

    def _forget(self) -> None:
        """Drops what has been read, now and then."""
        cut = self._at - _KEPT
        if cut > _KEPT * 16:
            self._buffer, self._at = self._buffer[cut:], _KEPT
            self._hidden = [(begin - cut, stop - cut) for begin, stop in self._hidden if begin >= cut]


def assembled(template: ResponseTemplate, parts: Iterable[Part]) -> dict[str, Any]:
    """The message of a reply's parts, with the template's defaults."""
    message: dict[str, Any] = {}
    for name, text, value in parts:
        if text is not None:
            message[name] = message.get(name, "") + text
        elif template.fields[name].repeats:
            message.setdefault(name, []).append(value)
        else:
            message[name] = value
    return {**template.defaults, **message}
