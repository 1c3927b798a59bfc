"""Quantized matrices of other programs: the values that are read are those that the file stands for."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastllm import CheckpointError, _core
from fastllm.files import map_file
from fastllm.formats import Checkpoint, safetensors
from fastllm.formats.quantized import dequantized
from fastllm.tensors import floats
from helpers import quantizers
from helpers.quantizers import W, check, matrix, refusal
from helpers.writers import rows as packed_rows

RNG = np.random.default_rng(0)


# ---- the schemes


@pytest.mark.parametrize("shape", [(3, 40, 96), (40, 96)])
def test_mxfp4(tmp_path, shape):
    """gpt-oss's experts: to the bit, as the format of OCP says, and so are the panels that they become."""
    *rows, inputs = shape
    blocks = RNG.integers(0, 256, (*rows, inputs // 32, 16), np.uint8)
    scales = RNG.integers(104, 142, (*rows, inputs // 32), np.uint8)
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*rows, inputs // 32, 32)
    values = np.where(codes & 8, -1, 1) * e2m1[codes & 7] * np.ldexp(np.float32(1), scales.astype(int) - 127)[..., None]
    base = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{base}_blocks": blocks, f"{base}_scales": scales, f"{base}_bias": np.ones(rows, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    about = {"quantization_config": {"quant_method": "mxfp4"}}
    made = dequantized(Checkpoint(tmp_path, "safetensors", "GptOssForCausalLM", about, opened))
    assert made.format == "safetensors, MXFP4"
    assert made.tensors.keys() == {f"{base}.weight", f"{base}_bias"}
    found = made.tensors[f"{base}.weight"]
    assert (found.dtype, found.shape) == ("MXFP4", shape)
    assert (floats(found) == values.reshape(-1, inputs)).all()
    assert (floats(found, 7, 19) == values.reshape(-1, inputs)[7:19]).all()
    packed = _core.pack("q4", found.rows, inputs, "MXFP4", memoryview(found.all()).cast("B"))
    assert (packed_rows(packed) == values.reshape(-1, inputs)).all()


@pytest.mark.parametrize(
    ("blocks", "scales", "words"),
    [
        ((4, 3, 15), (4, 3), "not that of blocks of 16 bytes"),
        ((3, 16), (3,), "not that of blocks of 16 bytes"),
        ((4, 3, 16), (4, 2), r"_scales has the shape \(4, 2\), not \(4, 3\)"),
        ((4, 0, 16), (4, 0), "_blocks is empty"),
    ],
)
def test_mxfp4_that_does_not_fit(tmp_path, blocks, scales, words):
    tensors = {"x.up_proj_blocks": np.zeros(blocks, np.uint8), "x.up_proj_scales": np.zeros(scales, np.uint8)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=words):
        dequantized(Checkpoint(tmp_path, "safetensors", "GptOssForCausalLM", {}, opened))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("options", [{}, {"desc_act": True}, {"symmetric": True}, {"v2": True}], ids=str)
def test_gptq(tmp_path, bits, group_size, options):
    w = np.tile(W, (1, 2))
    tensors, expected = quantizers.gptq(w, bits=bits, group_size=group_size, **options)
    about = {"quant_method": "gptq", "bits": bits, "group_size": group_size}
    about |= {"checkpoint_format": "gptq_v2"} if "v2" in options else {}
    check(matrix(tmp_path, tensors, {"quantization_config": about}), expected)
    if "v2" not in options:  # beside, or nowhere
        check(matrix(tmp_path, tensors, {"quantize_config": {"bits": bits, "desc_act": True}}), expected)
        check(matrix(tmp_path, tensors), expected)


def test_gptq_without_group_indices_and_with_a_last_group_that_is_not_full(tmp_path):
    tensors, expected = quantizers.gptq(W[:, :80], group_size=32)
    about = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    check(matrix(tmp_path, tensors, about), expected)
    del tensors["g_idx"]
    check(matrix(tmp_path, tensors, about), expected)
    assert "3 groups, which do not divide 80 inputs" in refusal(tmp_path, tensors)


def test_gptq_whose_zeros_wrapped_around(tmp_path):
    """GPTQ stores zeros minus 1: a zero of 0 borrows from the next ones in its word, and adding 1 to each undoes it."""
    tensors, _ = quantizers.gptq(W, v2=True)
    zeros = tensors["qzeros"].view(np.uint32)
    zeros[0, 0] &= 0xFFFF0F0F
    expected = floats(matrix(tmp_path, tensors, {"quantization_config": {"checkpoint_format": "gptq_v2"}}))
    tensors["qzeros"] = (zeros - np.uint32(0x11111111)).view(np.int32)
    check(matrix(tmp_path, tensors, {}), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqs_symmetric_zeros_tell_their_version(tmp_path, bits):
    tensors, expected = quantizers.gptq(W, bits=bits, symmetric=True, v2=True)
    check(matrix(tmp_path, tensors), expected)
    check(matrix(tmp_path, tensors, {"quantize_config": {"bits": bits, "sym": True}}), expected)


@pytest.mark.parametrize("group_size", [32, 96, -1])
def test_awq(tmp_path, group_size):
    tensors, expected = quantizers.awq(W, group_size=group_size)
    about = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    check(matrix(tmp_path, tensors, {"quantization_config": about}), expected)
    check(matrix(tmp_path, tensors, {"quant_config": {"w_bit": 4, "q_group_size": group_size}}), expected)
    check(matrix(tmp_path, tensors), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_mlx(tmp_path, bits, group_size):
    w = np.tile(W, (1, 4))
    tensors, expected = quantizers.mlx(w, bits=bits, group_size=group_size)
    about = {"bits": bits, "group_size": group_size}
    check(matrix(tmp_path, tensors, {"quantization": about}), expected)
    check(matrix(tmp_path, tensors, {"quantization": about, "quantization_config": about}), expected)
    own = {"bits": 2, "group_size": 96, "model.layers.0.mlp.up_proj": about | {"mode": "affine"}}
    check(matrix(tmp_path, tensors, {"quantization": own}), expected)
    check(matrix(tmp_path, tensors, {"quantization": about}, "lm_head"), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"desc_act": True}, {"group_size": -1}], ids=str)
@pytest.mark.parametrize("rows", [64, 61])
def test_compressed_tensors_packed(tmp_path, bits, options, rows):
    tensors, expected = quantizers.packed_int(W[:rows], bits=bits, **options)
    about = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    check(matrix(tmp_path, tensors, {"quantization_config": about}), expected)
    check(matrix(tmp_path, tensors), expected)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors_of_8_bits(tmp_path, asymmetric):
    tensors, expected = quantizers.int8(W, asymmetric=asymmetric)
    check(matrix(tmp_path, tensors), expected)


def test_bitsandbytes_of_8_bits(tmp_path):
    largest = np.abs(W).max(1)
    q = np.round(W / largest[:, None] * 127).astype(np.int8)
    tensors = {"weight": q, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    found = floats(matrix(tmp_path, tensors, {"quantization_config": {"load_in_8bit": True}}))
    assert np.allclose(found, q * (largest[:, None] / 127), rtol=1e-6, atol=0)
    assert "one kind of GPU" in refusal(tmp_path, tensors | {"weight_format": np.array(2, np.uint8)})


def test_several_axes_stay(tmp_path):
    """MLX stacks the experts of a layer in one tensor of three axes."""
    one, two = (quantizers.mlx(w) for w in (W, -W))
    tensors = {name: np.stack([one[0][name], two[0][name]]) for name in one[0]}
    found = matrix(tmp_path, tensors, {"quantization": {"bits": 4, "group_size": 32}})
    assert found.shape == (2, *W.shape)
    assert np.array_equal(floats(found), np.concatenate([one[1], two[1]]))


# ---- FP8, by torch and transformers


def float8(tmp_path, w, scale, *, suffix="weight_scale", about=None, kind="float8_e4m3fn", **more):
    """Writes w as FP8 and opens it. scale: the scale to store, and the same broadcast to w for the expected values."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    spread_scale = torch.from_numpy(np.asarray(scale[1], np.float32))
    q = (torch.from_numpy(w) / spread_scale).to(getattr(torch, kind))
    stored = scale[0] if isinstance(scale[0], torch.Tensor) else torch.tensor(scale[0], dtype=torch.float32)
    tensors = {"x.weight": q, f"x.{suffix}": stored} | {f"x.{name}": value for name, value in more.items()}
    save(tensors, tmp_path / "model.safetensors")
    found = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    opened = Checkpoint(tmp_path, "x", "", {"quantization_config": about} if about else {}, found)
    made = dequantized(opened)
    assert [*made.tensors] == ["x.weight"]
    return made.tensors["x.weight"], (q.float() * spread_scale).numpy(), q, stored


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fp8_with_one_scale(tmp_path, kind, shape):
    torch = pytest.importorskip("torch")
    stored = torch.full(shape, 0.03)
    about = {"quant_method": "fp8", "activation_scheme": "static"}
    tensor, expected, *_ = float8(
        tmp_path, W, (stored, 0.03), about=about, kind=kind, input_scale=torch.tensor(2.0), k_scale=torch.tensor(1.0)
    )
    check(tensor, expected)


@pytest.mark.parametrize("shape", [(64, 1), (64,)])
def test_fp8_with_a_scale_for_each_row(tmp_path, shape):
    torch = pytest.importorskip("torch")
    scale = np.abs(RNG.standard_normal((64, 1))).astype(np.float32) + 0.01
    tensor, expected, *_ = float8(tmp_path, W, (torch.from_numpy(scale.reshape(shape)), scale))
    check(tensor, expected)


@pytest.mark.parametrize(
    ("rows", "inputs", "block"),
    [(64, 96, (32, 32)), (300, 200, (128, 128)), (61, 75, (32, 16)), (64, 96, (1, 32)), (128, 64, (128, 128))],
)
def test_fp8_with_a_scale_for_each_block(tmp_path, rows, inputs, block):
    torch = pytest.importorskip("torch")
    w = (RNG.standard_normal((rows, inputs)) * 0.1).astype(np.float32)
    grid = (-(-rows // block[0]), -(-inputs // block[1]))
    scales = np.exp(RNG.standard_normal(grid)).astype(np.float32) * 0.01
    spread_scale = np.repeat(np.repeat(scales, block[0], 0), block[1], 1)[:rows, :inputs]
    about = {"quant_method": "fp8", "weight_block_size": list(block)}
    stored = torch.from_numpy(scales)
    tensor, expected, q, _ = float8(tmp_path, w, (stored, spread_scale), suffix="weight_scale_inv", about=about)
    check(tensor, expected)
    if rows % block[0] == 0 and inputs % block[1] == 0:
        transformers = pytest.importorskip("transformers.integrations.finegrained_fp8")
        theirs = transformers.Fp8Dequantize(None).convert({"weight": q, "weight_scale_inv": stored})["weight"]
        assert np.array_equal(floats(tensor), theirs.float().numpy())
        tensor, *_ = float8(tmp_path, w, (stored, spread_scale), suffix="weight_scale_inv")  # without a config
        check(tensor, expected)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_fp8_with_powers_of_two(tmp_path, as_bytes):
    torch = pytest.importorskip("torch")
    exponents = RNG.integers(110, 126, (64, 3)).astype(np.uint8)
    spread_scale = np.repeat(np.exp2(exponents.astype(np.float32) - 127), 32, 1)
    stored = torch.from_numpy(exponents)
    tensor, expected, *_ = float8(
        tmp_path, W, (stored if as_bytes else stored.view(torch.float8_e8m0fnu), spread_scale)
    )
    check(tensor, expected)


def test_plain_fp8_is_what_it_is(tmp_path):
    """FP8 weights without any scale were only cast, and are read. A scale with an unknown name is refused."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    q = torch.from_numpy(W).to(torch.float8_e4m3fn)
    for more, refused in (({}, False), ({"x.weight.scale": torch.ones(1)}, True), ({"x.scale": torch.ones(1)}, True)):
        save({"x.weight": q, **more}, tmp_path / "model.safetensors")
        found = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
        opened = Checkpoint(tmp_path, "x", "", {}, found)
        if refused:
            with pytest.raises(CheckpointError, match="quantized with FP8"):
                dequantized(opened)
        else:
            assert np.array_equal(floats(dequantized(opened).tensors["x.weight"]), q.float().numpy())


@pytest.mark.parametrize("scaled", [True, False])
def test_fp8_without_its_scales(tmp_path, scaled):
    """A missing scale is an error if the config says FP8 or if other matrices have scales."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    q = torch.from_numpy(W).to(torch.float8_e4m3fn)
    save({"x.weight": q, "y.weight": q.clone(), "y.weight_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    found = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    if not scaled:
        del found["y.weight"], found["y.weight_scale"]
    header = {} if scaled else {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(CheckpointError, match=r"x\.weight is in FP8 and its scales are missing"):
        dequantized(Checkpoint(tmp_path, "x", "", header, found))
