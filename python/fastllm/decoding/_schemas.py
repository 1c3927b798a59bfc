"""JSON schemas as the grammar library takes them: read, and checked for what it would ignore or choke on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastllm.decoding._checks import shown
from fastllm.errors import OptionError

_DEEPEST = 100  # objects and lists within each other
_STATES = 10_000  # of the automaton of a multipleOf: time and memory grow with it, to seconds and a gigabyte
# Keywords that restrict a value in an older draft or in OpenAPI, and that the library takes for annotations.
_IGNORED = {"disallow", "divisibleBy", "extends", "nullable", "$recursiveAnchor"}
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_KNOWN = {
    *_MAPS, *_LISTS, *_ONE, "type", "enum", "const", "required", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems",
    "uniqueItems", "minProperties", "maxProperties", "dependentRequired", "unevaluatedProperties", "unevaluatedItems",
    "minContains", "maxContains",
}  # fmt: skip
_MEANT = {name.lower(): name for name in _KNOWN}


def schema_text(value: Any, longest: int) -> str:
    """A schema as JSON text: of a dict, a JSON text, a pydantic model, or True, which is any JSON.

    Raises OptionError for anything else, for more than `longest` characters, for keywords that would be ignored, and
    where no value satisfies it in finite length.
    """
    import json

    schema = _loaded(value)
    if schema is True:
        schema = {}
    elif not isinstance(schema, Mapping):
        raise OptionError(
            f"json_schema must be a dict, JSON text, a pydantic model or True for any JSON, not {shown(value)}"
        )
    _check_values(schema)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise OptionError(f"json_schema cannot be written as JSON: {error}") from None
    if len(text) > longest:
        raise OptionError(f"json_schema has {len(text):,} characters: it may have {longest:,}")
    schema = json.loads(text)
    for one in _subschemas(schema):
        _check(one)
    _check_finite(schema)
    return text


def _loaded(value: Any) -> Any:
    import json

    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        try:
            return value.model_json_schema()
        except Exception as error:  # pydantic's own, for fields that have no schema
            raise OptionError(f"json_schema: {value.__name__} has no schema: {error}"[:300]) from None
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise OptionError(f"json_schema is no JSON: {said}") from None


def _check_values(schema: Any) -> None:
    """Raises OptionError for keys that are no texts, numbers beyond 64 bits, and what is nested deeply or in itself."""
    left = [(schema, 1)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise OptionError(f"json_schema is nested more than {_DEEPEST} deep")
        if isinstance(value, Mapping):
            if bad := [key for key in value if not isinstance(key, str)]:
                raise OptionError(f"json_schema has the key {shown(bad[0])}, which is no text")
            left += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, (list, tuple)):
            left += [(one, depth + 1) for one in value]
        elif isinstance(value, int) and abs(value) >= 1 << 63:
            raise OptionError(f"json_schema has the number {shown(value)}, which takes more than 64 bits")


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas within a schema, itself first. Values of enum, const, default and the like are none."""
    left = [schema]
    while left:
        one = left.pop()
        if not isinstance(one, dict):
            continue
        yield one
        left += [one[name] for name in _ONE if name in one]
        for name in _LISTS:
            left += one[name] if isinstance(one.get(name), list) else ()
        for name in _MAPS:
            left += one[name].values() if isinstance(one.get(name), dict) else ()


def _check(schema: dict[str, Any]) -> None:
    """Raises OptionError for keywords of a schema that would be ignored, or cost too much."""
    for name, value in schema.items():
        if name in _IGNORED and value is not False:
            raise OptionError(f"json_schema has {name}, which is not supported")
        meant = _MEANT.get(name.replace("_", "").lower())
        if meant is not None and name != meant:
            raise OptionError(f"json_schema has {shown(name)}, which is no keyword: is {meant} meant?")
    multiple = schema.get("multipleOf")
    if isinstance(multiple, (int, float)) and multiple > 0:
        from decimal import Decimal

        digits = "".join(map(str, Decimal(repr(multiple)).normalize().as_tuple().digits))
        if int(digits) > _STATES:
            raise OptionError(f"json_schema has a multipleOf of {multiple}: its digits may go up to {_STATES:,}")


def _check_finite(root: Any) -> None:
    """Raises OptionError for a schema whose values would have to hold themselves.

    A schema is finite if what it requires is: found in rounds, as for the rules of a grammar.
    """
    finite = set[int]()  # by id; all are parts of root, which lives
    schemas = list(_subschemas(root))

    def is_finite(one: Any) -> bool:
        return not isinstance(one, dict) or id(one) in finite

    more = True
    while more:
        more = False
        for one in reversed(schemas):
            if id(one) not in finite and all(map(is_finite, _required(one, root))) and _has_way(one, is_finite):
                finite.add(id(one))
                more = True
    if not is_finite(root):
        raise OptionError("json_schema: no text satisfies it, since its values would have to hold themselves")


def _has_way(schema: dict[str, Any], is_finite: Any) -> bool:
    """Whether one of the alternatives of anyOf and oneOf is finite."""
    ways = [schema[name] for name in ("anyOf", "oneOf") if isinstance(schema.get(name), list) and schema[name]]
    return all(any(map(is_finite, way)) for way in ways)


def _required(schema: dict[str, Any], root: Any) -> Iterator[Any]:
    """The schemas of values that each value of a schema holds, or is."""
    if isinstance(ref := schema.get("$ref"), str):
        yield _target(ref, root)
    if isinstance(schema.get("allOf"), list):
        yield from schema["allOf"]
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        needed = schema.get("required")
        yield from (schema["properties"].get(name) for name in (needed if isinstance(needed, list) else ()))
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        first = schema.get("prefixItems", schema.get("items"))
        yield from first[:least] if isinstance(first, list) else [first]


def _target(ref: str, root: Any) -> Any:
    """What a pointer within the document points to (RFC 6901); None for anything else."""
    from urllib.parse import unquote

    if ref != "#" and not ref.startswith("#/"):
        return None
    found = root
    for part in unquote(ref).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
