"""For any chain of the tokenizers library's decoders, our streamed pieces join to its decoded text."""

import json

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models

from fastllm import TokenizerError
from fastllm.tokenizer import decode, from_blob

SPECIAL = ["<s>", "</s>"]
WORDS = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in (0x20, 0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF, 0x0A))]
WORDS += [
    "\u2581",
    "\u2581\u2581",
    "\u2581the",
    "the",
    "##ing",
    "##",
    "ing",
    "i</w>",
    "</w>",
    "a</w></w>",
    "|",
    "<pad>",
]
WORDS += [" ", "  ", " a ", "a", "ab", "abab", "b", ".", " .", "'", "n't", "do not", "'s", "é", "世", "\ufffd", "\n"]
WORDS += ["Ġthe", "Ġ", "Ã", "©", "âĤ", "¬", "ÿ", "_", "x\u2581y", "<0x41", "A>", "ĊĊ", "!", "<pad>"]

STEPS = st.one_of(
    st.sampled_from(["\u2581", "a", "ab", "ba", "aba", " ", "  ", "</w>", "the"]).flatmap(
        lambda old: st.sampled_from(["", " ", "a", "ab", "xyz"]).map(lambda new: decoders.Replace(old, new))
    ),
    st.sampled_from([r"\s+", r"a|b", r"[ab]+$", r"^.", r"(?=t)"]).map(lambda r: decoders.Replace(Regex(r), "-")),
    st.builds(decoders.Strip, st.sampled_from([" ", "a"]), st.integers(0, 3), st.integers(0, 2)),
    st.sampled_from(["always", "first", "never"]).map(lambda scheme: decoders.Metaspace(prepend_scheme=scheme)),
    st.builds(decoders.WordPiece, st.sampled_from(["##", "a"]), st.booleans()),
    st.sampled_from(["</w>", "a", "ab"]).map(lambda suffix: decoders.BPEDecoder(suffix=suffix)),
    st.booleans().map(lambda cleanup: decoders.CTC(cleanup=cleanup)),
    *(st.builds(step) for step in (decoders.ByteFallback, decoders.Fuse, decoders.ByteLevel)),
)
CHAINS = st.recursive(
    STEPS | st.lists(STEPS, min_size=1, max_size=4).map(decoders.Sequence),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(decoders.Sequence),
    max_leaves=5,
)
IDS = st.lists(st.integers(0, len(WORDS) + 2), max_size=14)

LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def tokenizer(chain):
    library = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    if chain is not None:
        library.decoder = chain
    library.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return library


def whole(library, ids):
    try:
        return library.decode(ids, skip_special_tokens=True)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the library panics when it strips more characters than there are
            raise
        return None


@settings(max_examples=400)
@given(chain=st.none() | CHAINS, ids=IDS)
@example(chain=decoders.Sequence(LLAMA), ids=[12, 12, 14, 3, 8, 9, 1, 7, 20])
@example(chain=decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), ids=[13, 14, 5, 6, 13])
@example(
    chain=decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("ab", "")]), ids=[29, 32, 30]
)
def test_any_chain(chain, ids):
    library = tokenizer(chain)
    expected = whole(library, ids)
    assume(expected is not None)
    ours = from_blob("tokenizer.json", library.to_str().encode())
    assert decode(ours, ids) == expected


@settings(max_examples=200)
@given(chain=st.none() | CHAINS, ids=IDS, cut=st.integers(0, 14))
def test_what_is_shown_stays(chain, ids, cut):
    """The text of a beginning of the ids is a beginning of the whole text."""
    ours = from_blob("tokenizer.json", tokenizer(chain).to_str().encode())
    stream = ours.stream()
    shown = "".join([stream.push(token) for token in ids[:cut]])
    assert decode(ours, ids).startswith(shown)


@pytest.mark.parametrize(
    "chain",
    [
        decoders.ByteLevel(),
        decoders.Metaspace(),
        decoders.WordPiece(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Replace("  ", " ")]),
        decoders.Sequence(LLAMA),
        None,
    ],
    ids=str,
)
def test_words_come_as_they_are_made(chain):
    """A word that later ids cannot change is shown at once."""
    ours = from_blob("tokenizer.json", tokenizer(chain).to_str().encode())
    stream = ours.stream()
    ids = [WORDS.index(word) for word in ("the", "ing", "\u2581the", ".")]
    assert "" not in [stream.push(token) for token in ids]


def test_unknown_and_endless_steps():
    state = json.loads(tokenizer(decoders.Sequence(LLAMA)).to_str())
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1200}
    for steps in ([longer] * 3, [{"type": "Fuse"}, *[longer] * 3], [{**longer, "pattern": {"Regex": "."}}]):
        blob = json.dumps({**state, "decoder": {"type": "Sequence", "decoders": steps}}).encode()
        with pytest.raises(TokenizerError, match=r"its decoder"):
            decode(from_blob("tokenizer.json", blob), [WORDS.index("abab")])
