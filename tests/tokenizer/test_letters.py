"""Vocabularies of letters, as models of proteins and of DNA have, give transformers' ids."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.tokenizer import find
from helpers.vocabularies import clean

transformers = pytest.importorskip("transformers")


PROTEINS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
KMERS = ["".join(letters) for letters in itertools.product("ACGT", repeat=3)]
NUCLEOTIDES = ["<unk>", "<pad>", "<mask>", "<cls>", *KMERS, *"ATCGN", "<eos>", "<bos>"]
LETTERS = st.lists(
    st.one_of(
        st.sampled_from(
            [*PROTEINS, "ACG", "CGTA", "<MASK>", "<mask", "mask>", " ", "  ", "\n", "j", "é", "1", "[MASK]"]
        ),
        st.text(max_size=2),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=["proteins", "nucleotides"])
def letters(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    proteins = request.param == "proteins"
    (folder / "vocab.txt").write_text("\n".join(PROTEINS if proteins else NUCLEOTIDES))
    config = {} if proteins else {"eos_token": None, "bos_token": None, "tokenizer_class": "EsmTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "esm"}))
    return transformers.EsmTokenizer.from_pretrained(folder), find(folder, 200)


@settings(max_examples=300)
@given(text=LETTERS)
def test_letters(letters, text):
    library, ours = letters
    assert [*ours.prefix, *ours.encode(text, special=True), *ours.suffix] == library.encode(clean(text))
