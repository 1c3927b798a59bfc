"""Conversion to llama2.c's files: equal to those of its export.py, or refused."""

import struct

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError
from fastllm.config import rope_freqs
from fastllm.llm.verify import verify
from fastllm.weights import source, store
from fastllm.weights.convert import convert
from helpers import writers
from helpers.data import DATA
from helpers.writers import write_folder

MODELS = ("llama2c_gqa_tied", "llama2c_untied")
TOKENS = list(range(3, 45))


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_llama2c_s_own_files_come_back(tmp_path, name, version):
    """From version 0 to any version: export.py's file, byte for byte, except version 0's rotation tables."""
    folder, out = DATA / name, tmp_path / "model.bin"
    convert(folder / "model_v0.bin", out, format="llama2c", version=version)
    expected = (folder / ("model_v2_q80.bin" if version == 2 else f"model_v{version}.bin")).read_bytes()
    found = out.read_bytes()
    if version:
        assert found == expected
        return
    llm = fastllm.load(out)
    cfg = llm.config
    begin = 28 + 4 * (cfg.vocab_size * cfg.dim + cfg.n_layers * 2 * cfg.dim + cfg.dim)
    begin += 4 * cfg.n_layers * cfg.dim * (2 * cfg.dim + 2 * cfg.head_dim * cfg.n_kv_heads + 3 * cfg.hidden_dim)
    end = begin + 4 * cfg.max_seq * cfg.head_dim
    assert (found[:begin], found[end:]) == (expected[:begin], expected[end:])
    ours, theirs = (np.frombuffer(blob[begin:end], "<f4") for blob in (found, expected))
    assert np.abs(ours - theirs).max() < 2e-7  # one unit in the last place of a cosine
    assert np.abs(ours).max() == 1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_llama2c_there_and_back(write_model, tmp_path, version, tied):
    """A llama2.c file comes back unchanged, also by way of a converted file, whose rows have another order."""
    source = write_model(tied=tied)
    expected = fastllm.load(source).logits(TOKENS)
    convert(source, tmp_path / "f32", dtype="f32")
    for path in (source, tmp_path / "f32"):
        convert(path, tmp_path / "back.bin", format="llama2c", version=version)
        assert (fastllm.load(tmp_path / "back.bin").logits(TOKENS) == expected).all()


@pytest.mark.parametrize("tied", [True, False])
def test_one_model_in_two_formats(write_model, tmp_path, tied):
    """The same weights as a Hugging Face folder and as a llama2.c file give equal logits and equal llama2.c files."""
    cfg = writers.config(40, 56, 4, 2, 300, max_seq=64)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg, tied=tied))
    source = write_model(cfg, tied=tied)
    assert (fastllm.load(folder).logits(TOKENS) == fastllm.load(source).logits(TOKENS)).all()
    for version in (1, 2):
        made = []
        for path in (folder, source):
            convert(path, tmp_path / "made.bin", format="llama2c", version=version)
            made.append((tmp_path / "made.bin").read_bytes())
        assert made[0] == made[1]
    for path in (folder, source):
        convert(path, tmp_path / "made.q8", dtype="q8")
        made.append(fastllm.load(tmp_path / "made.q8").logits(TOKENS))
    assert (made[2] == made[3]).all()


def test_a_folder_s_own_files_are_not_written_over(tmp_path):
    cfg = writers.config(40, 56, 4, 2, 300)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg))
    for target in (folder / "model.safetensors", folder / "config.json"):
        with pytest.raises(CheckpointError, match="a part of it"):
            convert(folder, target)
    convert(folder, folder / "new.safetensors")
    assert fastllm.load(folder / "new.safetensors").config == fastllm.load(folder).config


@pytest.mark.parametrize(("stored", "dtype"), [(None, None), ("Q4_1", "q8"), ("int8", "q8")])
def test_weights_of_a_few_bits_become_int8(tmp_path, monkeypatch, stored, dtype):
    """Weights of four to eight bits become llama2.c's int8: as f32 the file would be several times as large."""
    path = tmp_path / "model.bin"
    cfg = writers.config(40, 56, 4, 2, 300)
    path.write_bytes(writers.v0(cfg, writers.random_weights(cfg)))
    plain = source.open_checkpoint(path)
    changed = plain._replace(tensors={k: t._replace(stored=stored) for k, t in plain.tensors.items()})
    monkeypatch.setattr(source, "open_checkpoint", lambda _: changed)
    assert fastllm.load(path).dtypes == [dtype or "f32"]
    assert fastllm.load(path, dtype="f16").dtypes == ["f16"]
    convert(path, tmp_path / "out")
    assert fastllm.load(tmp_path / "out").dtypes == [dtype or "f32"]
    # Compared with what the file says, not with what was made of it.
    assert verify(path, tmp_path / "out").largest == 0 if dtype is None else verify(path, tmp_path / "out").largest > 0


@pytest.mark.parametrize(("dim", "hidden", "group"), [(128, 192, 64), (96, 128, 32), (40, 56, 8), (36, 50, 4)])
def test_llama2c_s_groups_divide(write_model, tmp_path, dim, hidden, group):
    """The group size is chosen as in export.py: 64, halved until it divides dim."""
    cfg = writers.config(dim, hidden, 2, 1, 300)
    source = write_model(cfg)
    convert(source, tmp_path / "out.bin", format="llama2c", version=2)
    blob = (tmp_path / "out.bin").read_bytes()
    assert struct.unpack_from("<i", blob, 37) == (group,)
    weights = writers.random_weights(cfg)
    assert blob == writers.v2(cfg, weights, group)


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        ("norm_eps is 1e-06", {"norm_eps": 1e-6}),
        ("act is relu", {"act": "relu"}),
        ("gated is False", {"gated": False}),
        ("norm is layer", {"norm": "layer"}),
        ("rotary_dim is 4", {"rotary_dim": 4}),
        ("head_dim is 16", {"head_dim": 16}),
        ("windows is", {"windows": (0, 7)}),
        ("causal is False", {"causal": False}),
        ("embed_scale is 2", {"embed_scale": 2.0}),
        ("n_experts is 2", {"n_experts": 2, "n_experts_used": 1, "expert_dim": 8}),
        ("it has layers.0.attn_norm.bias", {}),
        ("theta", {"theta": 5e5}),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_what_llama2c_cannot_hold(tmp_path, said, changed):
    theta = changed.pop("theta", 1e4)
    cfg = writers.config(32, 40, 4, 2, 300, **changed)
    optional = (*writers.LLAMA, "bias") if "bias" in said else writers.LLAMA
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, optional=optional), "f32")
    del tensors["rope.freqs_local"]
    freqs = rope_freqs(theta, cfg.rotary_dim)
    tensors["rope.freqs"] = type(tensors["rope.freqs"])(freqs)
    store.save(tmp_path / "model", store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    with pytest.raises(CheckpointError, match=f"llama2.c cannot hold this model.*{said}"):
        convert(tmp_path / "model", tmp_path / "out", format="llama2c")
    assert not (tmp_path / "out").exists()
