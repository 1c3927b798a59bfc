"""What ends a text: strings, patterns, ids and functions, whatever pieces the text comes in."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError
from fastllm.decoding import Stops

VOCABULARY = 1000
PATTERNS = [
    r"\n\n+",
    r"b|abc",
    r"\bend\b",
    r"end$",
    r"(?m)^a",
    r"\Aab",
    r"a(?!b)",
    r"(?<=ab)c",
    r"(?i)user ?\w*:",
    r"a.*b",
    r"(?s)b.*",
    r"[.!?]\s",
    r"(a)\1",
    r"(?=ab)",
    r"a{2,70}b",
]
letters = st.text("ab\n c.endUser:", max_size=80)
stop_lists = st.lists(
    st.one_of(st.text("abcend\n", min_size=1, max_size=6), st.sampled_from([re.compile(p) for p in PATTERNS])),
    max_size=3,
)


def scanned(stop, pieces):
    """The text that is passed on, and whether it was ended."""
    scan = Stops(stop, VOCABULARY).scan()
    text = "".join(scan.push(piece) for piece in pieces)
    return text + scan.end(), scan.found


def cut_at(text, places):
    places = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


@given(text=letters, repeat=st.integers(1, 4), stop=stop_lists, places=st.lists(st.integers(0, 320), max_size=9))
def test_any_pieces_give_the_same(text, repeat, stop, places):
    text *= repeat
    whole = scanned(stop, [text])
    assert scanned(stop, cut_at(text, places)) == whole
    assert scanned(stop, list(text)) == whole
    assert text.startswith(whole[0])
    assert whole[1] or whole[0] == text


@given(text=letters, strings=st.lists(st.text("ab\n end", min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_string_that_is_complete_first(text, strings):
    ends = [min((n for n in range(len(text) + 1) if text[:n].endswith(s)), default=None) for s in strings]
    complete = [(n, n - len(s)) for n, s in zip(ends, strings, strict=True) if n is not None]
    expected = (text[: min(complete)[1]], True) if complete else (text, False)
    assert scanned(strings, [text]) == expected


@given(text=letters, pattern=st.sampled_from([r"\n\n", r"[.!?]\s", r"end", r"(?i)user:", r"c(?=a)", r"\bend\b"]))
def test_a_pattern_that_cannot_be_mistaken(text, pattern):
    """Where no match of a pattern overlaps another one, the text ends where a search in all of it says."""
    match = re.compile(pattern).search(text)
    assert scanned(re.compile(pattern), list(text)) == ((text[: match.start()], True) if match else (text, False))


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (r"\bend\b", "ending, the end.", "ending, the "),  # no match as long as a letter may follow
        (r"\bend\b", "the end", "the "),  # decided when the text is over
        (r"User:.*", "so\nUser: hello\nmore", "so\n"),
        (r"User:.*", "so User: " + "x" * 500, "so "),  # a match that grows on and on
        (r"a\d+b", "xa" + "1" * 40 + "b", "x"),
        (r"a\d+b", "xa" + "1" * 400 + "b", "xa" + "1" * 400 + "b"),  # longer than a match may be
        (r"a\d{1,500}b", "xa" + "1" * 400 + "b", "x"),  # but not if the pattern sets the bound
        (r"\Ab", "x" * 300 + "b", "x" * 300 + "b"),  # the text begins once
        (r"(?<=x)b", "x" * 300 + "b", "x" * 300),
    ],
)
def test_matches(stop, text, expected):
    for pieces in ([text], list(text)):
        assert scanned(re.compile(stop), pieces) == (expected, expected != text)


def test_what_is_held_back():
    """No more than may become a string or a match; nothing where neither can."""
    scan = Stops(["<end>"], VOCABULARY).scan()
    assert [scan.push(piece) for piece in ("a", "<", "b<e", "x", "<end", ">", "b")] == [
        "a",
        "",
        "<b",
        "<ex",
        "",
        "",
        "",
    ]
    assert scan.found
    assert scan.end() == ""
    scan = Stops([re.compile(r"\d\d:")], VOCABULARY).scan()
    assert [scan.push(piece) for piece in ("abcdef", "g", "12", ":")] == ["abc", "d", "ef", "g"]
    assert not scan.found  # another digit or letter may follow the match
    assert scan.end() == ""
    assert scan.found


def test_functions_are_given_the_text_so_far():
    seen = []

    def five(text):
        seen.append(text)
        return np.bool_(len(text) >= 5)

    assert scanned([five, "zz"], ["ab", "", "cz", "dz", "e"]) == ("abczdz", True)
    assert seen == ["ab", "abcz", "abczdz"]
    assert scanned([five, "zz"], ["ab", "czz", "z"]) == ("abc", True)


def test_a_function_that_raises():
    def fail(text):
        raise KeyError(text)

    with pytest.raises(KeyError, match="ab"):
        scanned(fail, ["ab"])


@pytest.mark.parametrize("stop", [None, (), [], set(), iter(())], ids=repr)
def test_none(stop):
    stops = Stops(stop, VOCABULARY)
    assert not stops
    assert stops.tokens == ()
    assert scanned(stop, ["ab", "c"]) == ("abc", False)


def test_ids():
    stops = Stops([5, np.int64(7), "a", np.uint8(0)], VOCABULARY)
    assert stops.tokens == (5, 7, 0)
    assert [type(token) for token in stops.tokens] == [int] * 3
    assert stops
    assert not Stops(3, VOCABULARY)
    assert Stops(np.array([3, 4]), VOCABULARY).tokens == (3, 4)


def test_one_of_each():
    for one in ("a", re.compile("a"), lambda text: "a" in text):
        assert scanned(one, ["xya"])[1]
        assert scanned((one,), ["xya"])[1]
        assert scanned((one for one in (one,)), ["xya"])[1]
        assert Stops(one, VOCABULARY)


@pytest.mark.parametrize(
    ("stop", "cause"),
    [
        ("", "empty string"),
        (["a", ""], "empty string"),
        (-1, "-1, which is no token id: the vocabulary has 1,000"),
        (1000, "1000, which is no token id"),
        ([True], "not True"),
        (False, "not False"),
        (1.5, "not 1.5"),
        (b"a", "not b'a'"),
        ([b"a"], "not b'a'"),
        ({"a": 1}, "not {'a': 1}"),
        ([["a"]], r"not \['a'\]"),
        (re.compile(b"a"), "not re.compile"),
        (re.compile("a*"), "'a\\*', which matches an empty text"),
        (re.compile("$"), "matches an empty text"),
        (["a", None], "not None"),
        (object(), "not <object"),
    ],
    ids=repr,
)
def test_what_stops_nothing(stop, cause):
    with pytest.raises(OptionError, match="stop .*" + cause) as error:
        Stops(stop, VOCABULARY)
    assert "\n" not in str(error.value)
