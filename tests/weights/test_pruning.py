"""Conversion with pruning: what becomes zero, in every type and kind of model."""

import numpy as np
import pytest

import fastllm
from fastllm import _core
from fastllm.weights import packing, store
from fastllm.weights.convert import convert
from helpers import gguf_files, oracle, writers
from helpers.architectures import ARCHITECTURES
from helpers.pruned import CONFIG, LINEAR, matrices, pieces_of
from helpers.writers import rows


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
            if dtype == "q8":  # with zeros in it, a group may have another of nine scales, 4 % apart at most
                steps = 1.04 * np.abs(whole).max() / 127
                assert (np.abs(w - kept).flat[rest] <= steps).all()
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


@pytest.mark.parametrize("calibrate", [True, False])
def test_zeros_stay_zeros_in_four_bits(write_model, tmp_path, out, text, calibrate):
    """q4 of pruned matrices has a 0. What pruning has set to zero becomes that, also where calibration would not."""
    source, f32 = write_model(CONFIG), tmp_path / "f32"
    convert(source, f32, prune="magnitude:0.5")
    convert(source, out, dtype="q4", prune="magnitude:0.5", calibrate=text if calibrate else False)
    exact, tensors = matrices(f32), store.open_file(out).tensors
    four = [name for name in filter(LINEAR.fullmatch, tensors) if tensors[name].dtype == "q4"]
    assert len(four) > 4
    for name in four:
        w, found = exact[name][0], rows(tensors[name])
        assert (found[w == 0] == 0).all()
        assert np.square(found - w).sum() < (0.02 if calibrate else 0.006) * np.square(w).sum()


@pytest.mark.parametrize("n", [32, 70])
@pytest.mark.parametrize("calibrated", [True, False])
def test_every_instruction_set_rounds_alike(n, calibrated):
    rng = np.random.default_rng(n)
    w, known = rng.standard_normal((40, n)).astype(np.float32), {}
    w[rng.random(w.shape) < 0.5] = 0
    if calibrated:
        h = oracle.damped(rng.standard_normal((500, n)))
        products, importance = h.astype(np.float32), np.empty(n, np.float32)
        _core.factor(h, importance)
        known = {"importance": importance, "feedback": h.T.astype(np.float32, order="C"), "products": products}
    found = [
        _core.pack("q4", 40, n, "f32", w.tobytes(), values=packing._PRUNED, isa=isa, threads=2, **known)
        for isa, here in _core.isas()
        if here
    ]
    assert len({bytes(one.data) for one in found}) == 1
    assert (rows(found[0])[w == 0] == 0).all()
    assert ((rows(found[0]) == 0) == (w == 0)).mean() > 0.9


def test_four_bits_after_pruning(write_model, tmp_path, out, text):
    """Pruning comes before q4 and its calibration, which rounds the pruned model's weights."""
    source = write_model(CONFIG)
    convert(source, tmp_path / "f32", prune="wanda:0.5", calibrate=text)
    convert(source, out, dtype="q4", prune="wanda:0.5", calibrate=text)
    convert(tmp_path / "f32", tmp_path / "again", dtype="q4", calibrate=text)
    assert store.open_file(out).pruning == store.open_file(tmp_path / "again").pruning
    first, second = matrices(out), matrices(tmp_path / "again")
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("name", ["bert", "esm", "clip", "embedding_gemma", "many_experts"])
def test_architectures(tmp_path, out, name):
    """Encoders, models without logits and those with many experts are pruned by magnitude as all are."""
    cfg, optional, tied = ARCHITECTURES[name]
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, tied=tied, optional=optional), "f32")
    known = {n for n, *_ in (*cfg.matrices(), *cfg.vectors())}
    stored = store.Stored(cfg, {n: t for n, t in tensors.items() if n in known}, bos=1, stop=(), chat_stop=())
    store.save(tmp_path / "f32", stored)
    convert(tmp_path / "f32", out, dtype="q8", prune="magnitude:0.5")
    shares = [(w == 0).mean() for n, stack in matrices(out).items() for w in stack if LINEAR.fullmatch(n)]
    assert all(0.49 < share < 0.55 for share in shares)  # and what q8 rounds to zero
    assert fastllm.load(out).hidden_states([6, 7, 8]).shape == (3, cfg.dim)


@pytest.mark.parametrize("how", ["wanda:0.5", "sparsegpt:0.5"])
def test_an_encoder_learns(tmp_path, out, text, how):
    """A model without logits is pruned by a text; what that costs is not measured."""
    cfg = writers.config(40, 56, 4, 2, 300, causal=False, head=False, max_seq=80)
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, optional=writers.LLAMA[1:]), "f32")
    del tensors["rope.freqs_local"]
    store.save(tmp_path / "f32", store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    convert(tmp_path / "f32", out, prune=how, calibrate=text)
    assert store.open_file(out).pruning == store.Pruning(how, 0.5, (), None)


def test_a_file_of_blocks(tmp_path, out):
    """Weights of a quantized file are pruned as what they stand for; without a dtype the model becomes q8."""
    cfg = writers.config(256, 512, 8, 4, 48)
    quantized, _, weights = gguf_files.llama(cfg, ["Q4_0", "Q4_K", "Q6_K"])
    (tmp_path / "model.gguf").write_bytes(quantized)
    convert(tmp_path / "model.gguf", tmp_path / "f32", dtype="f32", prune="magnitude:0.5")
    found = matrices(tmp_path / "f32")
    w = weights["layers.1.ffn.w2"]
    gone = np.argsort(np.abs(w), axis=None, kind="stable")[: w.size // 2]
    expected = w.copy()
    expected.flat[gone] = 0
    assert (found["layers.1.ffn.w2"][0] == expected).all()
    convert(tmp_path / "model.gguf", out, prune="magnitude:0.5")
    assert store.open_file(out).dtypes == ["q8"]
    assert (matrices(out)["layers.1.ffn.w2"][0].flat[gone] == 0).all()


def test_a_file_of_blocks_and_floats(tmp_path, out):
    """What is f16 beside blocks stays f16."""
    cfg = writers.config(256, 512, 8, 4, 48)
    quantized, *_ = gguf_files.llama(cfg, ["Q4_0", "F16"])
    (tmp_path / "model.gguf").write_bytes(quantized)
    convert(tmp_path / "model.gguf", tmp_path / "plain")
    convert(tmp_path / "model.gguf", out, prune="magnitude:0.5")
    before, after = (
        {n: t.dtype for n, t in store.open_file(path).tensors.items() if isinstance(t, _core.Matrix)}
        for path in (tmp_path / "plain", out)
    )
    assert set(before.values()) == {"q4", "f16"}
    assert after == {name: "f16" if dtype == "f16" else "q8" for name, dtype in before.items()}


# ---- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "experts"])
@pytest.mark.parametrize("options", [{"prune": "wanda:0.5"}, {"prune": "sparsegpt:0.5"}, {"drop_layers": 1}])
def test_values_that_are_not_finite(write_model, tmp_path, text, kind, options):
    """The weights are finite, what the text makes of them is not: a mask by such inputs would be arbitrary."""
    source = write_model(CONFIG) if kind == "llama" else experts(tmp_path)
    convert(source, tmp_path / "f32", dtype="f32")
    stored = store.open_file(tmp_path / "f32")
    norm = _core.Vector(np.full(stored.config.dim, 3e38, np.float32).tobytes())
    store.save(tmp_path / "large", stored._replace(tensors={**stored.tensors, "layers.1.attn_norm": norm}))
    with pytest.raises(fastllm.OptionError, match="layer 1 makes values of it that are not finite"):
        convert(tmp_path / "large", tmp_path / "out", calibrate=text, **options)
    assert not (tmp_path / "out").exists()
