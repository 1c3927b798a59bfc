"""Vectors of texts equal those of sentence-transformers, for tiny models in the files that it saves."""

import io
import json
import re

import numpy as np
import pytest

import fastllm
from fastllm import cli
from fastllm.heads import Embedding
from helpers.calls import failure
from helpers.families.sentence_transformers import LONG, MODELS, PROMPTS, TEXTS, check, edit, save
from helpers.reference import torch

st = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer import modules  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", modules.Pooling.POOLING_MODES)
def test_pooling(saved, tmp_path, name, mode):
    check(save(saved(name), tmp_path / "st", modules.Pooling(48, mode)), tmp_path / "st")


@pytest.mark.parametrize("name", MODELS)
def test_embedding_gemmas_modules_and_prompts(saved, tmp_path, name):
    folder = tmp_path / "st"
    after = (modules.Pooling(48, ("mean", "cls")), modules.Dense(96, 70, bias=False), modules.Dense(70, 24))
    model = save(saved(name), folder, *after, modules.Normalize(), prompts=PROMPTS, default="query")
    llm = check(model, folder)
    assert (llm.embed(TEXTS) == llm.embed(TEXTS, prompt_name="query")).all()
    check(model, folder, options={"prompt": ""}, prompt="")
    check(model, folder, options={"prompt": "a prompt"}, prompt="a prompt")
    check(model, folder, options={"prompt_name": "document"}, prompt_name="document")
    assert np.abs(np.linalg.norm(llm.embed(TEXTS), axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(llm.embed(TEXTS, normalize=False), axis=1) - 1).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", modules.Pooling.POOLING_MODES)
def test_prompts_that_are_not_pooled(saved, tmp_path, name, mode):
    """INSTRUCTOR's way: the model reads the prompt, but the pooling leaves its tokens out."""
    folder = tmp_path / "st"
    model = save(saved(name), folder, modules.Pooling(48, mode, include_prompt=False), prompts=PROMPTS)
    check(model, folder, options={"prompt_name": "query"}, prompt_name="query")
    check(model, folder)


ACTS = [torch.nn.Tanh, torch.nn.ReLU, torch.nn.GELU, torch.nn.Sigmoid, torch.nn.SiLU, torch.nn.Identity]


@pytest.mark.parametrize("act", ACTS)
def test_activations(saved, tmp_path, act):
    dense = modules.Dense(48, 30, activation_function=act())
    check(save(saved("bert"), tmp_path / "st", modules.Pooling(48), dense), tmp_path / "st")


def normed(seed=0):
    """A LayerNorm module with random weights."""
    norm = modules.LayerNorm(48)
    with torch.no_grad():
        norm.norm.weight.normal_(generator=torch.Generator().manual_seed(seed))
        norm.norm.bias.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return norm


TOKENS = "token_embeddings"
CHAINS = {
    "norm": lambda: [modules.Pooling(48), normed(), modules.Dense(48, 20), modules.Normalize()],
    "normalized before a layer": lambda: [modules.Pooling(48), modules.Normalize(), modules.Dense(48, 20)],
    "of each token": lambda: [
        modules.Dense(48, 33, module_input_name=TOKENS),
        modules.Normalize(module_input_name=TOKENS),
        modules.Pooling(33, ("max", "lasttoken")),
    ],
    "residual": lambda: [modules.Pooling(48), modules.Dense(48, 48, use_residual=True), modules.Dropout(0.5)],
    "a Normalize that finds nothing": lambda: [modules.Normalize(), modules.Pooling(48)],
    "tokens normalized too late": lambda: [modules.Pooling(48), modules.Normalize(module_input_name=TOKENS)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_modules_in_other_orders(saved, tmp_path, chain):
    check(save(saved("bert"), tmp_path / "st", *CHAINS[chain]()), tmp_path / "st")


def test_dimensions(saved, tmp_path):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), truncate_dim=20)
    llm = check(model, folder)
    assert llm.embed(TEXTS).shape == (5, 20)
    check(model, folder, options={"normalize_embeddings": True}, normalize=True)


def test_nulls(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48))
    for name, key in (("sentence_bert_config", "do_lower_case"), ("config_sentence_transformers", "model_type")):
        values = json.loads((folder / f"{name}.json").read_text()) | {key: None}
        (folder / f"{name}.json").write_text(json.dumps(values))
    check(st.SentenceTransformer(str(folder), device="cpu"), folder)


def test_lower_case(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), prompts={"shout": "HELLO "})
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    texts = ["THE Ocean", "İstanbul ΣΑΣ ẞ", "ß WORLD", "THE [MASK] Ocean[SEP]WORLD"]
    llm = check(st.SentenceTransformer(str(folder), device="cpu"), folder, texts)
    assert (llm.embed(["the ocean"]) == llm.embed(["THE Ocean"])).all()
    assert (llm.embed(["the ocean"], prompt_name="shout") == llm.embed(["hello the ocean"])).all()


# ---- long texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_long_texts_are_cut_only_when_asked(saved, tmp_path, name, side):
    folder = tmp_path / "st"
    model = save(saved(name), folder, modules.Pooling(48, ("mean", "lasttoken")), length=20, prompts=PROMPTS)
    if side == "left":
        edit(folder / "tokenizer_config.json", truncation_side="left")
        model = st.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 20
    for options in ({}, {"prompt_name": "query"}):
        llm = check(model, folder, [LONG, *TEXTS], options, truncate=True, **options)
    for texts, at in (([LONG], 0), (["a", "the", "a", LONG, "a"], 3)):
        with pytest.raises(fastllm.ContextError, match=rf"text {at} has \d+ tokens, the model takes 20") as error:
            llm.embed(texts)
        assert error.value.text == at
    ids = llm.tokenize(LONG)
    cut = ids[-20:] if side == "left" else ids[:20]
    assert (llm.embed([ids], truncate=True) == llm.embed([cut])).all()


def test_the_places_of_a_length(saved, tmp_path):
    """The longest text: a call's option wins over sentence_bert_config.json, which wins over the tokenizer's."""
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), length=30)
    path = folder / "sentence_bert_config.json"
    for changes, length in (
        ({}, 30),
        ({"max_seq_length": 25}, 25),
        ({"tokenizer_args": {"model_max_length": 22}}, 22),
        ({"processing_kwargs": {"text": {"max_length": 17}}}, 17),
    ):
        edit(path, **changes)
        model = st.SentenceTransformer(str(folder), device="cpu")
        assert model.preprocess([LONG])["input_ids"].shape == (1, length)
        check(model, folder, [LONG, "a"], truncate=True)
        assert fastllm.load(folder).embedding.max_tokens == length
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    edit(path, max_seq_length=None, tokenizer_args=None, processing_kwargs=None)
    assert fastllm.load(folder).embedding.max_tokens == 0


# ---- older forms -----------------------------------------------------------------------------------------------------


def old_pooling(folder, *, flags, **more):
    """Rewrites 1_Pooling/config.json and modules.json as releases before 5 wrote them."""
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    config = {f"pooling_mode_{name}": name in flags for name in names}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **config, **more}))
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    "flags", [["cls_token"], ["mean_tokens", "lasttoken", "cls_token", "weightedmean_tokens"], [], ["max_tokens"]]
)
def test_older_files(saved, tmp_path, flags):
    """Older files: flags instead of a pooling's name, other module names, pickled layers, the model in a subfolder."""
    folder = tmp_path / "st"
    dense = modules.Dense(48 * max(1, len(flags)), 30)
    save(saved("bert"), folder, modules.Pooling(48, ["mean"] * max(1, len(flags))), dense, modules.Normalize())
    old_pooling(folder, flags=flags)
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
    torch.save(dense.state_dict(), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    check(st.SentenceTransformer(str(folder), device="cpu"), folder)
    (folder / "0_Transformer").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(folder / "0_Transformer" / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    llm = check(st.SentenceTransformer(str(folder), device="cpu"), folder)
    assert llm.embedding.max_tokens == 40


def test_without_modules_the_mean(saved):
    llm = fastllm.load(saved("bert"), threads=1, dtype="f32")
    assert llm.embedding == Embedding()
    assert (llm.embed(TEXTS) == llm.embed(TEXTS, pooling="mean", normalize=False)).all()


# ---- options and the command line ------------------------------------------------------------------------------------


def test_options(saved, tmp_path):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), prompts=PROMPTS)
    llm = check(model, folder)
    assert llm.embedding.similarity == "cosine"
    states = llm.hidden_states(llm.tokenize("a"), 1)
    np.testing.assert_allclose(llm.embed(["a"], layer=1, pooling="last", normalize=False)[0], states[-1])
    ids = llm.tokenize("the ocean")
    assert (llm.embed([ids]) == llm.embed(["the ocean"])).all()
    for call, said in (
        (lambda: llm.embed(["a"], prompt="x", prompt_name="query"), "not by both"),
        (lambda: llm.embed(["a"], prompt_name="passage"), "no prompt 'passage': the model's are 'document', 'query'"),
        (lambda: llm.embed(["a", ids], prompt="x"), "text 1 is token ids"),
        (lambda: llm.embed(["a"], pooling="weightedmean"), "pooling must be one of mean, cls"),
    ):
        error = failure(call)
        assert isinstance(error, fastllm.OptionError)
        assert said in str(error)
    assert "are none" in str(failure(lambda: fastllm.load(saved("bert")).embed(["a"], prompt_name="query")))


def test_nothing_is_left_of_a_text_but_its_prompt(saved, tmp_path):
    folder = tmp_path / "st"
    save(saved("qwen3"), folder, modules.Pooling(48, include_prompt=False), prompts=PROMPTS)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(words))
    llm = fastllm.load(folder, threads=1)
    assert llm.embed(["the the"], prompt_name="query").shape == (1, 48)
    assert "text 1 has no tokens but its prompt's" in str(
        failure(lambda: llm.embed(["the the", ""], prompt_name="query"))
    )


def test_special_tokens_of_a_prompt(saved, tmp_path):
    """Special tokens in a prompt are recognized, as in sentence-transformers. In a text they are text here."""
    folder = tmp_path / "st"
    model = save(saved("qwen3"), folder, modules.Pooling(48), prompts={"query": "<|im_start|>query<|im_end|>to: "})
    check(model, folder, options={"prompt_name": "query"}, prompt_name="query")


def run(capfd, *arguments):
    code = cli.main(["embed", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command_line(saved, tmp_path, capfd):
    folder = tmp_path / "st"
    model = save(saved("bert"), folder, modules.Pooling(48), modules.Normalize(), length=20, prompts=PROMPTS)
    short = ["the ocean", "a", "then then"]
    for options, theirs in (
        ((), {}),
        (("--prompt-name", "query"), {"prompt_name": "query"}),
        (("--prompt", "hello "), {"prompt": "hello "}),
        (("--pooling", "mean", "--normalize"), {}),
    ):
        code, found, _ = run(capfd, folder, *short, *options)
        assert code == 0
        np.testing.assert_allclose(found, model.encode(short, **theirs), rtol=0, atol=1e-4)
    code, found, _ = run(capfd, folder, "a", "--no-normalize")
    assert (code, abs(np.linalg.norm(found) - 1) > 1e-3) == (0, True)
    code, found, _ = run(capfd, folder, LONG, "--truncate")
    np.testing.assert_allclose(found, model.encode([LONG]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("at", [2, 300])
def test_a_long_line_is_named_after_those_before_it(saved, tmp_path, capfd, monkeypatch, at):
    folder = tmp_path / "st"
    save(saved("bert"), folder, modules.Pooling(48), length=20)
    lines = ["a", "the", ""] * 110
    lines[at] = LONG
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    code, found, err = run(capfd, folder)
    assert code == 2
    assert re.fullmatch(rf"fastllm: line {at + 1} has \d+ tokens, the model takes 20: --truncate cuts\n", err)
    np.testing.assert_allclose(found, fastllm.load(folder, threads=1).embed(lines[:at]), atol=1e-6)
    code, found, err = run(capfd, folder, "a", LONG)
    assert (code, len(found), err.startswith("fastllm: text 2 has ")) == (2, 1, True)
