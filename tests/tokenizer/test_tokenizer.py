"""Text to ids and back as by run.c, sentencepiece and the tokenizers library; where a tokenizer is found."""

import random
import struct

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from fastllm import TokenizerError
from fastllm.files import StandInError
from fastllm.tokenizer import decode, find, from_blob, read
from helpers import oracle, writers
from helpers.calls import failure
from helpers.data import STORIES, needs_stories
from helpers.mutations import changed

WORDS = writers.tokenizer_words()
OWN = from_blob("llama2.c", writers.tokenizer_bin(WORDS))
RUNC = [(text.encode(), score) for text, score in WORDS]

# SentencePiece stores a space as U+2581 and takes that character for a space, which run.c does not. run.c's strings end
# at a zero byte, and neither library takes lone surrogates.
odd = st.characters(exclude_characters="\u2581\0", exclude_categories=["Cs"])
known = st.sampled_from([text for text, _ in WORDS[259:]] + list(" \n\té世😀<>0x1F"))
texts = st.one_of(st.text(odd, max_size=20), st.lists(st.one_of(known, odd), max_size=25).map("".join))
HARD = [
    "",
    " ",
    "   ",
    "\n",
    "\x01\x7f",
    "e\u0301",
    "👩‍👩‍👧",
    "<0x41>",
    "<s>",
    "</s>",
    "<unk>",
    "the thether",
    " \u00a0 ",
    "\ufffd",
]


def hard(test):
    for text in HARD:
        test = example(text)(test)
    return test


# ---- tokenizer.bin ---------------------------------------------------------------------------------------------------


@hard
@given(texts)
def test_ids_are_run_c_s(text):
    assert [1, *OWN.encode(text)] == oracle.runc_encode(RUNC, text)


@hard
@given(texts)
def test_there_and_back(text):
    ids = OWN.encode(text)
    assert decode(OWN, ids) == decode(OWN, [1, *ids]) == text


def test_zero_bytes_too():
    assert decode(OWN, OWN.encode("a\0b")) == "a\0b"


@needs_stories
def test_the_published_vocabulary():
    blob = (STORIES / "tok512.bin").read_bytes()
    words, at = [], 4
    while at < len(blob):
        score, length = struct.unpack_from("<fi", blob, at)
        words.append((blob[at + 8 : at + 8 + length], score))
        at += 8 + length
    tokenizer = read(STORIES / "tok512.bin", 512)
    rng = random.Random(0)
    pieces = [word.decode() for word, _ in words[259:]]
    for text in HARD + ["".join(rng.choices(pieces, k=rng.randrange(30))) for _ in range(200)]:
        ids = tokenizer.encode(text)
        assert [1, *ids] == oracle.runc_encode(words, text)
        assert decode(tokenizer, ids) == text


# ---- streams ---------------------------------------------------------------------------------------------------------


def is_whole(piece):
    """Whether a piece has only whole characters: half of one would decode to U+FFFD."""
    return "\ufffd" not in piece


@given(st.lists(st.one_of(known, odd), max_size=12).map("".join).filter(is_whole))
def test_streaming_is_decoding(text):
    ids = OWN.encode(text)
    stream = OWN.stream()
    pieces = [stream.push(token) for token in ids]
    assert all(map(is_whole, pieces))
    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=20))
def test_streams_of_any_ids(ids):
    """Ids that no text gives: broken UTF-8 is replaced in pieces as in the whole."""
    stream = OWN.stream()
    pieces = [stream.push(token) for token in ids]
    whole = b"".join(RUNC[i][0] if i >= 259 or i < 3 else bytes([i - 3]) for i in ids if i != 1)
    first = next((i for i in ids if i != 1), None)
    whole = whole[1:] if first is not None and whole[:1] == b" " else whole
    assert "".join(pieces) + stream.flush() == whole.decode(errors="replace")
    assert decode(OWN, ids) == whole.decode(errors="replace")


def test_a_continued_text_keeps_its_space():
    token = RUNC.index((b" the", WORDS[[w for w, _ in WORDS].index(" the")][1]))
    assert OWN.stream(None).push(token) == "the"
    assert OWN.stream(1).push(token) == "the"
    assert OWN.stream(token).push(token) == " the"


# ---- SentencePiece's own files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no_prefix"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    rng = random.Random(1)
    words = [
        "the",
        "a",
        "ocean",
        "there",
        "then",
        "once",
        "upon",
        "time",
        "été",
        "naïve",
        "世界",
        "dog.",
        "dogs,",
        "ran!",
        "to",
        "12",
        "21",
    ]
    corpus = [" ".join(rng.choices(words, k=8)) for _ in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=request.param,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = folder / "tokenizer.model"
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path))


@hard
@given(text=texts)
def test_sentencepiece_models(trained, text):
    path, library = trained
    ours = read(path, library.vocab_size())
    ids = ours.encode(text)
    assert ids == library.encode(text)
    assert decode(ours, ids) == library.decode(library.encode(text)) == text


@given(st.data())
def test_sentencepiece_streams(trained, data):
    path, library = trained
    ours = read(path, library.vocab_size())
    ids = data.draw(st.lists(st.integers(3, library.vocab_size() - 1), max_size=12))
    stream = ours.stream()
    pieces = "".join([stream.push(token) for token in ids]) + stream.flush()
    assert pieces == decode(ours, ids)
    # sentencepiece replaces broken UTF-8 byte by byte, we as Python does.
    if is_whole(pieces):
        assert pieces == library.decode(ids)


# ---- tokenizer.json --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
    """A tokenizer.json with byte-level BPE, in which a character may span tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the ocean, then there once upon a time"] * 5, trainer)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return path, tokenizer


@given(text=st.lists(st.one_of(known, odd), max_size=12).map("".join).filter(lambda t: "<s>" not in t))
@example(text="👩‍👩‍👧 é世")
def test_tokenizer_json(json_file, text):
    path, library = json_file
    ours = read(path, library.get_vocab_size())
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert decode(ours, ids) == text
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    if is_whole(text):
        assert all(map(is_whole, pieces))


def test_json_stream_after_half_a_character(json_file):
    """A prompt of ids may end inside a character; the text after it is shown all the same."""
    path, library = json_file
    ours = read(path, library.get_vocab_size())
    smile, rest = library.encode("😀").ids, library.encode("the end").ids
    stream = ours.stream(smile[0])
    shown = "".join([stream.push(token) for token in [*smile[1:], *rest]]) + stream.flush()
    assert shown.endswith("the end")


# ---- finding one -----------------------------------------------------------------------------------------------------


def test_search_order(tmp_path, monkeypatch):
    """First beside the checkpoint, then in the current folder: tokenizer.bin, tok<size>.bin, .model, .json."""
    beside, here = tmp_path / "models", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(TokenizerError) as error:
        find(beside / "model.bin", 300)
    names = ["tokenizer.bin", "tok300.bin", "tokenizer.model", "tokenizer.json"]
    message = str(error.value)
    assert f"{beside} has no {', '.join(names)}, " in message
    assert f"{here} has no {', '.join(names)}" in message
    assert message.count(str(beside)) == 2  # once for the checkpoint, once for the folder of all names
    # Files are added from the last place to the first, and each new one must be found. Fillers tell them apart.
    for place in reversed([folder / name for folder in (beside, here) for name in names[:2]]):
        words = [*WORDS[:-1], (str(place), -1e9)]
        place.write_bytes(writers.tokenizer_bin(words))
        found = find(beside / "model.bin", 300)
        assert decode(found, [299]) == str(place)


def test_what_does_not_fit_is_named_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(WORDS[:280]))
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05\n\x03abc")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError) as error:
        find(tmp_path / "model.bin", 300)
    message = str(error.value)
    for part in (
        "tokenizer.bin has 280 words, the model 300",
        "has no tok300.bin, ",
        "tokenizer.model has 1 words",
        "tokenizer.json is no usable tokenizer",
    ):
        assert part in message
    (tmp_path / "tok300.bin").write_bytes(OWN.blob)
    assert find(tmp_path / "model.bin", 300).size == 300


def test_wrong_size_missing_and_folder(tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(OWN.blob)
    assert read(path, 300).size == 300
    with pytest.raises(TokenizerError, match=r"tokenizer\.bin has 300 words, the model 299"):
        read(path, 299)
    with pytest.raises(TokenizerError, match="nothing does not exist"):
        read(tmp_path / "nothing", 300)
    with pytest.raises(TokenizerError, match="is a folder"):
        read(tmp_path, 300)
    with pytest.raises(TokenizerError, match="no tokenizer of the kind 'morse'"):
        from_blob("morse", b"")


# ---- broken ones -----------------------------------------------------------------------------------------------------


def try_all(path, size):
    """Opens and uses a tokenizer that may be broken: it works, or raises a TokenizerError that names the file."""

    def use():
        tokenizer = read(path, size)
        tokenizer.encode("the end")
        decode(tokenizer, [size - 1])

    error = failure(use)
    assert error is None or isinstance(error, (TokenizerError, StandInError))
    assert error is None or str(path) in str(error) or "sentencepiece refuses" in str(error)


def test_truncated_at_every_byte(tmp_path):
    blob = writers.tokenizer_bin(WORDS[250:270])
    path = tmp_path / "tokenizer.bin"
    for size in range(len(blob)):
        path.write_bytes(blob[:size])
        with pytest.raises(TokenizerError, match=r"tokenizer\.bin"):
            read(path, 20)


def mutated(blob, changes, cut):
    return changed(blob[: len(blob) - cut], changes)


mutations = st.tuples(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
)


@given(mutation=mutations)
def test_mutated(tmp_path_factory, mutation):
    path = tmp_path_factory.mktemp("mutated") / "tokenizer.bin"
    path.write_bytes(mutated(OWN.blob, *mutation))
    try_all(path, 300)


@given(mutation=mutations)
def test_mutated_model(trained, tmp_path_factory, mutation):
    path = tmp_path_factory.mktemp("mutated") / "tokenizer.model"
    path.write_bytes(mutated(trained[0].read_bytes(), *mutation))
    try_all(path, 330)


@given(mutation=mutations)
def test_mutated_json(json_file, tmp_path_factory, mutation):
    path = tmp_path_factory.mktemp("mutated") / "tokenizer.json"
    path.write_bytes(mutated(json_file[0].read_bytes(), *mutation))
    try_all(path, 300)


@given(st.binary(max_size=60))
def test_random_bytes(tmp_path_factory, blob):
    path = tmp_path_factory.mktemp("random") / "tokenizer.bin"
    path.write_bytes(blob)
    try_all(path, 300)


def test_a_vocabulary_with_some_bytes_only():
    """Byte tokens are used only if all 256 are there; a tokenizer.bin with fewer still encodes what it can."""
    words = [word for word in WORDS if word[0] != "<0x41>"]
    tokenizer = from_blob("llama2.c", writers.tokenizer_bin(words))
    assert decode(tokenizer, tokenizer.encode("the ocean")) == "the ocean"
