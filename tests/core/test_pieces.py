"""The loops over a vocabulary that are compiled: protobuf messages, llama2.c's words, names of bytes."""

import contextlib
import re
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import _core
from fastllm.errors import TokenizerError

Field = tuple[int, int | bytes]

NUMBERS = st.integers(1, 2**29 - 1)
FIELDS = st.lists(st.tuples(NUMBERS, st.integers(0, 2**64 - 1) | st.binary(max_size=200)))
SCORES = st.floats(width=32, allow_nan=False)


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def message(fields: list[Field]) -> bytes:
    """A protobuf message: wire type 0 is a varint, 2 has a length.

    https://protobuf.dev/programming-guides/encoding
    """
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


@given(FIELDS)
def test_fields(fields: list[Field]) -> None:
    assert _core.proto_fields(message(fields)) == fields


def test_fields_of_fixed_size() -> None:
    data = varint(7 << 3 | 5) + b"abcd" + varint(8 << 3 | 1) + b"12345678" + message([(1, 5)])
    assert _core.proto_fields(data) == [(7, b"abcd"), (8, b"12345678"), (1, 5)]


@given(FIELDS, st.data())
def test_cut_fields(fields: list[Field], data: st.DataObject) -> None:
    """A message that is cut is refused, unless it is cut between two fields."""
    whole = message(fields)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    ends = {len(message(fields[:n])): n for n in range(len(fields) + 1)}
    if len(cut) in ends:
        assert _core.proto_fields(cut) == fields[: ends[len(cut)]]
    else:
        with pytest.raises(TokenizerError, match="truncated"):
            _core.proto_fields(cut)


@pytest.mark.parametrize("data", [b"\x0b", b"\x0b\x01", b"\x08" + b"\xff" * 10 + b"\x01", b"\x0a\xff\xff\xff\xff\x0f"])
def test_no_message(data: bytes) -> None:
    """Wire types of groups, a varint that does not end, a length past the end of the message."""
    with pytest.raises(TokenizerError):
        _core.proto_fields(data)


@pytest.mark.parametrize("read", [_core.proto_fields, _core.proto_pieces, _core.llama2c_words])
@given(data=st.binary(max_size=100))
def test_any_bytes(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(TokenizerError):
        read(data)


@given(st.lists(st.tuples(st.binary(max_size=20), st.none() | st.integers(0, 300), SCORES)), FIELDS)
def test_pieces(pieces: list[tuple[bytes, int | None, float]], others: list[Field]) -> None:
    entries: list[Field] = []
    for word, kind, score in pieces:
        entry = message([(1, word)]) + varint(2 << 3 | 5) + struct.pack("<f", score)
        entries.append((1, entry if kind is None else entry + message([(3, kind)])))
    others = [(number + 1, value) for number, value in others]
    words, types, rest = _core.proto_pieces(message(entries + others))
    assert words == [word for word, *_ in pieces]
    assert types == [1 if kind is None else kind for _, kind, _ in pieces]
    assert rest == others


@given(st.lists(st.tuples(st.binary(max_size=8), SCORES)))
def test_written_pieces(pieces: list[tuple[bytes, float]]) -> None:
    """Each text occurs once: a piece that is empty, a duplicate or no UTF-8 becomes a control piece with a new name."""
    words, scores = [word for word, _ in pieces], [score for _, score in pieces]
    fields = _core.proto_fields(_core.write_proto_pieces(words, scores, [1] * len(words)))
    assert [number for number, _ in fields] == [1] * len(words)
    seen: set[object] = set()
    for word, score, (_, entry) in zip(words, scores, fields, strict=True):
        assert isinstance(entry, bytes)
        piece = dict(_core.proto_fields(entry))
        is_text = word.decode(errors="ignore").encode() == word
        if word and word not in seen and is_text:
            assert (piece[1], piece[3]) == (word, 1)
        else:
            assert str(piece[1]).startswith("b'<unused")
            assert piece[3] == 3
        assert piece[2] == struct.pack("<f", score)
        seen.add(piece[1])


@given(st.lists(st.tuples(st.binary(max_size=20), SCORES)), st.data())
def test_llama2c_words(pairs: list[tuple[bytes, float]], data: st.DataObject) -> None:
    parts = [struct.pack("<i", 20)] + [struct.pack("<fi", score, len(word)) + word for word, score in pairs]
    words, scores = _core.llama2c_words(b"".join(parts))
    assert list(zip(words, scores, strict=True)) == pairs
    whole = b"".join(parts)
    cut = whole[: data.draw(st.integers(4, len(whole)))]
    ends = {len(b"".join(parts[: n + 1])): n for n in range(len(pairs) + 1)}
    if len(cut) in ends:
        assert _core.llama2c_words(cut)[0] == words[: ends[len(cut)]]
    else:
        with pytest.raises(TokenizerError, match="truncated"):
            _core.llama2c_words(cut)


@given(
    st.lists(st.from_regex(rb"\A<0x[0-9A-Fa-f]{2}>\Z") | st.from_regex(rb"<0x..>|<0x[0-9a-f]>") | st.binary(max_size=7))
)
def test_byte_names(words: list[bytes]) -> None:
    found = ((i, re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", word)) for i, word in enumerate(words))
    assert _core.byte_names(words) == {i: int(match[1], 16) for i, match in found if match}
