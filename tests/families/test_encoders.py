"""Encoders compute their references' hidden states, attention maps and masked-token logits, alone and in batches."""

import json

import numpy as np
import pytest

import fastllm
from fastllm.weights.convert import convert
from helpers import reference, vocabularies
from helpers.calls import failure
from helpers.data import DATA
from helpers.families import encoders
from helpers.reference import transformers

# ---- AMPLIFY: arrays computed by its authors' code; tolerances from the fixtures' meta.json --------------------------

AMPLIFY = pytest.mark.parametrize("name", ["amplify_tiny", "amplify_variant"])
ATOL, ATTENTION_ATOL = 2e-4, 1e-5


def amplify(name):
    with np.load(DATA / name / "expected.npz") as arrays:
        return fastllm.load(DATA / name, threads=1), dict(arrays)


def close(found, expected, atol=ATOL):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@AMPLIFY
def test_amplify_logits(name):
    llm, expected = amplify(name)
    kinds = ["", "masked_", "long_"] + (["single1_"] if "single1_tokens" in expected else [])
    for kind in kinds:
        close(llm.logits(expected[f"{kind}tokens"]), expected[f"{kind}logits"])


@AMPLIFY
def test_amplify_hidden_states_and_attention_maps_of_every_layer(name):
    llm, expected = amplify(name)
    tokens = expected["tokens"]
    for layer in range(llm.config.n_layers):
        close(llm.hidden_states(tokens, layer + 1), expected["hidden"][layer])
        close(llm.attentions(tokens, layer), expected["attn"][layer], ATTENTION_ATOL)
    close(llm.hidden_states(tokens, llm.config.n_layers)[1:-1], expected["embed"])


@AMPLIFY
def test_amplify_ragged_batches_equal_the_padded_reference(name):
    llm, expected = amplify(name)
    lengths = np.isfinite(expected["batch_pad_mask"]).sum(axis=1)
    assert len(set(lengths)) > 1
    texts = [row[:n] for row, n in zip(expected["batch_tokens"], lengths, strict=True)]
    for i, text in enumerate(texts):
        close(llm.logits(text), expected["batch_logits"][i, : len(text)])
        # Padding that is not masked counts as text.
        close(llm.logits(expected["batch_tokens"][i]), expected["batch_logits_nomask"][i])
    for layer in range(llm.config.n_layers):
        means = [expected["batch_hidden"][layer, i, : len(text)].mean(axis=0) for i, text in enumerate(texts)]
        close(llm.embed(texts, layer=layer + 1), means)


@AMPLIFY
def test_amplify_pseudo_perplexity(name):
    """The pseudo-perplexity, for which each position is masked in turn."""
    llm, expected = amplify(name)
    tokens, losses = expected["ppl_tokens"], []
    for i, token in enumerate(tokens):
        masked = tokens.copy()
        masked[i] = json.loads((DATA / name / "config.json").read_text())["mask_token_id"]
        row = llm.logits(masked)[i].astype(np.float64)
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[token])
    close(losses, expected["ppl_losses"])
    known = json.loads((DATA / name / "meta.json").read_text())["pseudo_perplexity"]
    assert np.exp(np.mean(losses)) == pytest.approx(known["notebook_all_positions"], rel=ATOL)
    assert np.exp(np.mean(losses[1:-1])) == pytest.approx(known["residues_only"], rel=ATOL)


def layers(llm):
    """The numbers of our layers in the order of transformers' list, whose last entry is after the final norm."""
    return [*range(llm.config.n_layers), llm.config.n_layers + 1]


def same(found, expected):
    assert reference.difference(np.asarray(found), np.asarray(expected)) < 1e-4


@pytest.mark.filterwarnings("ignore::fastllm.CheckpointWarning")  # CLIP's projections and vision tower are not used
@pytest.mark.parametrize("case", encoders.CASES)
def test_hidden_states_attention_maps_and_logits_are_those_of_transformers(case, tmp_path):
    model, tower = encoders.built(case)
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    ids = encoders.text(70)
    hidden, attentions, logits = encoders.run(tower, [ids])
    for layer, states in zip(layers(llm), hidden, strict=True):
        same(llm.hidden_states(ids, layer), states[0])
    for layer, maps in enumerate(attentions):
        same(llm.attentions(ids, layer), maps[0])
    assert llm.config.head == (logits is not None)
    if logits is not None:
        assert logits.std() > 0.05
        same(llm.logits(ids), logits[0])


@pytest.mark.parametrize("case", ["bert", "roberta", "esm-2", "esm-1b", "clip text"])
def test_ragged_batches_equal_the_padded_reference(case, tmp_path):
    model, tower = encoders.built(case)
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    lengths = [66, 1, 20, 64]
    texts = [encoders.text(n, seed=n) for n in lengths]
    padding = model.config.pad_token_id
    padded = [ids + [padding] * (66 - len(ids)) for ids in texts]
    hidden, _, _ = encoders.run(tower, padded, [[1] * n + [0] * (66 - n) for n in lengths])
    for layer, states in zip(layers(llm), hidden, strict=True):
        rows = [states[i, :n] for i, n in enumerate(lengths)]
        same(llm.embed(texts, layer=layer), [row.mean(axis=0) for row in rows])
        same(llm.embed(texts, layer=layer, pooling="cls"), [row[0] for row in rows])
        same(llm.embed(texts, layer=layer, pooling="last"), [row[-1] for row in rows])


def test_norms_named_as_tensorflow_did(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, _ = encoders.built("bert, masked tokens")
    model.save_pretrained(tmp_path)
    ids = encoders.text(40)
    expected = encoders.run(model, [ids])[2][0]
    file = tmp_path / "model.safetensors"
    changes = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = safetensors.load_file(file)
    for new, old in changes.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any(name.endswith("LayerNorm.gamma") for name in tensors)
    safetensors.save_file(tensors, file)
    same(fastllm.load(tmp_path, threads=1).logits(ids), expected)


@pytest.mark.parametrize(
    ("case", "change", "cause"),
    [
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"hidden_act": ["gelu"]}, "hidden_act"),
        ("bert", {"num_attention_heads": 7}, "7 attention heads"),
        ("bert", {"max_position_embeddings": 91}, "91"),
        ("bert", {"hidden_size": 33}, "33"),
        ("roberta", {"max_position_embeddings": 2}, "max_seq"),
        ("roberta", {"hidden_act": "relu"}, "relu"),
        ("esm-2", {"mask_token_id": None}, "mask_token_id"),
        ("esm-2", {"num_hidden_layers": 4}, "encoder.layer.3"),
        ("clip", {"text_config": [1]}, "text_config"),
    ],
)
def test_a_config_that_is_wrong_is_one_clear_error(case, change, cause, tmp_path):
    encoders.built(case)[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    error = failure(lambda: fastllm.load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert cause in str(error)
    assert str(tmp_path) in str(error)


# ---- masks in a text -------------------------------------------------------------------------------------------------


def save_letters(folder):
    letters = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(letters))
    return transformers.EsmTokenizer.from_pretrained(folder)


def save_word_pieces(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "a",
        "cat",
        "sat",
        "on",
        "mat",
        "##s",
        "mask",
        "[",
        "]",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    return transformers.BertTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("case", "save", "texts"),
    [
        ("esm-2, masked tokens", save_letters, ["MKT<mask>LL", "<mask>", "M K<mask><mask>", "mk<cls>L"]),
        ("bert, masked tokens", save_word_pieces, ["The cat [MASK] on mats.", "[MASK]", "a[MASK]b [mask] [SEP] sat"]),
    ],
)
def test_masks_in_a_text(case, save, texts, tmp_path):
    """Special tokens in a text for an encoder are recognized, as by transformers."""
    model, _ = encoders.built(case)
    model.save_pretrained(tmp_path)
    library = save(tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    converted = tmp_path / "converted.safetensors"
    convert(tmp_path, converted)
    for text in texts:
        ids = library.encode(text)
        assert llm.tokenize(text) == fastllm.load(converted, threads=1).tokenize(text) == ids
        assert llm.tokenize(text, bos=False) == ids[1:-1]
        assert library.mask_token_id not in llm.tokenize(text, special=False)
        assert (llm.embed([text]) == llm.embed([ids])).all()


def test_special_tokens_in_a_text_to_continue(tmp_path):
    """In a text to continue, special tokens are text unless special=True."""
    model = reference.build("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=700, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    vocabularies.save_gpt2(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=500), tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    assert llm.tokenize("the<|endoftext|>", special=True)[-1] == 0
    assert 0 not in llm.tokenize("the<|endoftext|>")
