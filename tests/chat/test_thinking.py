"""Replies are told apart into thinking and text, whatever pieces they come in."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.chat import ResponseParser, reply_format
from helpers.replies import tokenizer

pytest.importorskip("regex")


THINKS = reply_format(tokenizer("</think>")).template
replies = st.lists(st.sampled_from(["<think>", "</think>", "<th", "</", "ink>", "a", " b", "\n", "\n\n", "<"])).map(
    "".join
)


def split(pieces, prompt="", said=""):
    """The thinking and the text of a reply."""
    parser = ResponseParser(THINKS, prompt, said)
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.end()
    assert all(part.text for part in parts)
    return tuple("".join(part.text for part in parts if part.field == name) for name in ("thinking", "content"))


def plain(reply, *, opened):
    """The same for a whole reply, by a regular expression."""
    match = re.fullmatch(r"(?s)\s*<think>\s*(.*)" if not opened else r"(?s)\s*(.*)", reply)
    if match is None:
        return "", reply
    thoughts, _, text = match[1].partition("</think>")
    return thoughts.rstrip(), text.lstrip()


@given(reply=replies, opened=st.booleans(), places=st.lists(st.integers(0, 60), max_size=6))
def test_any_pieces_give_the_same(reply, opened, places):
    prompt = "<think>user\nassistant\n" + "<think>\n" * opened
    places = [0, *sorted(min(place, len(reply)) for place in places), len(reply)]
    expected = plain(reply, opened=opened)
    assert split([reply], prompt) == expected
    assert split([reply[a:b] for a, b in pairwise(places)], prompt) == expected
    assert split(list(reply), prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "said", "reply", "expected"),
    [
        ("a\n<think>\n\n</think>\n\n", "", "\n<think>b</think>c", ("", "<think>b</think>c")),  # told not to think
        ("a\n", "<think>one", " two\n</think>\nb", (" two", "b")),
        ("a\n<think>\n", "one", " two\n</think>\nb", (" two", "b")),
        ("a\n", "<think>one</think>b", " c<think>", ("", " c<think>")),
        ("a\n", "b", " c</think>", ("", " c</think>")),
        ("a\n", "", "b <think>c</think>", ("", "b <think>c</think>")),
        ("a\n", "<think>one</th", "ink>b", ("", "b")),
    ],
)
def test_where_the_prompt_leaves_off(prompt, said, reply, expected):
    assert split(list(reply), prompt, said) == expected


def test_what_is_held_back():
    parser = ResponseParser(THINKS)
    pieces = ["\n<th", "ink>", "\nwell ", "<", "b \n</thi", "nk>", "\n", "ok", " </think>"]
    found = [[(part.field, part.text) for part in parser.feed(piece)] for piece in pieces]
    assert found == [
        [],
        [],
        [("thinking", "well")],
        [],
        [("thinking", " <b")],
        [],
        [],
        [("content", "ok")],
        [("content", " </think>")],
    ]


def test_a_model_that_does_not_think():
    assert reply_format(tokenizer()) is None
    assert reply_format(tokenizer("{{ messages }}", added=["<b>"])) is None


def test_markers():
    assert reply_format(tokenizer("{{ content.split('</think>')[-1] }}")).thinking == ("<think>", "</think>")
    found = reply_format(tokenizer(added=["<seed:think>", "</seed:think>"]))
    assert found.thinking == ("<seed:think>", "</seed:think>")
    assert reply_format(tokenizer(special=["[THINK]", "[/THINK]"])).thinking == ("[THINK]", "[/THINK]")
