"""Checkpoints that others quantized: against what their numbers stand for, and those that cannot be read."""

import json
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import fastllm
from fastllm import CheckpointError
from fastllm.cli import main
from fastllm.files import map_file
from fastllm.formats import Checkpoint, open_checkpoint, safetensors
from fastllm.formats.quantized import dequantized
from fastllm.tensors import floats
from helpers import quantizers

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((64, 96)) * 0.1).astype(np.float32)
SMALL = {"head_dim": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def checkpoint(tmp_path, tensors, header=None, base="model.layers.0.mlp.up_proj"):
    """A folder's tensors, written and read."""
    save_file({f"{base}.{k}": np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    found = safetensors.tensors(tmp_path / "model.safetensors", map_file(tmp_path / "model.safetensors"))
    return Checkpoint(tmp_path, "Hugging Face safetensors", "LlamaForCausalLM", header or {}, found)


def matrix(tmp_path, tensors, header=None, base="model.layers.0.mlp.up_proj"):
    found = dequantized(checkpoint(tmp_path, tensors, header, base))
    assert [*found.tensors] == [f"{base}.weight"]  # nothing else is left that could be overlooked
    tensor = found.tensors[f"{base}.weight"]
    assert tensor.stored
    return tensor


def refusal(tmp_path, tensors, header=None):
    """Why a matrix cannot be read, at once or as it is read."""
    with pytest.raises(CheckpointError) as caught:
        floats(matrix(tmp_path, tensors, header))
    return str(caught.value)


def check(tensor, expected):
    """All rows at once, and in pieces that no group or word ends with."""
    assert tensor.shape == expected.shape
    assert np.array_equal(floats(tensor), expected)
    pieces = [floats(tensor, begin, min(begin + 7, tensor.rows)) for begin in range(0, tensor.rows, 7)]
    assert np.array_equal(np.concatenate(pieces), expected)


# ---- the schemes


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
    """A zero of 0, less 1, borrows from the zeros after it in its word: adding 1 to each in the word gives it back."""
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
    """MLX stacks a layer's experts."""
    one, two = (quantizers.mlx(w) for w in (W, -W))
    tensors = {name: np.stack([one[0][name], two[0][name]]) for name in one[0]}
    found = matrix(tmp_path, tensors, {"quantization": {"bits": 4, "group_size": 32}})
    assert found.shape == (2, *W.shape)
    assert np.array_equal(floats(found), np.concatenate([one[1], two[1]]))


# ---- FP8, by torch and transformers


def float8(tmp_path, w, scale, *, suffix="weight_scale", about=None, kind="float8_e4m3fn", **more):
    """A matrix whose scales are broadcast to it by hand, and what it stands for."""
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
        tensor, *_ = float8(tmp_path, w, (stored, spread_scale), suffix="weight_scale_inv")  # without the config
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
    """Weights that were only cast have no scales: they are legal values; a scale of a name that is not known is not."""
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
    """Among matrices that have some, or under a config that says so, they are lost."""
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


# ---- whole models


def quantize_all(tensors, scheme, skip=("embed", "lm_head")):
    """A model's tensors with its matrices quantized, but for those with a word of `skip`, and what they stand for."""
    stored, plain = {}, {}
    for name, w in tensors.items():
        if w.ndim == 2 and not any(part in name for part in skip):
            made, plain[name] = scheme(w)
            stored |= {name.removesuffix("weight") + part: np.ascontiguousarray(t) for part, t in made.items()}
        else:
            stored[name] = plain[name] = w
    return stored, plain


MODELS = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, lambda w: quantizers.gptq(w, desc_act=True)),
    "gptq beside": ({}, quantizers.gptq),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, quantizers.awq),
    "mlx": ({"quantization": {"bits": 4, "group_size": 32}}, quantizers.mlx),
    "packed": ({"quantization_config": {"quant_method": "compressed-tensors"}}, quantizers.packed_int),
    "int8": ({}, quantizers.int8),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_their_numbers_stand_for(tmp_path, name):
    reference = pytest.importorskip("helpers.reference")
    torch = reference.torch
    config, scheme = MODELS[name]
    settings = {"vocab_size": 61, "num_hidden_layers": 2, "max_position_embeddings": 64, **SMALL}
    model = reference.build("LlamaForCausalLM", reference.transformers.LlamaConfig(**settings))
    model.save_pretrained(tmp_path)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored, plain = quantize_all(tensors, scheme, **({"skip": ()} if name == "mlx" else {}))
    save_file(stored, tmp_path / "model.safetensors")
    written = json.loads((tmp_path / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(written))
    if "beside" in name:
        (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    model.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in plain.items()})
    ids = reference.tokens(61, 40)
    expected = reference.logits(model, ids)
    assert reference.difference(fastllm.load(tmp_path, dtype="f32", threads=1).logits(ids), expected) < 1e-4
    natural = fastllm.load(tmp_path, threads=1)
    assert set(natural.dtypes) == {"q8"}
    model.save_pretrained(tmp_path / "plain")
    assert np.array_equal(natural.logits(ids), fastllm.load(tmp_path / "plain", dtype="q8", threads=1).logits(ids))


@pytest.mark.parametrize("scheme", [quantizers.gptq, quantizers.awq, quantizers.mlx])
def test_gpt2s_matrices_are_outputs_first_once_quantized(tmp_path, scheme):
    """A linear layer has taken the place of what stores (inputs, outputs)."""
    reference = pytest.importorskip("helpers.reference")
    config = reference.transformers.GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    model = reference.build("GPT2LMHeadModel", config)
    model.save_pretrained(tmp_path)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    turned = {name: w.T if ".h." in name and w.ndim == 2 else w for name, w in tensors.items()}
    stored, plain = quantize_all(turned, scheme, skip=("wte", "wpe"))
    save_file({name: np.ascontiguousarray(t) for name, t in stored.items()}, tmp_path / "model.safetensors")
    written = json.loads((tmp_path / "config.json").read_text()) | {"quantization": {"bits": 4, "group_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    plain = {name: w.T if ".h." in name and w.ndim == 2 else w for name, w in plain.items()}
    model.load_state_dict({name: torch_of(w) for name, w in plain.items()}, strict=False)
    ids = reference.tokens(61, 40)
    found = fastllm.load(tmp_path, dtype="f32", threads=1).logits(ids)
    assert reference.difference(found, reference.logits(model, ids)) < 1e-4


def torch_of(w):
    import torch

    return torch.from_numpy(np.array(w))


@pytest.mark.parametrize("config", [True, False])
def test_transformers_reads_the_same_from_fp8(tmp_path, config):
    """A model of DeepSeek's form, whose matrices do not all end with a block, as transformers dequantizes it."""
    reference = pytest.importorskip("helpers.reference")
    torch, transformers = reference.torch, reference.transformers
    from safetensors.torch import save_file as save

    settings = {"vocab_size": 61, "num_hidden_layers": 2, "max_position_embeddings": 64, **SMALL}
    settings |= {"hidden_size": 256, "intermediate_size": 384, "head_dim": 32}
    model = reference.build("Qwen3ForCausalLM", transformers.Qwen3Config(**settings))
    model.save_pretrained(tmp_path)
    stored = {}
    for name, w in model.state_dict().items():
        if w.ndim == 2 and "layers" in name:
            block = tuple(min(128, n) for n in w.shape)
            parts = w.reshape(w.shape[0] // block[0], block[0], w.shape[1] // block[1], block[1])
            scales = parts.abs().amax((1, 3)) / 448
            stored[name] = (parts / scales[:, None, :, None]).reshape(w.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
        else:
            stored[name] = w
    save(stored, tmp_path / "model.safetensors", {"format": "pt"})
    written = json.loads((tmp_path / "config.json").read_text())
    section = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(written | {"quantization_config": section}))
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128)),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    if not config:
        (tmp_path / "config.json").write_text(json.dumps(written))
    ids = reference.tokens(61, 40)
    expected = reference.logits(read.eval(), ids)
    assert reference.difference(reference.logits(model, ids), expected) > 0.01
    assert reference.difference(fastllm.load(tmp_path, dtype="f32", threads=1).logits(ids), expected) < 1e-4


def llama_folder(tmp_path, change, **config):
    """A tiny Llama whose tensors `change` returns anew."""
    dim, hidden, vocab = 32, 64, 20
    shapes = {"q_proj": (dim, dim), "k_proj": (16, dim), "v_proj": (16, dim), "o_proj": (dim, dim)}
    tensors = {"model.embed_tokens.weight": (vocab, dim), "lm_head.weight": (vocab, dim), "model.norm.weight": (dim,)}
    layer = "model.layers.0"
    tensors |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {f"{layer}.mlp.{name}.weight": (hidden, dim) for name in ("gate_proj", "up_proj")}
    tensors |= {f"{layer}.mlp.down_proj.weight": (dim, hidden)}
    tensors |= {f"{layer}.{name}.weight": (dim,) for name in ("input_layernorm", "post_attention_layernorm")}
    arrays = {name: RNG.standard_normal(shape).astype(np.float16) for name, shape in tensors.items()}
    save_file(change(arrays), tmp_path / "model.safetensors")
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
    }
    settings |= {"max_position_embeddings": 64, **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(settings | config))
    return tmp_path


# Scheme -> what a matrix w becomes, by the ends of names; then the words that say what it is.
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


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes", "compressed-tensors", "something new"])
def test_weights_that_are_plain_again_are_read_whatever_the_config_says(tmp_path, method):
    folder = llama_folder(tmp_path, lambda arrays: arrays, quantization_config={"quant_method": method, "bits": 4})
    assert set(fastllm.load(folder, threads=1).dtypes) == {"f16"}


def test_what_inspect_shows(tmp_path, capsys):
    def change(arrays):
        return quantize_all(arrays, lambda w: quantizers.gptq(w.astype(np.float32)))[0]

    folder = llama_folder(tmp_path, change, quantization_config={"quant_method": "gptq", "bits": 4})
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "quantized      GPTQ, 4 bits" in out
    line = next(line for line in out.splitlines() if "up_proj.qweight" in line)
    assert line.split()[1:] == ["int32", "4", "x", "64", "1,024", "bytes"]
    sizes = [t.nbytes for t in open_checkpoint(folder).tensors.values()]
    assert f"{sum(sizes):,} bytes" in out


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


def test_torchs_files_hold_integers_too(tmp_path):
    torch = pytest.importorskip("torch")
    tensors, expected = quantizers.gptq(W, desc_act=True)
    path = tmp_path / "model.bin"
    torch.save({f"x.{name}": torch.from_numpy(t.copy()) for name, t in tensors.items()}, path)
    found = dequantized(open_checkpoint(path))
    assert np.array_equal(floats(found.tensors["x.weight"]), expected)
    torch.save({f"x.{name}": torch.from_numpy(np.asfortranarray(t)) for name, t in tensors.items()}, path)
    assert np.array_equal(floats(dequantized(open_checkpoint(path)).tensors["x.weight"]), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqs_group_indices_tell_bits_that_narrow_zeros_do_not(tmp_path, bits):
    tensors, expected = quantizers.gptq(W[:16], bits=bits)
    check(matrix(tmp_path, tensors), expected)


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
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of making the tensors
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
