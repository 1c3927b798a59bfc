"""Quantized checkpoints that cannot be read: each is refused in one sentence that names the cause."""

import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError
from fastllm.cli import main
from fastllm.formats.quantized import dequantized
from fastllm.tensors import floats
from helpers import quantizers
from helpers.quantizers import W, checkpoint, llama_folder, matrix, quantize_all, refusal

# Scheme -> a function from a matrix w to its tensors by the ends of their names, and the words of the refusal.
REFUSED = {
    "bnb nf4": (
        lambda w: {
            "weight": np.zeros((w.size // 2, 1), np.uint8),
            "weight.absmax": np.zeros(w.size // 64, np.uint8),
            "weight.quant_map": np.zeros(16, np.float32),
            "weight.quant_state.bitsandbytes__nf4": np.zeros(80, np.uint8),
        },
        r"bitsandbytes \(NF4, 4 bits\)",
    ),
    "bnb, states lost": (lambda w: {"weight": np.zeros((w.size // 2, 1), np.uint8)}, "as uint8"),
    "mxfp4": (
        lambda w: {"weight_blocks": np.zeros((4, 2, 16), np.uint8), "weight_scales": np.zeros((4, 2), np.uint8)},
        "MXFP4",
    ),
    "hqq": (lambda w: {"W_q": np.zeros(w.shape, np.uint8), "scale": np.ones((4, 1), np.float16)}, "HQQ"),
    "eetq": (lambda w: {"weight": np.zeros(w.shape, np.int8), "weight_scales": np.ones(4, np.float16)}, "EETQ"),
    "aqlm": (lambda w: {"codes": np.zeros((4, 4, 1), np.int8), "codebooks": np.ones((1, 4, 1, 8), np.float16)}, "AQLM"),
    "vptq": (
        lambda w: {"indices": np.zeros((1, 4), np.int32), "centroids.weight": np.ones((1, 4), np.float16)},
        "VPTQ",
    ),
    "quip": (lambda w: {"Qidxs": np.zeros((4, 4), np.int64), "SU": np.ones(4, np.float16)}, "QuIP"),
    "exl2": (lambda w: {"q_weight": np.zeros((4, 4), np.int32), "q_invperm": np.zeros(4, np.int32)}, "EXL2"),
    "nvfp4": (
        lambda w: {
            "weight": np.zeros((4, 4), np.uint8),
            "weight_scale": w[:, :2],
            "weight_scale_2": np.ones(1, np.float32),
        },
        "NVFP4",
    ),
    "quanto": (
        lambda w: {"weight._data": np.zeros(w.shape, np.int8), "weight._scale": np.ones((4, 1), np.float16)},
        "quanto",
    ),
    "bitnet": (
        lambda w: {"weight": np.zeros((w.shape[0] // 4, w.shape[1]), np.uint8), "weight_scale": np.ones(1, np.float16)},
        "scaled weights",
    ),
    "gptq of other words": (lambda w: {"qweight": np.zeros((4, 4), np.int16), "scales": w}, "packed integers"),
    "fp4": (
        lambda w: {"weight": np.zeros(w.shape, np.int8), "weight_scale_inv": np.ones((1, 1), np.float32)},
        "scaled weights",
    ),
}


@pytest.mark.parametrize("scheme", REFUSED)
@pytest.mark.parametrize("original", ["owner/the-model", "/home/me/model", None])
def test_other_schemes_are_named(tmp_path, scheme, original, capsys):
    make, words = REFUSED[scheme]

    def change(arrays):
        made = {}
        for name, w in arrays.items():
            parts = make(w) if "mlp" in name else {"weight": w}
            made |= {name.removesuffix("weight") + part: np.ascontiguousarray(t) for part, t in parts.items()}
        return made

    folder = llama_folder(tmp_path, change, _name_or_path=original)
    with pytest.raises(
        CheckpointError, match=f"is quantized with .*{words}.*, which fastllm cannot read: use "
    ) as caught:
        fastllm.load(folder)
    assert ("owner/the-model" in str(caught.value)) == (original == "owner/the-model")
    assert "/home" not in str(caught.value)
    assert main(["inspect", str(folder)]) == 0
    assert "  quantized " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "bitnet", "quantization_mode": "online"}, "BitNet"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": {}}}}, "transform_config"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config"),
        ([4], r"quantization_config \[4\]"),
    ],
)
def test_configs_that_change_the_computation(tmp_path, section, words):
    folder = llama_folder(tmp_path, lambda arrays: arrays, quantization_config=section)
    with pytest.raises(CheckpointError, match=words):
        fastllm.load(folder)


@pytest.mark.parametrize("scheme", ["gptq", "mlx", "int8", "packed_int"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_not_finite(tmp_path, scheme, bad):
    def change(arrays):
        stored = quantize_all(arrays, lambda w: getattr(quantizers, scheme)(w.astype(np.float32)))[0]
        name = next(name for name in stored if name.endswith(("q_proj.scales", "q_proj.weight_scale")))
        stored[name][0, 0] = bad
        return stored

    folder = llama_folder(tmp_path, change, **(MLX_CONFIG if scheme == "mlx" else {}))
    with pytest.raises(CheckpointError, match="not finite"):
        fastllm.load(folder)


# ---- what does not fit


GPTQ, _ = quantizers.gptq(W)
AWQ, _ = quantizers.awq(W)
MLX, _ = quantizers.mlx(W)
PACKED, _ = quantizers.packed_int(W, symmetric=False)
INT8, _ = quantizers.int8(W, asymmetric=True)
MLX_CONFIG = {"quantization": {"bits": 4, "group_size": 32}}


@pytest.mark.parametrize(
    ("tensors", "change", "header", "words"),
    [
        (GPTQ, {"g_idx": np.full(96, 3, np.int32)}, {}, "g_idx names group 3 of 3"),
        (GPTQ, {"g_idx": np.full(96, -1, np.int32)}, {}, "g_idx names group"),
        (GPTQ, {"g_idx": np.zeros(80, np.int32)}, {}, r"g_idx has the shape \(80,\)"),
        (GPTQ, {"g_idx": np.zeros(96, np.float32)}, {}, "g_idx is of the type f32"),
        (GPTQ, {"scales": GPTQ["scales"][:, :-1]}, {}, "qweight has the shape"),
        (GPTQ, {"scales": GPTQ["scales"][:2]}, {}, "qzeros has the shape"),
        (GPTQ, {"scales": GPTQ["scales"].astype(np.int32)}, {}, "scales is of the type int32"),
        (GPTQ, {"scales": GPTQ["scales"][0]}, {}, "scales has 1 axes, not 2"),
        (GPTQ, {"scales": None}, {}, "no tensor model.layers.0.mlp.up_proj.scales"),
        (GPTQ, {"qzeros": None}, {}, "no tensor model.layers.0.mlp.up_proj.qzeros"),
        (GPTQ, {"qzeros": GPTQ["qzeros"][:, :0]}, {}, "qzeros is empty"),
        (GPTQ, {"qzeros": GPTQ["qzeros"][:, :-1]}, {}, "qzeros has the shape"),
        (GPTQ, {"qweight": GPTQ["qweight"][:-1]}, {}, "g_idx has the shape"),
        (GPTQ, {}, {"quantization_config": {"checkpoint_format": "marlin"}}, "marlin"),
        (GPTQ, {}, {"quantization_config": {"format": "gptq_p"}}, "gptq_p"),
        (GPTQ, {}, {"quantization_config": "gptq"}, "quantization_config 'gptq'"),
        (AWQ, {"qzeros": AWQ["qzeros"][:, :-1]}, {}, "qzeros has the shape"),
        (AWQ, {}, {"quantization_config": {"bits": 8}}, "AWQ of 8 bits"),
        (AWQ, {}, {"quantization_config": {"version": "gemv"}}, "gemv"),
        (AWQ, {"scales": AWQ["scales"][:1].repeat(5, 0), "qzeros": AWQ["qzeros"][:1].repeat(5, 0)}, {}, "5 groups"),
        (MLX, {}, {}, "how many bits"),
        (MLX, {}, {"quantization": {"bits": 8, "group_size": 32}}, "does not fit"),
        (MLX, {}, {"quantization": {"bits": 4, "group_size": 0}}, "does not fit"),
        (MLX, {}, {"quantization": {"bits": True, "group_size": 32}}, "how many bits"),
        (MLX, {}, {"quantization": {"bits": 4, "group_size": 32, "mode": "nvfp4"}}, "nvfp4"),
        (MLX, {"biases": None}, MLX_CONFIG, "affine"),
        (MLX, {"biases": MLX["biases"][:-1]}, MLX_CONFIG, "biases has the shape"),
        (MLX, {"weight": MLX["weight"][:-1]}, MLX_CONFIG, "does not fit"),
        (PACKED, {"weight_shape": np.array([64, 97])}, {}, "cannot hold 64 x 97"),
        (PACKED, {"weight_shape": np.array([1 << 40, 1 << 40])}, {}, "cannot hold"),
        (PACKED, {"weight_shape": np.array([-1, 96])}, {}, "cannot hold"),
        (PACKED, {"weight_shape": np.array([64.0, 96.0])}, {}, "weight_shape is of the type float64"),
        (PACKED, {"weight_scale": PACKED["weight_scale"].repeat(2, 1)[:, :5]}, {}, "5 groups"),
        (PACKED, {"weight_zero_point": PACKED["weight_zero_point"][:-1]}, {}, "weight_zero_point has the shape"),
        (PACKED, {"weight_scale": None}, {}, "no tensor .*weight_scale"),
        (INT8, {"weight_scale": INT8["weight_scale"][:-1]}, {}, "weight_scale has the shape|weight_zero_point has"),
        (INT8, {"weight_zero_point": INT8["weight_zero_point"][:-1]}, {}, "weight_zero_point has the shape"),
        (INT8, {"weight": INT8["weight"][0]}, {}, "weight has 1 axes"),
        (INT8, {}, {"quantization_config": {"weight_block_size": 128}}, "|"),
    ],
)
def test_tensors_that_do_not_fit_each_other(tmp_path, tensors, change, header, words):
    tensors = {name: t for name, t in (tensors | change).items() if t is not None}
    if words == "|":
        floats(matrix(tmp_path, tensors, header))
        return

    said = refusal(tmp_path, tensors, header)
    assert re.search(words, said)
    assert str(tmp_path) in said


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 128, -1]),
    st.floats(),
    st.sampled_from(["gptq", "gptq_v2", "awq", "gemm", "", "4"]),
    st.lists(st.integers(-1, 1 << 70), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = (
    "bits",
    "group_size",
    "quant_method",
    "checkpoint_format",
    "format",
    "version",
    "weight_block_size",
    "mode",
    "x",
)
CHANGES = {
    "drop": lambda t: None,
    "shorter": lambda t: t[:-1],
    "narrower": lambda t: t[..., :-1],
    "flat": lambda t: t.reshape(-1),
    "stacked": lambda t: t[None],
    "turned": lambda t: np.ascontiguousarray(t.T),
    "floats": lambda t: t.astype(np.float32),
    "bytes": lambda t: t.astype(np.uint8),
    "words": lambda t: t.astype(np.uint32),
    "small": lambda t: t.astype(np.int8),
    "ones": lambda t: np.full_like(t, -1 if t.dtype != np.uint32 else 1),
}


@given(
    st.sampled_from([GPTQ, AWQ, MLX, PACKED, INT8]),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*CHANGES])), max_size=3),
    st.sampled_from(["quantization_config", "quantization", "quant_config"]),
    st.one_of(VALUES, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some tensors are made of numbers that overflow
@settings(max_examples=150)
def test_whatever_is_changed_gives_a_matrix_or_one_sentence(tmp_path_factory, tensors, changes, section, about):
    tensors = dict(tensors)
    for index, change in changes:
        name = [*tensors][index % len(tensors)]
        if (changed := CHANGES[change](tensors.pop(name))) is not None:
            tensors[name] = changed
        if not tensors:
            return
    with suppress(CheckpointError):
        found = dequantized(checkpoint(tmp_path_factory.mktemp("changed"), tensors, {section: about}))
        for tensor in found.tensors.values():
            if tensor.stored:
                assert floats(tensor).shape == (tensor.rows, tensor.width)
