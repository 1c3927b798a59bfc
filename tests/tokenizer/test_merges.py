"""Byte-pair encoding that was taken apart gives the ids that the tokenizers library gives."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import _core
from fastllm.tokenizer import ready
from fastllm.tokenizer._library import LibraryTokenizer
from fastllm.tokenizer._merges import Parted
from fastllm.tokenizer._settings import Settings
from fastllm.weights.source import open_source
from helpers import vocabularies
from helpers.data import ROOT

hf = pytest.importorskip("tokenizers")

ALPHABET = hf.pre_tokenizers.ByteLevel.alphabet()


def both(library):
    """A tokenizer of the library, and the one that its parts make."""
    plain = LibraryTokenizer(library, Settings({}))
    made = ready.load(ready.dump(plain))
    assert made._merges is not None
    return plain, made


def bpe(vocabulary, merges, **options):
    """A tokenizer that splits at spaces, over the letters a to d."""
    library = hf.Tokenizer(hf.models.BPE(vocabulary, merges, **options))
    library.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [hf.pre_tokenizers.WhitespaceSplit(), hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = hf.decoders.ByteLevel()
    return library


@st.composite
def vocabularies_of_merges(draw):
    """A vocabulary and merges, in any order: also such as never come to pass, or make a token in two ways."""
    words, merges = list("abcd"), []
    for _ in range(draw(st.integers(0, 14))):
        pair = draw(st.sampled_from(words)), draw(st.sampled_from(words))
        if len("".join(pair)) <= 8 and pair not in merges:
            merges.append(pair)
            words = list(dict.fromkeys([*words, "".join(pair)]))
    words += [letter for letter in ALPHABET if letter not in words]
    ids = draw(st.permutations(range(len(words)))) if draw(st.booleans()) else [3 * i for i in range(len(words))]
    return dict(zip(words, ids, strict=True)), draw(st.permutations(merges))


@given(vocabularies_of_merges(), st.booleans(), st.lists(st.text("abcd é", max_size=40), max_size=6))
def test_random_merges(made, whole, texts):
    plain, taken_apart = both(bpe(*made, ignore_merges=whole))
    for text in texts:
        assert taken_apart.encode(text) == plain.encode(text)
    for word in (*made[0], "none", ""):
        assert taken_apart.token_id(word) == plain.token_id(word)
    for i in range(plain.size + 2):
        assert taken_apart._word(i) == plain._word(i)


def test_long_words():
    """Time grows with the length of a word, not with its square: a million letters take a second."""
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("a", "b"), ("aaaa", "b")]
    words = dict.fromkeys([*ALPHABET, *("".join(pair) for pair in merges)])
    plain, taken_apart = both(bpe({word: i for i, word in enumerate(words)}, merges))
    for text in ("a" * 20_001, "aab" * 5_000, "a" * 9 + "b"):
        assert taken_apart.encode(text) == plain.encode(text)
    assert len(taken_apart.encode("a" * (1 << 20))) == 1 << 17


def test_unknown_characters_and_bytes():
    """As in vocabularies of SentencePiece that were converted to byte-pair encoding."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc", "ab", "abc"]
    for known, options in ((words, {"byte_fallback": True}), ([w for w in words if w[:3] != "<0x"], {})):
        for fuse in (False, True):
            vocabulary = {word: i for i, word in enumerate(known)}
            model = hf.models.BPE(vocabulary, [("a", "b"), ("ab", "c")], unk_token="<unk>", fuse_unk=fuse, **options)
            plain, taken_apart = both(hf.Tokenizer(model))
            for text in ("abc", "éabc漢漢a", "xx ab", "<unk>abc<0x41>"):
                assert taken_apart.encode(text) == plain.encode(text)


def test_added_tokens():
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.add_special_tokens([hf.AddedToken("<s>"), hf.AddedToken("ing", lstrip=True), hf.AddedToken("e")])
    library.add_tokens([hf.AddedToken("Once upon", single_word=True), hf.AddedToken("\ttab", normalized=False)])
    plain, taken_apart = both(library)
    for text in ("Once upon a time", "Once uponing <s>eee\ttab", "thing ing<s>"):
        for special in (False, True):
            assert taken_apart.encode(text, special=special) == plain.encode(text, special=special)


@pytest.mark.parametrize(
    "options",
    [
        {"end_of_word_suffix": "</w>"},
        {"continuing_subword_prefix": "##"},
        {"dropout": 0.5},
        {"ignore_merges": True},  # without an alphabet of bytes
    ],
)
def test_other_kinds_stay_whole(options):
    library = hf.Tokenizer(hf.models.BPE({"a": 0, "b": 1, "ab": 2}, [], **options))
    assert Parted.of(library.to_str(), ALPHABET) is None
    plain = LibraryTokenizer(library, Settings({}))
    if "dropout" not in options:
        assert ready.load(ready.dump(plain)).encode("aab") == plain.encode("aab")


def test_tables_that_do_not_fit():
    tables = list(_core.merge_tables({"a": 0, "b": 2, "ab": 1}, [("a", "b")]))
    assert tables[0] == b"aabb"
    found = _core.Merges(*tables, whole=False)
    assert (found.size, found.token(1), found.find("ab"), found.find("c")) == (3, b"ab", 1, None)
    assert found.encode([0, 2, 0, 2], [0, 0, 1, 2]) == [1, 0, 2]
    with pytest.raises(IndexError):
        found.token(3)
    for i, wrong in enumerate((b"aab", tables[1][::-1], tables[2] * 3, tables[3] * 3)):
        with pytest.raises(ValueError, match=r"^its t"):
            _core.Merges(*tables[:i], wrong, *tables[i + 1 :], whole=False)
    for symbols, words in (([0, 1], [0]), ([0], [])):
        with pytest.raises(ValueError, match="no word"):
            found.encode(symbols, words)
    with pytest.raises(KeyError):
        _core.merge_tables({"a": 0}, [("a", "a")])


WEIGHTS = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nowhere"))


@pytest.mark.parametrize("path", sorted(WEIGHTS.rglob("*.gguf")), ids=lambda path: path.stem)
def test_real_vocabularies(path):
    plain = open_source(path, None).tokenizer
    made = ready.load(ready.dump(plain))
    for line in (*vocabularies.lines(400), *(file.read_text("utf-8")[:5000] for file in ROOT.glob("*.md"))):
        assert made.encode(line) == plain.encode(line)
