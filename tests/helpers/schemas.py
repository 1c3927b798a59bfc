"""Random JSON schemas of what the grammar library supports."""

from hypothesis import strategies as st

NAMES = ["a", "name", "x y", 'q"uote', "ключ", "$id2", "items"]
PATTERNS = ["^[a-f]{2,4}$", "^a+b?$", "[0-9]{3}", "^(yes|no)$", r"^\d{2}-\w$", "^[^x]{1,3}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.sampled_from(["", "a", "b c", 'd"e', "é\n", "\\"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def _strings(draw):
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == 1:
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    least = draw(st.integers(0, 5))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 6))}


@st.composite
def _numbers(draw):
    found = {"type": draw(st.sampled_from(["integer", "number"]))}
    low = draw(st.integers(-300, 300))
    if draw(st.booleans()):
        found[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        found[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(3, 200))
    if found["type"] == "integer" and draw(st.booleans()):
        found["multipleOf"] = draw(st.sampled_from([1, 2, 3]))
    return found


@st.composite
def _lists(draw, inner):
    least = draw(st.integers(0, 2))
    found = {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 2))}
    if draw(st.booleans()):
        found["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
        found["minItems"] = found["maxItems"] = len(found["prefixItems"])
    return found


@st.composite
def _objects(draw, inner):
    properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    found = {"type": "object", "properties": properties, "required": required}
    more = draw(st.integers(0, 3))
    if more < 3:
        found["additionalProperties"] = False if more < 2 else draw(inner)
    return found


@st.composite
def schemas(draw):
    """A schema with definitions that it may use, and that may hold themselves where a list may be empty."""
    leaves = (
        _strings()
        | _numbers()
        | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}])
        | st.builds(lambda value: {"const": value}, VALUES)
        | st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4))
        | st.just({"$ref": "#/$defs/tree"})
    )
    found = draw(
        st.recursive(
            leaves,
            lambda inner: (
                _lists(inner)
                | _objects(inner)
                | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))
                | st.builds(lambda one: {"allOf": [one, {"description": "any"}]}, inner)
            ),
            max_leaves=8,
        )
    )
    tree = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}
    return {**found, "$defs": {"tree": tree}}
