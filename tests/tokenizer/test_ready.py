"""The ready form of a tokenizer makes one that does the same, without the loops over the vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import TokenizerError
from fastllm.tokenizer import from_blob, ready
from fastllm.tokenizer._tables import Computed, Joined
from fastllm.tokenizer.kinds import pack
from fastllm.tokenizer.search import read
from helpers import vocabularies, writers
from helpers.data import BUILT_IN

LINES = vocabularies.lines(120)


def _json(folder):
    return read_all(folder, vocabularies.llama_json(folder).get_vocab_size(), "tokenizer.json")


def read_all(folder, size, name):
    return read(folder / name, size)


def _pieces(folder):
    return read_all(folder, vocabularies.sentence_pieces(folder).vocab_size(), "tokenizer.model")


def _word_pieces(folder):
    words = vocabularies.by_id(vocabularies.word_pieces(lower=True))
    return from_blob("wordpiece", pack({"vocab.txt": "\n".join(words).encode(), "tokenizer_config.json": b"{}"}))


def _gguf_pieces(folder):
    return from_blob("gguf", vocabularies.gguf_pieces(vocabularies.sentence_pieces(folder), prefix=True))


def _gguf_bytes(folder):
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    more = {"add_bos_token": True, "eot_token_id": 3}
    return from_blob("gguf", vocabularies.gguf_bytes(library, "gpt-2", **more))


def _llama2c(folder):
    return from_blob("llama2.c", writers.tokenizer_bin(writers.tokenizer_words()))


def _unigram(folder):
    vocabularies.unigram(folder / "tokenizer.model")
    return read_all(folder, 1000, "tokenizer.model")


MADE = [_json, _pieces, _word_pieces, _gguf_pieces, _gguf_bytes, _llama2c, _unigram]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_it_does_the_same(tmp_path, make):
    plain = make(tmp_path)
    made = ready.load(memoryview(ready.dump(plain)))
    for name in (*ready._COMMON, "pair"):
        found, wanted = getattr(made, name), getattr(plain, name)
        assert (list(found) if name in ("special", "added") else found) == wanted, name
    for special in (False, True):
        for start in (False, True):
            for line in LINES:
                ids = plain.encode(line, special=special, start=start)
                assert made.encode(line, special=special, start=start) == ids
    assert list(made.stream().pieces) == list(plain.stream().pieces)
    for previous in (None, 5):
        ours, theirs = made.stream(previous), plain.stream(previous)
        for token in range(plain.size + 2):
            assert ours.push(token) == theirs.push(token)
        assert ours.flush() == theirs.flush()
    words = [bytes(piece).decode("utf-8", "replace") for piece in plain.stream().pieces]
    for word in {*words, *plain.special, *plain.added, "", "nothing has this", "e"}:
        assert made.token_id(word) == plain.token_id(word), word
    assert ready.dump(made) == ready.dump(plain), "and it can be written again"


def test_other_kinds_have_none():
    assert ready.dump(from_blob("characters", b"abc")) == b""


def test_damaged_forms_are_refused(tmp_path):
    whole = ready.dump(_gguf_pieces(tmp_path))
    length = int.from_bytes(whole[:4], "little")
    for broken in (b"", whole[:3], whole[:100], whole[:4] + b"{}" + bytes(length), bytes(len(whole))):
        with pytest.raises(TokenizerError, match=r"^its ready form is damaged"):
            ready.load(broken)
    library = ready.dump(_gguf_bytes(tmp_path))
    with pytest.raises(TokenizerError, match=r"^its ready form is damaged"):
        ready.load(library[:-1])
    with pytest.raises(TokenizerError, match="refuses it"):
        ready.load(library.replace(b'"BPE"', b'"PBE"'))


@given(st.lists(st.binary(max_size=4)), st.binary(min_size=1, max_size=4))
def test_joined(tokens, other):
    joined = Joined(*Joined.parts(tokens))
    assert list(joined) == tokens
    assert len(joined) == len(tokens)
    for token in {*filter(None, tokens), other}:
        assert joined.find(token) == (tokens.index(token) if token in tokens else None)
    with pytest.raises(IndexError):
        joined[len(tokens)]


def test_computed():
    asked = []
    pieces = Computed(3, lambda i: asked.append(i) or bytes([i]))
    assert (pieces[1], pieces[1], len(pieces)) == (b"\1", b"\1", 3)
    assert asked == [1]
    assert list(pieces) == [b"\0", b"\1", b"\2"]
    with pytest.raises(IndexError):
        pieces[3]


def test_a_converted_file_has_none():
    """It is read by later versions too."""
    from fastllm.weights import store

    assert not store.open_file(BUILT_IN).ready
