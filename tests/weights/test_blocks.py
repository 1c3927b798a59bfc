"""Files of blocks, from GGUF to logits: weights stay what they are, reordered, as experts, in converted files."""

from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError, _core, families
from fastllm.formats import Checkpoint, open_checkpoint
from fastllm.llm.verify import verify
from fastllm.tensors import Tensor, at
from fastllm.weights import source, store
from fastllm.weights.convert import convert
from fastllm.weights.packing import assemble
from fastllm.weights.source import open_source
from helpers import writers
from helpers.blocks import KEPT
from helpers.calls import run
from helpers.gguf_files import llama
from helpers.writers import rows

PLAIN = writers.config(256, 512, 8, 4, 48)
EXPERTS = writers.config(256, 0, 8, 4, 48, n_experts=3, n_experts_used=2, expert_dim=256)
KINDS = ["Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "Q8_0", "Q5_0", "Q6_K"]
EXACT = [kind for kind in KINDS if kind not in KEPT]
TOKENS = np.random.default_rng(5).integers(0, 48, 60).tolist()


def written(folder, cfg, kinds, **options):
    """A Llama of blocks, its path; the path of the same weights as f32; the weights."""
    kept, plain, weights = llama(cfg, kinds, **options)
    paths = folder / "kept.gguf", folder / "plain.gguf"
    for path, blob in zip(paths, (kept, plain), strict=True):
        path.write_bytes(blob)
    return *paths, weights


def packed(path, dtype=None):
    return assemble(open_source(path, None).recipe, dtype=dtype, threads=2)


def values(matrix):
    """The weights of a matrix or a stack of them: f32."""
    *stack, d, n = matrix.shape
    parts = [matrix.data[i * len(matrix.data) // (stack or [1])[0] :] for i in range((stack or [1])[0])]
    size = _core.matrix_bytes(matrix.dtype, d, n)
    found = [rows(_core.Matrix(matrix.dtype, d, n, p[:size], values=matrix.values)) for p in parts]
    return np.stack(found) if stack else found[0]


def in_order(cfg, name, w):
    """Rows in the core's order."""
    heads = {"wq": cfg.n_heads, "wk": cfg.n_kv_heads}.get(name[-2:])
    return w if heads is None else w[writers.half_split(heads, cfg.head_dim, cfg.head_dim)]


@pytest.mark.parametrize("cfg", [PLAIN, EXPERTS], ids=["plain", "experts"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_to_the_bit(tmp_path, cfg, tied):
    path, _, weights = written(tmp_path, cfg, EXACT, tied=tied)
    found = packed(path).tensors
    assert found.keys() - {"rope.freqs"} == weights.keys()
    for name, w in weights.items():
        if isinstance(found[name], _core.Matrix):
            assert values(found[name]).tobytes() == in_order(cfg, name, w).tobytes(), name
            assert name.endswith("router") or found[name].dtype in ("q4", "q4m", "q8")


@pytest.mark.parametrize("kind", KINDS)
def test_logits(tmp_path, kind):
    """Those of the same weights as f32, but for the rounding of activations, and of scales."""
    kept, plain, _ = written(tmp_path, PLAIN, [kind])
    models = [
        fastllm.load(path, dtype=dtype, threads=1) for path, dtype in ((kept, None), (plain, "f32"), (kept, "f32"))
    ]
    found, expected, floats = (model.logits(TOKENS) for model in models)
    assert (floats == expected).all()
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()


@pytest.mark.parametrize("cfg", [PLAIN, EXPERTS], ids=["plain", "experts"])
def test_a_converted_file(tmp_path, cfg):
    """It has the same panels and tables, and the same logits."""
    path, _, _ = written(tmp_path, cfg, KINDS)
    target = tmp_path / "model.fastllm"
    convert(path, target, threads=2)
    before, after = packed(path), store.open_file(target)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert bytes(tensor.data) == bytes(after.tensors[name].data)
        assert getattr(tensor, "dtype", None) == getattr(after.tensors[name], "dtype", None)
        assert getattr(tensor, "values", None) == getattr(after.tensors[name], "values", None)
    assert before.dtypes == after.dtypes == ["q4", "q4m"]
    assert len({t.values for t in after.tensors.values() if isinstance(t, _core.Matrix)} - {None}) == 3
    one, other = (fastllm.load(p, threads=1).logits(TOKENS) for p in (path, target))
    assert (one == other).all()


def test_another_table_in_a_converted_file(tmp_path):
    """Its JSON has the tables; other values there are another model, and values that cannot be are an error."""
    path, _, _ = written(tmp_path, PLAIN, ["Q4_0"])
    target = tmp_path / "model.fastllm"
    convert(path, target)
    blob, table = target.read_bytes(), str([*range(-8, 8)]).encode()
    assert blob.count(table) == 1 + 1 + 7 * PLAIN.n_layers
    target.write_bytes(blob.replace(table, table.replace(b"-8", b"-9")))
    assert store.open_file(target).tensors["embed"].values == (-9, *range(-7, 8))
    for bad in (b'"", -7, -6', b"[], -7, -6", b"1., -7, -6", b"-8, -7,300", b"-8, -7    "):
        target.write_bytes(blob.replace(table, table.replace(b"-8, -7, -6", bad)))
        with pytest.raises(CheckpointError, match="not a usable converted file"):
            store.open_file(target)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
def test_a_type_that_is_asked_for(tmp_path, dtype):
    """Blocks that become it as they are, are moved; others are packed from what they stand for."""
    path, _, weights = written(tmp_path, PLAIN, KINDS)
    opened = open_checkpoint(path).tensors
    found = packed(path, dtype).tensors
    kinds = {"f32": (), "f16": (), "q8": ("Q8_0", "Q5_0", "Q6_K"), "q4": ("Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4")}[dtype]
    moved = packed(path).tensors
    names = {"attn.wq": "attn_q", "attn.wv": "attn_v", "ffn.w1": "ffn_gate", "ffn.w2": "ffn_down", "ffn.w3": "ffn_up"}
    for layer in range(PLAIN.n_layers - 1):  # q4 keeps some matrices of the last one as q8
        for short, theirs in names.items():
            name, kind = f"layers.{layer}.{short}", opened[f"blk.{layer}.{theirs}.weight"].dtype
            if dtype == "q4" and found[name].dtype == "q8":
                continue
            assert found[name].dtype == dtype
            if kind in kinds:
                assert bytes(found[name].data) == bytes(moved[name].data)
                assert found[name].values == moved[name].values
            else:
                expected = writers.pack(dtype, np.ascontiguousarray(in_order(PLAIN, name, weights[name])))
                assert bytes(found[name].data) == bytes(expected.data)


def test_types_that_no_panels_hold(tmp_path):
    """Q5_1 and Q5_K become q8, rounded; the floats of such files stay floats."""
    path, plain, _ = written(tmp_path, PLAIN, ["Q5_1", "Q5_K", "Q8_0"])
    found = packed(path).tensors
    assert {t.dtype for t in found.values() if isinstance(t, _core.Matrix)} == {"q8"}
    assert packed(path).dtypes == ["q8"]
    assert packed(plain).dtypes == ["f32"]


def test_experts_of_several_types(tmp_path):
    """Experts that are tensors of their own, each of another type, and so are one stack of floats, become q8."""
    path, _, weights = written(tmp_path, EXPERTS, ["Q4_0"])
    blob, _, other = llama(EXPERTS, ["Q4_1"], seed=2)
    (tmp_path / "other.gguf").write_bytes(blob)
    found, second = open_checkpoint(path), open_checkpoint(tmp_path / "other.gguf")
    tensors = {}
    for name, tensor in found.tensors.items():
        for i in range(3) if "_exps" in name else ():
            tensors[name.replace("_exps", f".{i}")] = at(second.tensors[name] if i == 1 else tensor, i)
        if "_exps" not in name:
            tensors[name] = tensor
    made = assemble(families.recipe(found._replace(tensors=tensors)), dtype=None, threads=1).tensors
    for name in ("layers.0.experts.w1", "layers.1.experts.w2"):
        mixed = np.stack([weights[name][0], other[name][1], weights[name][2]])
        assert made[name].dtype == "q8"
        assert (values(made[name]) == np.stack([rows(writers.pack("q8", w)) for w in mixed])).all()
    assert made["embed"].dtype == made["layers.0.attn.wq"].dtype == "q4"


def test_a_scale_that_is_not_finite(tmp_path):
    path, _, _ = written(tmp_path, PLAIN, ["Q4_0"])
    block = bytes(open_checkpoint(path).tensors["output.weight"].read(7, 8)[:18])
    path.write_bytes(path.read_bytes().replace(block, b"\x00\x7c" + block[2:]))
    with pytest.raises(CheckpointError, match=rf"{path.name}.*head as q4: a value is not finite, or too large"):
        fastllm.load(path)


def test_inspect(tmp_path):
    """It shows the types and bytes that a file has, also a converted one."""
    path, _, _ = written(tmp_path, PLAIN, ["Q4_K", "Q6_K"])
    done = run(f"from fastllm.cli.program import main; raise SystemExit(main(['inspect', {str(path)!r}]))")
    assert done.returncode == 0, done.stderr
    line = next(line.split() for line in done.stdout.splitlines() if "token_embd" in line)
    assert line == ["token_embd.weight", "Q4_K", "48", "x", "256", f"{48 * 144:,}", "bytes"]
    target = tmp_path / "model.fastllm"
    convert(path, target)
    done = run(f"from fastllm.cli.program import main; raise SystemExit(main(['inspect', {str(target)!r}]))")
    line = next(line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["embed"])
    assert line == ["embed", "q4m", "48", "x", "256", f"{48 * 160:,}", "bytes"]


def test_verify_compares_with_floats(tmp_path):
    """A converted file of blocks is compared with what the blocks stand for, and not with itself."""
    kept, plain, _ = written(tmp_path, PLAIN, ["Q4_0", "Q4_K", "Q6_K"])
    out = tmp_path / "out.safetensors"
    convert(kept, out)
    found = verify(kept, out, tokens=60)
    assert found.largest > 0
    assert found == verify(plain, out, tokens=60)


def test_no_text_for_weights_that_stay(tmp_path):
    kept, _, _ = written(tmp_path, PLAIN, ["Q4_0"])
    text = tmp_path / "text.txt"
    text.write_text("a text")
    with pytest.raises(OptionError, match="calibrate has no effect"):
        convert(kept, tmp_path / "out", dtype="q4", calibrate=text)


@pytest.mark.parametrize(
    ("stack", "dtype"), [(("bf16", (2, 4, 32)), "bf16"), (("f16", (2, 4, 32)), None), (("MXFP4", (2, 4, 32)), None)]
)
def test_the_type_of_sums_with_adapters_is_that_of_all_weights(stack, dtype):
    """Experts count too: those in blocks stay blocks beside matrices of bf16."""
    kinds = {"a": ("bf16", (4, 32)), "norm": ("f32", (32,)), "experts": stack}
    tensors = {name: Tensor(kind, shape, lambda begin, end: b"") for name, (kind, shape) in kinds.items()}
    assert source._common_dtype(Checkpoint(Path("x"), "safetensors", "x", {}, tensors)) == dtype
