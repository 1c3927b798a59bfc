"""Labels of texts, of pairs of texts and of tokens equal transformers', for tiny random models of every family."""

import itertools
import json
import shutil

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, ContextError, NumericError, OptionError, cli
from fastllm.tokenizer import cut_pair
from fastllm.weights import store
from fastllm.weights.convert import convert
from helpers import vocabularies
from helpers.calls import refusal
from helpers.families.classifiers import FAMILIES, SIZES, WORDS, byte_level, model_of, word_pieces
from helpers.reference import build, tokens, torch, transformers

tokenizers = pytest.importorskip("tokenizers")


def heads():
    """Parameters (family, class) for every class with labels that transformers has for FAMILIES."""
    from transformers.models.auto import modeling_auto as auto

    for family in FAMILIES:
        for names in (
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        ):
            if family in names:
                yield pytest.param(family, names[family], id=names[family])


def logits(model, **inputs):
    with torch.no_grad():
        return model(**{key: torch.tensor([ids]) for key, ids in inputs.items()}).logits[0].numpy()


@pytest.mark.parametrize(("family", "name"), list(heads()))
def test_families(tmp_path, family, name):
    """Scores equal transformers'. A converted file gives the same bits; a quantized one keeps the head unrounded."""
    model = model_of(family, name)
    model.config.id2label = {0: "no", 1: "may be", 2: "yes"}
    model.save_pretrained(tmp_path / "model")
    llm = fastllm.load(tmp_path / "model", dtype="f32", threads=1)
    texts = [[2 + t for t in tokens(90, n, seed=n)] for n in (1, 7, 60)]
    convert(tmp_path / "model", tmp_path / "f32.safetensors", dtype="f32")
    converted = fastllm.load(tmp_path / "f32.safetensors", threads=1)
    for each in (llm, converted):
        assert each.labels == ("no", "may be", "yes")
        assert not each.config.head
    if name.endswith("ForTokenClassification"):
        for ids in texts:
            expected, (found, scores) = logits(model, input_ids=ids), llm.token_classify(ids)
            assert found == ids
            assert scores.shape == (len(ids), 3)
            assert np.abs(scores - expected).max() < 1e-4
            assert (converted.token_classify(ids)[1] == scores).all()
        return
    scores = llm.classify(texts)
    assert np.abs(scores - [logits(model, input_ids=ids) for ids in texts]).max() < 1e-4
    assert (converted.classify(texts) == scores).all()
    assert (llm.classify(texts[1:2]) == scores[1]).all()
    convert(tmp_path / "model", tmp_path / "q8.safetensors", dtype="q8")
    layers = store.open_file(tmp_path / "q8.safetensors").dense["classifier"]
    assert {layer.matrix.dtype for layer in layers} == {"f32"}
    assert np.abs(fastllm.load(tmp_path / "q8.safetensors", threads=1).classify(texts) - scores).max() < 0.3


def test_gemma3_with_its_vision_tower_left_out(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {key: value for key, value in (SIZES | FAMILIES["gemma3_text"]).items() if key != "num_labels"}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 4}, num_labels=3, mm_tokens_per_image=4
    )
    model = build("Gemma3ForSequenceClassification", config)
    model.save_pretrained(tmp_path)
    with pytest.warns(fastllm.CheckpointWarning, match="the vision tower"):
        llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    ids = tokens(90, 30)
    assert np.abs(llm.classify([ids])[0] - logits(model, input_ids=ids)).max() < 1e-4


def test_the_last_token_is_the_last_that_is_no_padding(tmp_path):
    model = model_of("llama", "LlamaForSequenceClassification")
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    for ids in ([5, 6, 7, 0, 0], [5, 0, 7], [0, 0]):
        assert np.abs(llm.classify([ids])[0] - logits(model, input_ids=ids)).max() < 1e-4


# ---- strings and pairs -----------------------------------------------------------------------------------------------

TEXTS = ["the ocean", "Once upon a time there was naïve café", "x = y + 1; 12 3456", "", "[SEP] <s> 世界"]


def whole(tokenizer, *texts, **more):
    """The inputs that a tokenizer of transformers gives for a text or a pair, without the attention mask."""
    encoding = tokenizer([texts if len(texts) > 1 else texts[0]], **more)
    return {key: value[0] for key, value in encoding.items() if key != "attention_mask"}


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json", "one token type"])
def test_bert_reads_pairs(tmp_path, kind):
    model = model_of(
        "bert", "BertForSequenceClassification", vocab_size=WORDS, type_vocab_size=1 if kind[:3] == "one" else 2
    )
    model.save_pretrained(tmp_path)
    tokenizer = word_pieces(tmp_path)
    if kind == "tokenizer.json":
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").unlink()
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    pairs = list(itertools.product(TEXTS, TEXTS))
    scores = llm.classify([*TEXTS, *pairs])
    for texts, found in zip([(text,) for text in TEXTS] + pairs, scores, strict=True):
        inputs = whole(tokenizer, *texts)
        if kind == "one token type":
            inputs.pop("token_type_ids")
        assert np.abs(found - logits(model, **inputs)).max() < 1e-4
    convert(tmp_path, tmp_path / "out.safetensors", dtype="f32")
    assert (fastllm.load(tmp_path / "out.safetensors", threads=1).classify([*TEXTS, *pairs]) == scores).all()


@pytest.mark.parametrize("name", ["DistilBertTokenizer", "BertTokenizerFast"])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_classes_without_token_types(tmp_path, file, name):
    """Some tokenizer classes give no token types, whatever the model and the vocabulary's file have."""
    model = model_of("bert", "BertForSequenceClassification", vocab_size=WORDS)
    model.save_pretrained(tmp_path)
    tokenizer = word_pieces(tmp_path)
    if file == "tokenizer.json":
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "do_lower_case": True}))
    expected = whole(transformers.AutoTokenizer.from_pretrained(tmp_path), *TEXTS[:2])
    assert ("token_type_ids" in expected) == (name == "BertTokenizerFast")
    found = fastllm.load(tmp_path, dtype="f32", threads=1).classify([(TEXTS[0], TEXTS[1])])
    np.testing.assert_allclose(found[0], logits(model, **expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "bos", "none"])
def test_other_tokenizers_read_pairs(tmp_path, kind):
    family, name = ("roberta", "Roberta") if kind == "roberta" else ("qwen2", "Qwen2")
    model = model_of(family, f"{name}ForSequenceClassification", vocab_size=500, pad_token_id=0)
    model.save_pretrained(tmp_path)
    tokenizer = byte_level(tmp_path, kind)
    tokenizer.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    for pair in itertools.product(TEXTS, TEXTS):
        # In texts for a decoder, special tokens are text.
        ids = whole(tokenizer, *pair, split_special_tokens=kind != "roberta")["input_ids"]
        if ids:
            assert np.abs(llm.classify([pair])[0] - logits(model, input_ids=ids)).max() < 1e-4


def test_sentencepiece_reads_pairs(tmp_path):
    library = vocabularies.sentence_pieces(tmp_path)
    model_of("llama", "LlamaForSequenceClassification", vocab_size=600).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    first, second = (library.encode(text) for text in TEXTS[:2])
    expected = llm.classify([[1, *first, 1, *second]])  # each text of a pair gets its own BOS
    assert (llm.classify([(TEXTS[0], TEXTS[1])]) == expected).all()


def test_lengths_are_cut_as_the_library_does():
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(40)}, unk_token="0"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for a, b, room in itertools.product(range(12), range(12), range(1, 16)):
        first, second = list(range(a)), list(range(20, 20 + b))
        for side in ("left", "right"):
            library.enable_truncation(room, strategy="longest_first", direction=side)
            found = library.encode(*(" ".join(map(str, ids)) for ids in (first, second)), add_special_tokens=False)
            assert list(itertools.chain(*cut_pair(first, second, room, left=side == "left"))) == found.ids


# ---- the command line ------------------------------------------------------------------------------------------------


def classifier(folder, **more):
    model = model_of("bert", "BertForSequenceClassification", vocab_size=WORDS, **more)
    model.config.id2label = {i: f"kind\n{i}" for i in range(model.config.num_labels)}
    model.save_pretrained(folder)
    word_pieces(folder)
    return folder


def test_command_line_classify(tmp_path, capsys, monkeypatch):
    llm = fastllm.load(classifier(tmp_path / "model"), threads=1)
    texts = ["the ocean", "once\tupon a time"]
    scores = llm.classify([texts[0], ("once", "upon a time")])
    probabilities = llm.classifier.probabilities(scores)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    assert cli.main(["classify", str(llm.path), *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    for text, row, line in zip(texts, probabilities, lines, strict=True):
        assert line == f"kind\\n{row.argmax()}\t{row.max():.6f}\t{text}"
    monkeypatch.setattr("sys.stdin", iter(f"{text}\n" for text in texts))
    assert cli.main(["classify", str(llm.path), "--json"]) == 0
    for row, line in zip(probabilities, capsys.readouterr().out.splitlines(), strict=True):
        about = json.loads(line)
        assert about["probabilities"] == [float(x) for x in row]
        assert about["label"] == llm.labels[row.argmax()]


def test_command_line_labels_of_tokens(tmp_path, capsys):
    model_of("bert", "BertForTokenClassification", vocab_size=WORDS).save_pretrained(tmp_path)
    word_pieces(tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    ids, scores = llm.token_classify("the ocean 世")
    assert ids[0] == llm.tokenizer.token_id("[CLS]")
    assert cli.main(["classify", str(tmp_path), "the ocean 世"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == len(ids) + 2
    assert lines[-2:] == ["", ""]
    assert lines[0].split("\t") == [
        llm.labels[scores[0].argmax()],
        f"{llm.classifier.probabilities(scores)[0].max():.6f}",
        "[CLS]",
    ]


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes(tmp_path):
    llm = fastllm.load(classifier(tmp_path / "texts"), threads=1)
    long = "the ocean " * 80
    for said, kind, call in [
        ("a list of texts, not one", OptionError, lambda: llm.classify("the ocean")),
        ("text 1 is neither", OptionError, lambda: llm.classify(["a", ("b", "c", "d")])),
        ("text 0 is neither", OptionError, lambda: llm.classify([("b", 3)])),
        ("text 0 is empty", OptionError, lambda: llm.classify([[]])),
        ("no token id", OptionError, lambda: llm.classify([[WORDS]])),
        ("text 1 has 642 tokens", ContextError, lambda: llm.classify(["a", long])),
        ("no head for rerank: what it can do is classify, embed", OptionError, lambda: llm.rerank("a", ["b"])),
        ("no head for token_classify", OptionError, lambda: llm.token_classify("a")),
        ("no head, so there are no logits", OptionError, lambda: llm.logits([1])),
        ("one document", OptionError, lambda: llm.rerank("a", "b")),
    ]:
        message = refusal(call, kind)
        assert said in message
        assert "\n" not in message
    assert llm.classify([]).shape == (0, 3)


def changed(folder, target, **values):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    config = json.loads((target / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))
    return target


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("2 labels in its id2label, its classifier 3", {"id2label": {"0": "a", "1": "b"}}),
        ("has not a label for each of 0 to 2", {"id2label": {"0": "a", "1": "b", "x": "c"}}),
        ("has not a label for each of 0 to 2", {"id2label": {"0": "a", "1": "b", "2": ["c"]}}),
        ("id2label that is no JSON object", {"id2label": ["a", "b", "c"]}),
        ("num_labels 5, its classifier 3", {"id2label": None, "num_labels": 5}),
        ("problem_type 'other'", {"problem_type": "other"}),
        ("has no tensor score.weight", {"architectures": ["LlamaForSequenceClassification"], "model_type": "drop"}),
    ],
)
def test_broken_configs(tmp_path, said, values):
    folder = changed(classifier(tmp_path / "model"), tmp_path / "broken", **values)
    if "score" in said:
        assert refusal(lambda: fastllm.load(folder), CheckpointError)
        return
    assert said in refusal(lambda: fastllm.load(folder), CheckpointError)


@pytest.mark.parametrize("architectures", ["drop", None, ["MyReranker"]])
@pytest.mark.parametrize("family", ["bert", "gemma2", "gpt2", "qwen3", "roberta"])
def test_a_class_that_is_not_known_or_not_said(tmp_path, family, architectures):
    """Without a known class, a file that has a head of labels and none of tokens is a classifier."""
    name = next(param.values[1] for param in heads() if param.values[0] == family)
    tied = {"tie_word_embeddings": True} if family == "gemma2" else {}
    model = model_of(family, name, **tied)
    model.save_pretrained(tmp_path / "model")
    folder = changed(tmp_path / "model", tmp_path / "other", architectures=architectures)
    ids = [2 + t for t in tokens(90, 9)]
    found = fastllm.load(folder, dtype="f32", threads=1).classify([ids])
    np.testing.assert_allclose(found[0], logits(model, input_ids=ids), rtol=0, atol=1e-4)


def test_biases_are_those_of_the_architecture(tmp_path):
    """A bias that the class lacks is not used, and one that it has must be in the file."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = model_of("qwen3", "Qwen3ForSequenceClassification")
    model.save_pretrained(tmp_path / "qwen3")
    file = tmp_path / "qwen3/model.safetensors"
    safetensors.save_file(safetensors.load_file(file) | {"score.bias": torch.ones(3)}, file, {"format": "pt"})
    with pytest.warns(fastllm.errors.CheckpointWarning, match=r"score\.bias"):
        llm = fastllm.load(tmp_path / "qwen3", dtype="f32", threads=1)
    np.testing.assert_allclose(llm.classify([[3, 4]])[0], logits(model, input_ids=[3, 4]), rtol=0, atol=1e-4)
    file = classifier(tmp_path / "bert") / "model.safetensors"
    whole_file = safetensors.load_file(file)
    for name in ("bert.pooler.dense.bias", "classifier.bias"):
        safetensors.save_file({k: v for k, v in whole_file.items() if k != name}, file, {"format": "pt"})
        assert f"has no tensor {name}" in refusal(lambda: fastllm.load(tmp_path / "bert"), CheckpointError)


def test_a_language_model_with_a_head_of_scores_beside_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    build("Qwen3ForCausalLM", model_of("qwen3", "Qwen3Model").config).save_pretrained(tmp_path / "model")
    weights = safetensors.load_file(tmp_path / "model/model.safetensors") | {"score.weight": torch.ones(1, 36)}
    safetensors.save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.warns(fastllm.errors.CheckpointWarning, match=r"score\.weight"):
        llm = fastllm.load(changed(tmp_path / "model", tmp_path / "other", architectures=None), threads=1)
    assert llm.config.head
    assert not llm.labels


@pytest.mark.parametrize(
    ("problem", "labels", "activation"),
    [
        (None, 3, "softmax"),
        (None, 1, "sigmoid"),
        ("single_label_classification", 3, "softmax"),
        ("multi_label_classification", 3, "sigmoid"),
        ("regression", 1, "identity"),
    ],
)
def test_probabilities_are_those_of_pipelines(tmp_path, problem, labels, activation):
    folder = classifier(tmp_path / "model", num_labels=labels)
    folder = changed(folder, tmp_path / "other", problem_type=problem)
    llm = fastllm.load(folder, dtype="f32", threads=1)
    assert llm.classifier.activation == activation
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    expected = {row["label"]: row["score"] for row in pipeline("the ocean", top_k=None)}
    found = llm.classifier.probabilities(llm.classify(["the ocean"]))[0]
    assert all(abs(expected[label] - p) < 1e-5 for label, p in zip(llm.labels, found, strict=True))


def test_a_converted_file_with_a_head_that_does_not_fit(tmp_path):
    convert(classifier(tmp_path / "model"), tmp_path / "out.safetensors")
    stored = store.open_file(tmp_path / "out.safetensors")
    for i, other in enumerate(
        [
            stored._replace(dense={}),
            stored._replace(classifier=stored.classifier._replace(labels=("a",))),
            stored._replace(classifier=stored.classifier._replace(pooling="mean")),
            stored._replace(classifier=stored.classifier._replace(pad=-3)),
            stored._replace(ranking=stored.ranking._replace(activation="x")),
            stored._replace(ranking=stored.ranking._replace(words=(1, 2, 3))),
        ]
    ):
        store.save(tmp_path / f"{i}.safetensors", other)
        assert refusal(lambda i=i: fastllm.load(tmp_path / f"{i}.safetensors"), CheckpointError)


def test_scores_that_are_not_finite(tmp_path):
    model = model_of("bert", "BertForSequenceClassification", vocab_size=WORDS)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
        model.bert.pooler.dense.bias.fill_(9)
    model.save_pretrained(classifier(tmp_path / "bert"))
    texts = fastllm.load(tmp_path / "bert", dtype="f32", threads=1)
    assert "the scores of text 0" in refusal(lambda: texts.classify(["a", "b"]), NumericError)


@pytest.mark.parametrize(
    "text", [1, None, 1.5, [1.5], [None], ["a"], ["a", "b", "c"], ["a", 1], {"a": 1}, b"ab", object()]
)
def test_what_is_no_text(tmp_path, text):
    model_of("bert", "BertForSequenceClassification", vocab_size=WORDS).save_pretrained(tmp_path)
    word_pieces(tmp_path)
    llm = fastllm.load(tmp_path, threads=1)
    for call in (llm.classify, llm.embed):
        assert "text 1 is neither a text nor token ids" in refusal(lambda call=call: call(["a", text]), OptionError)
    assert "neither a text nor token ids" in refusal(lambda: llm.hidden_states(text), OptionError)
