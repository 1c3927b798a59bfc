"""Tool calls: what tools and tool_choice say, the grammar of a call that is forced, and arguments as their schemas say.

Grammars are Lark as llguidance reads it (guidance-ai/llguidance: docs/syntax.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from fastllm.chat.formats import CallFormat, Format, Thinking
from fastllm.decoding.grammar import json_rule
from fastllm.errors import OptionError
from fastllm.tokenizer import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_SAID = {"description", "title", "default", "examples", "$comment"}
_CHOICES = '"auto", "none", "required", the name of a tool, or {"type": "function", "function": {"name": ...}}'


def schemas(tools: Iterable[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The JSON schema of each tool's arguments by the tool's name.

    A tool is a dict as OpenAI's API has it, {"type": "function", "function": {"name", "description", "parameters"}}, or
    the inner one alone. Raises OptionError for anything else, naming the tool.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools or ()):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError(f"tools[{i}] has no name of letters, digits, '_', '-' and '.'")
        if name in found:
            raise OptionError(f"tools[{i}] has the name {name}, as has one before it")
        schema = function.get("parameters")
        schema = {"type": "object", "properties": {}} if schema is None else schema
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise OptionError(f"tools[{i}] ({name}): parameters must be the JSON schema of an object")
        if not isinstance(schema.get("properties", {}), Mapping):
            raise OptionError(f"tools[{i}] ({name}): properties must be an object of JSON schemas")
        found[name] = dict(schema)
    return found


def chosen(choice: Any, tools: Mapping[str, Any]) -> list[str]:
    """The tools of which one has to be called: none for "auto" and "none". Raises OptionError."""
    if choice is None or (isinstance(choice, str) and choice in ("auto", "none")):
        return []
    if not isinstance(choice, (str, Mapping)):
        raise OptionError(f"tool_choice must be {_CHOICES}, not {' '.join(repr(choice).split())}"[:250])
    if not tools:
        raise OptionError(f"tool_choice is {choice!r}, but there are no tools"[:200])
    if choice == "required":
        return list(tools)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else choice
    if not isinstance(name, str):
        raise OptionError(f"tool_choice must be {_CHOICES}, not {choice!r}"[:250])
    if name not in tools:
        raise OptionError(f"tool_choice is {name!r}, but the tools are {', '.join(tools)}"[:250])
    return [name]


# ---- the grammar of a call -------------------------------------------------------------------------------------------


def grammar(
    known: Format, tokenizer: Tokenizer, tools: Mapping[str, Any], *, several: bool, thinks: bool
) -> str | None:
    """The grammar of a reply that calls one of `tools`, as the model writes calls; None where that is not known.

    several: whether it may call more than one. thinks: whether the prompt has begun the model's thinking. A reply may
    think before it calls.
    """
    form = known.calls
    if form is None or not form.written:
        return None
    rules: list[str] = []
    names = [f"call_{i}" for i in range(len(tools))]
    for rule, (name, schema) in zip(names, tools.items(), strict=True):
        rules += [one.replace("@", rule) for one in _call(form, tokenizer, name, schema)]
    more = "" if form.between is None or not several else f" ({_text(tokenizer, form.between)} call)*"
    begin, end = (_text(tokenizer, text) for text in form.around)
    rules = [f"calls: {begin} call{more} {end}", f"call: {' | '.join(names)}", *rules]
    thought = known.thinking
    if thought is None:
        return "\n".join(["start: calls", *rules])
    closes = thought.closes if form.thinking is None or thought != form.thinking else _end_of(thought)
    rule, ending = _until(tokenizer, "thought", closes)
    begun = f"{ending} SPACE" if thinks else f"({_text(tokenizer, thought.opens)} {ending} SPACE)?"
    return "\n".join([f"start: {begun} calls", rule, r"SPACE: /\s*/", *rules])


def after_thinking(known: Format, tokenizer: Tokenizer, answer: str) -> str:
    """The grammar of a reply that ends the thinking that the prompt has begun, and then answers.

    answer: rules, of which the first is called "own_answer".
    """
    thought = known.thinking
    assert thought is not None
    rule, ending = _until(tokenizer, "own_thought", _end_of(thought))
    return "\n".join([f"start: {ending} OWN_SPACE own_answer", rule, r"OWN_SPACE: /\s*/", answer])


def _end_of(thought: Thinking) -> str:
    """The end of a thought, without the beginning of the answer that some formats write at once (gpt-oss)."""
    return thought.closes.partition("<|channel|>")[0]


def _call(form: CallFormat, tokenizer: Tokenizer, name: str, schema: Mapping[str, Any]) -> list[str]:
    """The rules of a call of a function: "@", and "@0", "@1", ... for values between tags."""
    parts, rules = [], list[str]()
    for text in re.split(r"(\$arguments|\$tags)", form.written.replace("$name", name)):
        if text == "$arguments":
            parts.append(_json(schema))
        elif text == "$tags":
            required = schema.get("required") or ()
            for i, (key, about) in enumerate(schema.get("properties", {}).items()):
                begin, _, end = form.tag.replace("$key", key).partition("$value")
                rule, value = _tag_value(tokenizer, f"@{i}", about, end)
                rules.append(rule)
                tag = f"{_text(tokenizer, begin)} {value}"
                parts.append(tag if key in required else f"({tag})?")
        elif text:
            parts.append(_text(tokenizer, text))
    return [f"@: {' '.join(parts)}", *rules]


def _tag_value(tokenizer: Tokenizer, rule: str, schema: Any, end: str) -> tuple[str, str]:
    """A rule for an argument between tags, a string as it is and anything else as JSON; and it with what follows."""
    if types_of(schema) not in ([], ["string"]):
        return f"{rule}: {_json(schema)}", f"{rule} {_text(tokenizer, end)}"
    if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list):
        return (
            f"{rule}: {' | '.join(json.dumps(str(one)) for one in schema['enum'])}",
            f"{rule} {_text(tokenizer, end)}",
        )
    return _until(tokenizer, rule, end)


def _until(tokenizer: Tokenizer, rule: str, end: str) -> tuple[str, str]:
    """A rule for any text up to `end`, and it with what follows, which is `end` if the rule does not have that."""
    if any(token and token in end for token in tokenizer.special):
        return f"{rule}: /(?s:.*)/", f"{rule} {_text(tokenizer, end)}"
    return f"{rule}[suffix={json.dumps(end)}]: /(?s:.*)/", rule


def _json(schema: Any) -> str:
    """JSON of a schema, in a grammar; what a schema only says to people is left out."""
    return json_rule(_plain(schema))


def _plain(schema: Any, *, names: bool = False) -> Any:
    """names: whether the keys of this object are names of properties."""
    if isinstance(schema, Mapping):
        own = {key: value for key, value in schema.items() if names or key not in _SAID}
        inner = ("properties", "$defs", "definitions", "patternProperties")
        return {key: _plain(value, names=not names and key in inner) for key, value in own.items()}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def _text(tokenizer: Tokenizer, text: str) -> str:
    """A text as a grammar has it: special tokens, which have no text there, by their ids."""
    special = [token for token in tokenizer.special if token and token in text]
    if not special:
        return json.dumps(text) if text else '""'
    parts = re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text)
    ids = [f"<[{tokenizer.token_id(part)}]>" if i % 2 else json.dumps(part) for i, part in enumerate(parts) if part]
    return " ".join(ids)


# ---- arguments -------------------------------------------------------------------------------------------------------


def typed(arguments: Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a call as a tool's schema says, as far as the text that the model wrote can be read as such.

    That is transformers' rule for models that write all values as text. Strings become sound Unicode.
    """
    properties = (schema or {}).get("properties", {})
    return {_sound(name): _sound(_as_said(value, types_of(properties.get(name)))) for name, value in arguments.items()}


def _as_said(value: Any, types: list[str]) -> Any:
    if isinstance(value, str):
        return _typed(value, types)
    if isinstance(value, list) and types and "array" not in types:
        return [_typed(item, types) if isinstance(item, str) else item for item in value]
    return value


def types_of(schema: Any) -> list[str]:
    """The JSON types that a schema names."""
    if not isinstance(schema, Mapping):
        return []
    given = schema.get("type")
    types = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
    for key in ("anyOf", "oneOf"):
        choices = schema.get(key)
        for choice in choices if isinstance(choices, list) else ():
            types += types_of(choice)
    return [*types, "null"] if schema.get("nullable") and "null" not in types else types


def _typed(text: str, types: Iterable[str]) -> Any:
    for kind in types:
        with suppress(ValueError, OverflowError, RecursionError):
            value = _read(text, kind)
            if value is not text:
                return value
    return text


def _read(text: str, kind: str) -> Any:
    """The value of a JSON type that a text is, or the text. Raises ValueError, OverflowError, RecursionError."""
    bare = text.strip()
    value: Any = text
    if kind == "integer" and re.fullmatch(r"[+-]?\d+", bare):
        value = int(bare)
    elif kind in ("integer", "number") and math.isfinite(number := float(bare)):
        whole = number.is_integer() and (kind == "integer" or "." not in bare)
        value = int(number) if whole else number if kind == "number" else text
    elif kind == "boolean" and bare.lower() in ("true", "1", "false", "0"):
        value = bare.lower() in ("true", "1")
    elif kind == "null" and bare in ("null", "None"):
        value = None
    elif kind in ("object", "array"):
        found = json.loads(text)
        value = found if isinstance(found, dict if kind == "object" else list) else text
    return value


def _sound(value: Any) -> Any:
    """Plain data with U+FFFD in place of halves of surrogate pairs, which no file or terminal takes."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_sound(key): _sound(item) for key, item in value.items()}
    return [_sound(item) for item in value] if isinstance(value, list) else value
