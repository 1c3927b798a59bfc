"""Replies are told apart into thinking and text, whatever pieces they come in."""

import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.chat import Thinking, markers
from fastllm.tokenizer import from_blob

PAIR = ("<think>", "</think>")
replies = st.lists(st.sampled_from(["<think>", "</think>", "<th", "</", "ink>", "a", " b", "\n", "\n\n", "<"])).map(
    "".join
)


def split(pieces, prompt="", said="", pair=PAIR):
    """The thinking and the text; None for a kind that never came."""
    thinking = Thinking(pair, prompt, said)
    parts = [part for piece in pieces for part in thinking.push(piece)] + thinking.end()
    assert all(text for _, text in parts)
    return tuple("".join(t for k, t in parts if k == kind) for kind in ("thinking", "text"))


def plain(reply, *, opened):
    """The same for a whole reply, by a regular expression."""
    match = re.fullmatch(r"(?s)\s*<think>\s*(.*)" if not opened else r"(?s)\s*(.*)", reply)
    if match is None:
        return "", reply
    thoughts, closed, text = match[1].partition("</think>")
    return (thoughts.rstrip(), text.lstrip()) if closed else (thoughts, "")


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
    assert split(list(reply), prompt + said, said) == expected


def test_what_is_held_back():
    thinking = Thinking(PAIR)
    pieces = ["\n<th", "ink>", "\nwell ", "<", "b \n</thi", "nk>", "\n", "ok", " </think>"]
    found = [thinking.push(piece) for piece in pieces]
    assert found == [
        [],
        [],
        [("thinking", "well")],
        [],
        [("thinking", " <b")],
        [],
        [],
        [("text", "ok")],
        [("text", " </think>")],
    ]


def test_a_model_that_does_not_think():
    assert split(["<think>", "a", "</think>"], pair=None) == ("", "<think>a</think>")


def tokenizer(template=None, added=(), special=()):
    words = from_blob("letters", b"<unk>\na")
    return SimpleNamespace(chat_template=template, tool_template=None, added=added, special=[*words.special, *special])


def test_markers():
    assert markers(tokenizer()) is None
    assert markers(tokenizer("{{ content.split('</think>')[-1] }}")) == PAIR
    assert markers(tokenizer(added=["<tool_call>", "<seed:think>", "</seed:think>"])) == (
        "<seed:think>",
        "</seed:think>",
    )
    assert markers(tokenizer("...</think>", special=PAIR)) is None  # special tokens are not shown
