"""Grammars of forced calls accept what the family writes, and nothing else; arguments get the types of their schema."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.chat import ResponseParser, reply_format
from fastllm.chat.calls import grammar, schemas, typed
from helpers.replies import FAMILIES, TOOL, template_of, tokenizer

pytest.importorskip("regex")
TOOLS = schemas([TOOL, {"name": "now", "description": "the time ::= now"}])
ARGUMENTS = {"city": 'Rome <"b">', "days": 3, "wind": True}
FORCED = [family for family in FAMILIES if family not in ("gemma3", "gemma4")]


class Words:
    """A vocabulary of bytes and special tokens for llguidance."""

    bos_token_id = None
    eos_token_id = 256

    def __init__(self, special):
        self.special = list(special)
        self.tokens = [bytes([i]) for i in range(256)] + [b"<eos>"] + [text.encode() for text in special]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text):
        return list(text)

    def ids(self, text):
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text) if self.special else [text]
        return [i for n, part in enumerate(parts) for i in ([self.id(part)] if n % 2 else part.encode())]

    def id(self, text):
        return 257 + self.special.index(text)


def written(form, calls):
    """Calls as a format writes them."""
    found = []
    for name, arguments in calls:
        tags = [
            form.tag.replace("$key", key).replace("$value", value if isinstance(value, str) else json.dumps(value))
            for key, value in arguments.items()
        ]
        text = form.written.replace("$name", name).replace("$arguments", json.dumps(arguments))
        found.append(text.replace("$tags", "".join(tags)))
    return form.around[0] + (form.between or "").join(found) + form.around[1]


@pytest.mark.parametrize("family", FORCED)
def test_the_grammar_of_a_call(family):
    llguidance = pytest.importorskip("llguidance")
    words = Words(FAMILIES[family][2])
    library = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words))
    model = tokenizer(template_of(family), special=words.special)
    model.special, model.token_id = words.special, words.id
    form = reply_format(model)

    def accepts(text, *, several=True, thinks=False):
        source = grammar(form, model, TOOLS, several=several, thinks=thinks)
        matcher = llguidance.LLMatcher(library, llguidance.LLMatcher.grammar_from_lark(source))
        assert not matcher.is_error(), matcher.get_error()
        ids = words.ids(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    one, two = [("get_weather", ARGUMENTS)], [("get_weather", ARGUMENTS), ("now", {})]
    assert accepts(written(form.calls, one))
    assert accepts(written(form.calls, [("now", {})]))
    if form.calls.between is not None:
        assert accepts(written(form.calls, two))
    assert form.calls.between is None or not accepts(written(form.calls, two), several=False)
    assert not accepts("Hi")
    assert not accepts(written(form.calls, [("get_weather", {"days": 3, "wind": True})]))
    assert not accepts(written(form.calls, [("get_weather", {**ARGUMENTS, "days": "three"})]))
    assert not accepts(written(form.calls, [("other", {})]))
    if form.thinking is not None:
        end = form.thinking.closes.partition("<|channel|>final")[0]
        assert accepts(f"{form.thinking.opens}so <x>{end}{written(form.calls, one)}")
        assert accepts(f"so{end}{written(form.calls, one)}", thinks=True)
        assert not accepts(written(form.calls, one), thinks=True)


def test_formats_without_a_known_way_to_force():
    for family in ("gemma3", "gemma4"):
        model = tokenizer(template_of(family), special=FAMILIES[family][2])
        assert grammar(reply_format(model), model, TOOLS, several=True, thinks=False) is None
        assert ResponseParser(reply_format(model).template).field == "content"


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("3", {"type": "integer"}, 3),
        ("3.0", {"type": "integer"}, 3),
        ("3.5", {"type": "integer"}, "3.5"),
        ("3", {"type": "string"}, "3"),
        ("3", {}, "3"),
        ("3", {"type": "number"}, 3),
        ("3.0", {"type": "number"}, 3.0),
        ("nan", {"type": "number"}, "nan"),
        ("1e999", {"type": "number"}, "1e999"),
        ("True", {"type": "boolean"}, True),
        ("null", {"type": ["integer", "null"]}, None),
        ("null", {"type": "string", "nullable": True}, None),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("[1]", {"anyOf": [{"type": "integer"}, {"type": "array"}]}, [1]),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        (["1", "x"], {"type": "integer"}, [1, "x"]),
        (["1"], {"type": "array"}, ["1"]),
        ("\ud800x", {"type": "string"}, "\ufffdx"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_arguments_get_their_types(value, schema, expected):
    found = typed({"a": value}, {"properties": {"a": schema}})["a"]
    assert (found, type(found)) == (expected, type(expected))


@given(
    text=st.text("0123456789.-+e truefalsnN[]{}\"':,", max_size=12),
    kinds=st.lists(st.sampled_from(["integer", "number", "boolean", "null", "object", "array", "string"]), max_size=3),
)
def test_types_are_those_of_transformers(text, kinds):
    reference = pytest.importorskip("transformers.utils.chat_parsing.response_parser")
    expected = reference._coerce(text, tuple(kinds))
    found = typed({"a": text}, {"properties": {"a": {"type": kinds}}})["a"]
    assert (found, type(found)) == (expected, type(expected))
