"""Whole models with quantized weights compute what the weights stand for."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastllm
from fastllm.cli import main
from fastllm.formats import open_checkpoint
from fastllm.formats.quantized import dequantized
from fastllm.tensors import floats
from helpers import quantizers
from helpers.quantizers import SMALL, W, check, llama_folder, matrix, quantize_all

RNG = np.random.default_rng(0)

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
    """GPT-2 stores matrices as (inputs, outputs), but quantizers replace them by linear layers: (outputs, inputs)."""
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
    """DeepSeek's FP8 equals transformers' dequantization; some matrices end in the middle of a 128 x 128 block."""
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
