"""Response templates: checked, run like transformers' own, whatever pieces a reply comes in, and never for long."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastllm import TokenizerError
from fastllm.chat import ResponseParser, ResponseTemplate
from fastllm.chat._contents import parse
from fastllm.chat.response import assembled

pytest.importorskip("regex")

CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
# Name -> a template and the pieces of random replies to it.
SPECS = {
    "literals": (
        {
            "start_anchor": ["[a]", "[assistant]"],
            "fields": {
                "thinking": {"open": "<think>", "close": "</think>"},
                "tool_calls": {
                    "open": ["<call>", "<call>:"],
                    "close": "</call>",
                    "repeats": True,
                    "content": "json",
                    "transform": {"type": "function", "function": "{content}"},
                },
                "content": {"close": ["<end>", "<e"]},
            },
        },
        ["<think>", "</think>", "<call>", ":", '{"name": "f", "arguments": {"a": 1}}', "</call>", "<end>", "<e"],
    ),
    "patterns": (
        {
            "start_anchor": "[a]",
            "defaults": {"role": "assistant", "lang": "en"},
            "fields": {
                "reasoning_content": {"open_pattern": r"\A\s*<t>", "close_pattern": r"\s*</t>\s*"},
                "tool_calls": {
                    "open_pattern": r"\s*<f=(?P<name>\w+)>",
                    "close_pattern": "</f>",
                    "repeats": True,
                    "content": "xml-inline",
                    "content_args": {"tag_pattern": "<(?P<key>[pq])>(?P<value>.*?)</[pq]>", "merge_duplicates": True},
                    "transform": CALL,
                },
                "lang": {"open": "<lang>", "close": "\n"},
                "content": {"close_pattern": r"\s*(?:<end>|$)"},
            },
        },
        ["<t>", "</t>", "<f=", "go>", "<p>", "</p>", "<q>1</q>", "</f>", "<lang>", "<end>", "x$"],
    ),
    "values": (
        {
            "start_anchor_pattern": r"\[a\]+",
            "fields": {
                "count": {"open": "#", "close": ";", "content": "int"},
                "score": {"open": "~", "close": ";", "content": "float"},
                "sure": {"open": "?", "close": ";", "content": "bool"},
                "facts": {"open": "{", "close": "}", "content": "kv-lines", "content_args": {"line_sep": ","}},
                "tool_calls": {
                    "open_pattern": r"(?=\[\w)",
                    "close_pattern": r"(?<=\])",
                    "content": "python-call-list",
                    "transform_each": True,
                    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
                },
                "notes": {"open": "<n>", "close": "</n>", "repeats": True, "join": "\n"},
                "said": {"open": "<s>", "close": "</s>", "repeats": True},
                "content": {},
            },
        },
        ["#", "1", ";", "~2.5;", "? true;", "{", "a:b", ",", "}", "[f(a=1)]", "[g('x')]", "<n>", "</n>", "<s>", "</s>"],
    ),
    "dialect": (
        {
            "start_anchor": "<a>",
            "fields": {
                "thinking": {"open": "<|c>", "close": "<c|>", "content_args": {"strip": False}},
                "tool_calls": {
                    "open_pattern": r"<\|t>call:(?P<name>\w+)",
                    "close": "<t|>",
                    "repeats": True,
                    "content": "json",
                    "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
                    "transform": CALL,
                },
                "content": {"close": ["<turn|>", "<|t_response>"]},
            },
        },
        ["<|c>", "<c|>", "<|t>call:f", "<|t>", "{a:", '<|"|>', "1}", "}", "<t|>", "<turn|>", '{a:<|"|>x, y:<|"|>,b:2}'],
    ),
}
TEXTS = ["a", " ", "\n", "<", "</", "hi "]
SAMPLES = st.sampled_from(sorted(SPECS)).flatmap(
    lambda name: st.tuples(
        st.just(name), st.lists(st.sampled_from(SPECS[name][1] + TEXTS), max_size=14).map("".join), st.booleans()
    )
)


def begin(name, *, prompted):
    """The prompt of a reply, which may have its beginning."""
    anchor = SPECS[name][0].get("start_anchor", "[a]")
    anchor = anchor if isinstance(anchor, str) else anchor[0]
    return f"{SPECS[name][1][0]}{anchor}old{anchor}" + (SPECS[name][1][0] if prompted else "")


def run(name, pieces, prompt=""):
    parser = ResponseParser(ResponseTemplate(SPECS[name][0]), prompt)
    return [part for piece in pieces for part in parser.feed(piece)] + parser.end()


@given(sample=SAMPLES, places=st.lists(st.integers(0, 200), max_size=8))
@example(("literals", "<call><e<end>", False), [1, 2])
@example(("patterns", "a $\n<end>", False), [4])
def test_any_pieces_give_the_same(sample, places):
    name, reply, prompted = sample
    prompt, template = begin(name, prompted=prompted), ResponseTemplate(SPECS[name][0])
    places = [0, *sorted(min(place, len(reply)) for place in places), len(reply)]
    whole = assembled(template, run(name, [reply], prompt))
    assert assembled(template, run(name, [reply[a:b] for a, b in pairwise(places)], prompt)) == whole
    assert assembled(template, run(name, list(reply), prompt)) == whole


@settings(deadline=None)
@given(sample=SAMPLES)
def test_messages_are_those_of_transformers(sample):
    """Where it can tell: it raises an error for a broken value, and of two texts of a field it keeps the last."""
    reference = pytest.importorskip("transformers.utils.chat_parsing")
    name, reply, _ = sample
    spec, template, prompt = SPECS[name][0], ResponseTemplate(SPECS[name][0]), begin(name, prompted=False)
    parser = reference.ResponseParser(spec, prefix=prompt)
    try:
        events = parser.feed(reply)
        expected, more = parser.finalize()
    except ValueError:
        return
    closed = [event["field"] for event in events + more if event["type"] == "region_close"]
    single = {field.name for field in template.fields.values() if field.streams and field.join is None}
    if any(closed.count(field) > 1 for field in single) or any(
        not isinstance(v, (str, list)) for v in expected.values()
    ):
        expected = {key: value for key, value in expected.items() if closed.count(key) < 2}
    found = assembled(template, run(name, [reply], prompt))
    for key, value in expected.items():
        if key != "notes":  # transformers puts a separator before an empty text
            assert found.get(key) == value, key


@given(st.text("[]()f=,'\"\\1-.eE{}: \nTrueNoneu0d8", max_size=40))
@example("[f(a=[1, 2.5e3], b={'x': None})]")
@example("[f(a='\\ud83d\\ude00')]")
@example("[f(a=9007199254740993)]")
def test_call_lists_are_those_of_transformers(text):
    reference = pytest.importorskip("transformers.utils.chat_parsing.content_parsers")
    outcomes = []
    for read in (parse, lambda kind, text, args: reference.parse_content(text, kind, args)):
        outcomes.append(None)
        with suppress(ValueError):
            outcomes[-1] = read("python-call-list", text, {})
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("name", "reply", "shown"),
    [
        ("literals", "a<thin<think>b</thx</think>", ["a", "", "", "", "", "", "<thin"]),
        ("literals", "<e", ["", ""]),
        ("literals", "<think> b  c </think>", [*[""] * 8, "b", "", "", "  c"]),
        ("patterns", "a \n<x", ["a", "", "", "", " \n<x"]),
        ("dialect", "a<|t>call b", ["a", *[""] * 8, "<|t>call", " b"]),
    ],
)
def test_half_a_delimiter_is_not_shown(name, reply, shown):
    parser = ResponseParser(ResponseTemplate(SPECS[name][0]))
    found = ["".join(part.text for part in parser.feed(character)) for character in reply]
    assert found[: len(shown)] == shown


# ---- bad templates ---------------------------------------------------------------------------------------------------

FIELD = {"open": "<a>", "close": "</a>"}


def spec(field=None, **more):
    return {"start_anchor": "x", "fields": {"content": FIELD if field is None else field}, **more}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (5, "response_template must be an object, not 5"),
        ([], "must be an object"),
        ({}, "fields must be an object"),
        (spec(version=2), "version 2"),
        (spec(more=1), "unknown key 'more'"),
        (spec(defaults=[]), "defaults must be an object"),
        (spec(fields={}), "fields must be an object with 1 to 100"),
        (spec(fields={str(i): FIELD for i in range(101)}), "fields must be an object with 1 to 100"),
        ({"fields": {"content": {}}}, "neither start_anchor nor start_anchor_pattern"),
        (spec(start_anchor_pattern="x"), "both start_anchor and start_anchor_pattern"),
        (spec(start_anchor=""), "start_anchor must be a text"),
        (spec(start_anchor=[]), "start_anchor must be a text"),
        (spec(start_anchor=[1]), "start_anchor must be a text"),
        (spec(fields={"a": {}, "b": {}}), "a and b have no open"),
        (spec([]), "content must be an object"),
        (spec({"opens": "a"}), "content has the unknown key 'opens'"),
        (spec({"open": ""}), "content: open must be a text"),
        (spec({"open": "a", "open_pattern": "a"}), "both open and open_pattern"),
        (spec({"open_pattern": "("}), "open_pattern is no regular expression"),
        (spec({"open_pattern": 1}), "open_pattern must be a text"),
        (spec({"open_pattern": "(?P<name>a)"}), "named groups, which need a transform"),
        (spec({"content": "yaml"}), "unknown content 'yaml'"),
        (spec({"content": []}), "unknown content"),
        (spec({"repeats": "yes"}), "repeats must be true or false"),
        (spec({"join": "a"}), "join must be a text, and needs repeats"),
        (spec({"transform_each": True}), "transform_each needs a transform"),
        (spec({"transform": "a {content}"}), "has a placeholder in it"),
        (spec({"content_args": 1}), "content_args must be an object"),
        (spec({"content": "xml-inline"}), "tag_pattern must be a text"),
        (spec({"content": "xml-inline", "content_args": {"tag_pattern": "a"}}), "needs a group named"),
        (
            spec({"content": "json", "content_args": {"string_delims": [["a"]]}}),
            "string_delims must be a list of pairs",
        ),
        (spec({"content": "kv-lines", "content_args": {"kv_sep": ""}}), "kv_sep must be a text"),
        (spec({"content": "kv-lines", "content_args": {"value_parser": {"name": "x"}}}), "value_parser must be"),
    ],
    ids=str,
)
def test_templates_that_are_none(given, cause):
    with pytest.raises(TokenizerError, match=cause) as error:
        ResponseTemplate(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    ["((((a{1000}){1000}){1000}){1000}){1000}", "(?R)", "(?:abc){e<=9}", "a" * 5000, "(a)(?1)", "(?P<x>a)(?&x)"],
    ids=lambda pattern: pattern[:40],
)
def test_patterns_that_take_all_memory_are_refused(pattern):
    with pytest.raises(TokenizerError, match="is no pattern that a template needs"):
        ResponseTemplate(spec({"open_pattern": pattern}))


def test_patterns_that_take_for_ever_end():
    template = ResponseTemplate(spec({"open_pattern": r"(?:a|a|aa)+\d"}))
    parser, start = ResponseParser(template), time.monotonic()
    with pytest.raises(TokenizerError, match="open_pattern takes more than 1 s"):
        parser.feed("a" * 50 + "b")
    assert time.monotonic() - start < 30


def test_values_that_are_too_deep_are_text():
    deep = "[" * 100_000
    reply = f'<call>{{"name": "f", "arguments": {deep}</call>'
    assert assembled(ResponseTemplate(SPECS["literals"][0]), run("literals", [reply])) == {"content": reply}
