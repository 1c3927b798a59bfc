"""Models with four-bit weights, with and without a calibration text."""

import math

import numpy as np
import pytest

import fastllm
from fastllm import OptionError, _core
from fastllm.cli import main
from fastllm.families import Recipe, Weight
from fastllm.tensors import Tensor
from fastllm.weights import store
from fastllm.weights.calibration import Calibration
from fastllm.weights.convert import convert
from fastllm.weights.packing import assemble, plan
from fastllm.weights.source import open_source
from fastllm.weights.text import Text
from helpers import writers
from helpers.oracle import damped
from helpers.writers import rows

# ---- models ----------------------------------------------------------------------------------------------------------

CONFIG = writers.config(64, 96, 4, 2, 300, max_seq=160)
TOKENS = list(range(3, 45))
TEXT = "".join(np.random.default_rng(1).choice(list("tehainorgsdlcupm.,!? "), 6000))


def test_a_model_computes_with_its_own_weights(write_model, tmp_path):
    """A q4 model differs from one with the same values in f32 only by the int8 rounding of activations."""
    path = write_model(CONFIG)
    found = fastllm.load(path, dtype="q4")
    convert(path, tmp_path / "out", dtype="q4")
    stored = store.open_file(tmp_path / "out")
    tensors = {
        name: _core.pack("f32", *t.shape, "f32", rows(t).tobytes()) if isinstance(t, _core.Matrix) else t
        for name, t in stored.tensors.items()
    }
    exact = fastllm.llm.LLM(
        stored._replace(tensors=tensors), found.tokenizer, threads=1, context=None, path=path
    ).logits(TOKENS)
    error = np.sqrt(np.square(found.logits(TOKENS) - exact).mean())
    assert error < 0.05 * exact.std()
    far = fastllm.load(path, dtype="f32").logits(TOKENS)
    assert np.sqrt(np.square(far - exact).mean()) > 3 * error


def test_head_and_embedding_are_int8(write_model, tmp_path, capsys):
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out), "--dtype", "q4"]) == 0
    stored = store.open_file(out)
    kinds = {name: t.dtype for name, t in stored.tensors.items() if isinstance(t, _core.Matrix)}
    assert kinds["embed"] == kinds["head"] == "q8"
    assert kinds["layers.0.ffn.w1"] == kinds["layers.0.attn.wo"] == kinds["layers.0.attn.wq"] == "q4"
    assert kinds["layers.0.attn.wv"] == kinds["layers.0.ffn.w2"] == kinds["layers.1.ffn.w1"] == "q8"
    assert set(kinds.values()) == {"q4", "q8"}
    loaded = fastllm.load(out, dtype="q4")
    assert loaded.dtypes == ["q4"]
    assert (loaded.logits(TOKENS) == fastllm.load(path, dtype="q4").logits(TOKENS)).all()
    with pytest.raises(OptionError):
        fastllm.load(out, dtype="q8")
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "q4" in capsys.readouterr().out


def test_bits_of_a_weight():
    """For a Llama with 1.1 billion weights a token reads fewer bits per weight, head included, than Q4_K_M's 4.85."""
    cfg = writers.config(2048, 5632, 32, 4, 32000, n_layers=22)
    weights = {
        name: Weight(Tensor("f16", shape, lambda begin, end: b""))
        for name, shape, required in cfg.matrices()
        if required or name == "head"
    }
    plans = plan(Recipe(cfg, weights, {}, 1, (2,), ()), "q4")
    read = [p for name, p in plans.items() if name != "embed"]
    assert 4.5 < sum(p.nbytes for p in read) * 8 / sum(math.prod(p.shape) for p in read) < 4.85
    layers = [p for name, p in plans.items() if name.startswith("layers.")]
    assert sum(p.nbytes for p in layers) * 8 / sum(math.prod(p.shape) for p in layers) < 4.6
    assert [name for name, p in plans.items() if p.dtype == "q8"] == [
        "layers.21.attn.wv",
        "layers.21.ffn.w2",
        "embed",
        "head",
    ]


# ---- calibration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_inputs_are_what_the_matrices_multiply(write_model):
    """Calibration's sums of x x^T equal those of inputs computed from hidden states, by the norms of each layer."""
    path = write_model(CONFIG)
    recipe = open_source(path, None).recipe
    stored = assemble(recipe, dtype="q8", threads=1)
    tokens = list(range(3, 260))
    seen = Calibration(recipe, Text([1], tokens), threads=2)
    llm = fastllm.load(path, dtype="q8", kv="f32")
    pieces = [[1, *tokens[at : at + 159]] for at in range(0, len(tokens), 159)]  # 160 positions
    x = np.concatenate([llm.hidden_states(piece, 1) for piece in pieces]).astype(np.float64)
    weight = np.frombuffer(stored.tensors["layers.1.attn_norm"].data, np.float32)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + stored.config.norm_eps) * weight
    importance, feedback, products = seen.factors("layers.1.attn.wk")
    upper = np.tril(feedback, -1).T.astype(np.float64) + np.eye(len(feedback))
    exact = damped(x)
    assert np.allclose(upper * importance @ upper.T, exact, rtol=1e-3, atol=1e-4 * exact.max())
    assert np.allclose(products, exact, rtol=1e-3, atol=1e-4 * exact.max())
    # Of values it counts how much they are attended to, by all heads of all tokens after them.
    attended = [np.sqrt(np.square(llm.attentions(piece, 1), dtype=np.float64).sum(axis=(0, 1))) for piece in pieces]
    exact = damped((x * np.concatenate(attended)[:, None]).astype(np.float32))
    assert np.allclose(seen.factors("layers.1.attn.wv").products, exact, rtol=1e-3, atol=1e-4 * exact.max())
    assert seen.factors("layers.0.ffn.w2").products.shape == (96, 96)
    assert seen.factors("embed") is None
    assert seen.factors("layers.1.router") is None


def test_calibrated_is_closer(write_model, tmp_path, text):
    """On other text of the same kind, a calibrated model's logits are closer to the unquantized ones."""
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    tokens = (llm := fastllm.load(path, dtype="f32")).tokenize(TEXT[::-1])[:150]
    exact = llm.logits(tokens)
    plain = np.abs(fastllm.load(path, dtype="q4").logits(tokens) - exact)
    assert main(["convert", str(path), str(out), "--dtype", "q4", "--calibrate", str(text), "--threads", "1"]) == 0
    found = np.abs(fastllm.load(out).logits(tokens) - exact)
    assert (found**2).mean() < (plain**2).mean()
    again = tmp_path / "again.safetensors"
    convert(path, again, dtype="q4", calibrate=text, threads=2)
    assert again.read_bytes() == out.read_bytes()


def test_texts_that_cannot_calibrate(write_model, tmp_path, text, capsys):
    path, out = write_model(CONFIG), tmp_path / "out.safetensors"
    for words in (b"", b"too few words", b"\xff\xfe\xff" * 1000):
        text.write_bytes(words)
        with pytest.raises(OptionError, match="calibration text"):
            convert(path, out, dtype="q4", calibrate=text)
    with pytest.raises(OptionError, match="cannot be read"):
        convert(path, out, dtype="q4", calibrate=tmp_path / "none.txt")
    text.write_text(TEXT)
    for options in ({"dtype": "q8"}, {}, {"format": "llama2c"}):
        with pytest.raises(OptionError, match="q4"):
            convert(path, out, calibrate=text, **options)
    assert main(["convert", str(path), str(out), "--calibrate", str(text)]) == 2
    assert "q4" in capsys.readouterr().err
    assert not out.exists()
