"""convert's bits: each matrix gets the type whose cost, measured on a text, is worth its bytes."""

import math

import numpy as np
import pytest

import fastllm
from fastllm import OptionError, _core
from fastllm.cli import main
from fastllm.weights import budget, store, text
from fastllm.weights.convert import convert
from fastllm.weights.packing import assemble
from fastllm.weights.source import open_source
from helpers import writers
from helpers.gguf_files import llama

CONFIG = writers.config(64, 128, 4, 2, 304, n_layers=3, max_seq=160)


def kinds(path):
    """Name -> type, and the bits of a weight in the mean, of a converted file's matrices."""
    tensors = store.open_file(path).tensors
    matrices = {name: t for name, t in tensors.items() if isinstance(t, _core.Matrix)}
    bits = 8 * sum(t.nbytes for t in matrices.values()) / sum(math.prod(t.shape) for t in matrices.values())
    return {name: t.dtype for name, t in matrices.items()}, bits


@pytest.mark.parametrize("bits", [4.5, 4.75, 5, 6.25, 8, 8.5])
def test_the_mean_is_not_exceeded(write_model, tmp_path, bits):
    """And as long as there is a matrix that would fit, nothing is left over."""
    source, out = write_model(CONFIG), tmp_path / "out"
    convert(source, out, bits=bits, threads=1)
    found, mean = kinds(out)
    assert set(found.values()) <= {"q4", "q8"}
    assert mean <= bits
    shapes = {name: shape for name, shape, _ in CONFIG.matrices()}
    room = (bits - mean) * sum(math.prod(shapes[name]) for name in found) / 4  # weights that could have 8 bits
    for name, dtype in found.items():
        pair = 2 if name.endswith(("wq", "wk", "w1", "w3")) else 1
        assert dtype == "q8" or math.prod(shapes[name]) * pair > room or name.endswith("wk")
    convert(source, tmp_path / "again", bits=bits, threads=2)
    assert (tmp_path / "again").read_bytes() == out.read_bytes()


def test_the_ends_are_plain(write_model, tmp_path):
    """All in 8.5 bits is q8, all in 4.5 is q4 throughout, calibrated."""
    source = write_model(CONFIG)
    convert(source, tmp_path / "most", bits=8.5)
    convert(source, tmp_path / "q8", dtype="q8")
    assert (tmp_path / "most").read_bytes() == (tmp_path / "q8").read_bytes()
    convert(source, tmp_path / "least", bits=4.5)
    convert(source, tmp_path / "q4", dtype="q4")
    least, q4 = (store.open_file(tmp_path / name).tensors for name in ("least", "q4"))
    assert {t.dtype for t in least.values() if isinstance(t, _core.Matrix)} == {"q4"}
    for name, tensor in q4.items():
        if isinstance(tensor, _core.Matrix) and tensor.dtype == "q4":
            assert least[name].data == tensor.data


def test_more_bits_are_nearer(write_model, tmp_path):
    source, tokens = write_model(CONFIG), list(range(3, 150))
    exact = fastllm.load(source, dtype="f32").logits(tokens)
    far = []
    for bits in (4.5, 5.5, 6.5, 8.5):
        convert(source, tmp_path / "out", bits=bits)
        far.append(float(np.square(fastllm.load(tmp_path / "out", precise=True).logits(tokens) - exact).mean()))
    assert far == sorted(far, reverse=True)


def test_costs_are_divergences(write_model):
    """A cost is the KL divergence, to second order, and 0 for no change."""
    opened = open_source(write_model(CONFIG), None)
    exact, other = (assemble(opened.recipe, dtype=dtype, threads=1).tensors for dtype in ("q8", "q4"))
    pieces = [list(range(3 + i, 103 + i)) for i in range(4)]
    matrices = {name: t for name, t in exact.items() if isinstance(t, _core.Matrix)}
    meter = budget._Meter(opened.recipe, matrices, pieces, 1)
    assert meter.cost({}) == 0
    name = "layers.1.attn.wo"
    found, divergences = meter.cost({name: other[name]}), []
    for piece in pieces:
        logits = []
        for changed in ({}, {name: other[name]}):
            model = _core.Model(opened.recipe.config._replace(precise=True), {**exact, **changed})
            out = model.logits(64)
            model.forward([(_core.KVCache(model).sequence(), piece, 64)], out)
            x = np.frombuffer(memoryview(out), np.float32).reshape(64, -1)[:, :304].astype(np.float64)
            logits.append(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
        p, q = logits
        divergences.append((np.exp(p) * (p - q)).sum(axis=1).mean())
    assert np.isclose(found, np.mean(divergences), rtol=0.1)


def test_the_file_s_own_four_bits(tmp_path):
    """Blocks of four bits are exact, and stay as soon as they fit; q8 of them would be larger and less exact."""
    cfg = writers.config(256, 512, 8, 4, 304)
    for kind, dtype in (("Q4_1", "q4m"), ("Q4_0", "q4")):
        blob, *_ = llama(cfg, [kind])
        source = tmp_path / f"{kind}.gguf"
        source.write_bytes(blob)
        opened = open_source(source, None)
        small, large = budget._plans(opened.recipe, pruned=False)
        blocks = [name for name, p in large.items() if p.dtype == dtype]
        assert len(blocks) >= 14
        assert all((small[name].source.dtype == kind) == (dtype == "q4") for name in blocks)
        assert not any(name in unit for unit in budget._units(small, large) for name in blocks) or dtype == "q4m"


def test_inspect_shows_the_types(write_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(write_model(CONFIG)), str(out), "--bits", "6"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    for name, dtype in kinds(out)[0].items():
        assert f"  {name} " in shown
        assert dtype in next(line for line in shown.splitlines() if line.startswith(f"  {name} ")).split()


def test_progress_ends(write_model, tmp_path):
    seen = []
    convert(write_model(CONFIG), tmp_path / "out", bits=6, progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.parametrize("bits", [4.49, 8.51, 0, -1, math.nan, math.inf, 10**400, True, "5", [5]])
def test_numbers_that_are_no_bits(write_model, tmp_path, bits):
    with pytest.raises(OptionError, match=r"^bits must be a number from 4\.5 to 8\.5, the bits of q4 and q8, not "):
        convert(write_model(CONFIG), tmp_path / "out", bits=bits)


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("bits chooses the types of weights: it does not go with the dtype q4", {"dtype": "q4"}),
        ("bits goes with the format fastllm", {"format": "llama2c"}),
        ("bits measures on a text what types cost: it does not go with calibrate=False", {"calibrate": False}),
    ],
)
def test_what_does_not_go_together(write_model, tmp_path, said, options):
    with pytest.raises(OptionError, match=f"^{said}$"):
        convert(write_model(CONFIG), tmp_path / "out", bits=5, **options)


def test_too_few_for_this_model(write_model, tmp_path, capsys):
    """Rows that are padded to whole groups take more than the type's bits."""
    source = write_model(writers.config(40, 57, 4, 2, 300, max_seq=80))
    with pytest.raises(OptionError, match=r"^bits 5 are too few: this model's matrices take \d\.\d+ at least$"):
        convert(source, tmp_path / "out", bits=5)
    assert main(["convert", str(source), str(tmp_path / "out"), "--bits", "3"]) == 2
    assert "bits must be a number from 4.5 to 8.5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert text.default(open_source(source, None)).tokens  # it was not the text
