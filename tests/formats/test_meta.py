"""Meta's consolidated.NN.pth with params.json: transformers' logits, joined parts, all versions of Llama."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError
from fastllm.decoding import Sampling
from fastllm.families import recipe
from fastllm.formats import Checkpoint, open_checkpoint
from fastllm.tensors import Tensor, floats
from helpers.data import DATA, checkpoints

MODELS = checkpoints("meta_llama2_mp1", "meta_llama2_mp2", "meta_llama3_mp2")
LLAMA_3 = DATA / "meta_llama3_mp2"


@pytest.mark.parametrize("folder", MODELS)
def test_golden_logits_and_greedy_ids(folder):
    with np.load(folder / "expected.npz") as expected:
        llm = fastllm.load(folder, dtype="f32", threads=1)
        assert np.abs(llm.logits(expected["tokens"]) - expected["logits"]).max() < 1e-4
        start = llm.start(expected["greedy_prompt"], Sampling(temperature=0), max_tokens=16, seed=0, stop=())
        assert list(start) == expected["greedy"].tolist()


@pytest.mark.parametrize("folder", MODELS)
def test_every_tensor_is_joined_as_it_was_split(folder):
    torch = pytest.importorskip("torch")
    about = json.loads((folder / "meta.json").read_text())
    parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]
    found = open_checkpoint(folder)
    assert {key: list(tensor.shape) for key, tensor in found.tensors.items()} == about["tensors"]
    for key, tensor in found.tensors.items():
        axis = about["shard_dims"].get(key.split(".", 2)[-1] if key.startswith("layers") else key)
        shares = [part[key] for part in parts]
        whole = shares[0] if axis is None or tensor.rows == 1 else torch.cat(shares, axis)
        assert np.array_equal(floats(tensor), whole.float().numpy().reshape(tensor.rows, tensor.width)), key


def test_one_part_opens_all():
    one, whole = open_checkpoint(LLAMA_3 / "consolidated.01.pth"), open_checkpoint(LLAMA_3)
    assert one.architecture == whole.architecture == "meta.llama"
    assert {k: t.shape for k, t in one.tensors.items()} == {k: t.shape for k, t in whole.tensors.items()}


# ---- what is amiss


@pytest.fixture
def folder(tmp_path):
    """A copy of the checkpoint that a test may break."""
    path = tmp_path / "model"
    path.mkdir()
    for file in (*LLAMA_3.glob("*.pth"), LLAMA_3 / "params.json"):
        shutil.copyfile(file, path / file.name)
    return path


def refused(path, word):
    with pytest.raises(CheckpointError, match=word) as error:
        fastllm.load(path, threads=1)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_parts(folder):
    (folder / "consolidated.01.pth").rename(folder / "consolidated.03.pth")
    refused(folder, r"lacks consolidated\.01\.pth")
    (folder / "consolidated.03.pth").unlink()
    refused(folder, "1 of 2 parts")
    (folder / "consolidated.00.pth").rename(folder / "consolidated.01.pth")
    refused(folder, r"lacks consolidated\.00\.pth")


def test_a_truncated_part(folder):
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, r"consolidated\.01\.pth is truncated")


def test_parts_of_different_models(folder):
    torch = pytest.importorskip("torch")
    path = folder / "consolidated.01.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "layers.0.attention.wq.weight": torch.zeros(3, 48)}, path)
    refused(folder, r"layers\.0\.attention\.wq\.weight in several shapes")
    state.pop("norm.weight")
    torch.save(state, path)
    refused(folder, r"norm\.weight")
    for file in folder.glob("*.pth"):
        state = torch.load(file, weights_only=True)
        torch.save({**state, "norm.weight": torch.ones(48), "adapter.weight": torch.zeros(2, 2)}, file)
    refused(folder, r"adapter\.weight")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "params.json is empty"),
        ("{", "params.json is broken"),
        ("[" * 100000, "params.json is broken"),
        ("[]", "params.json is broken"),
        ("{}", "dim"),
        ('{"dim": 48, "n_heads": 0, "n_layers": 2}', "0 attention heads"),
        ('{"dim": 48, "n_heads": 7, "n_layers": 2}', "7 attention heads"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 3, "n_kv_heads": 2}', r"layers\.2"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 2, "n_kv_heads": 3}', r"attn\.wk"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 2, "n_kv_heads": 2, "rope_theta": -1}', "rope_theta"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 2, "n_kv_heads": 2, "rope_theta": 1e300}', "rope_theta"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 2, "n_kv_heads": 2, "moe_args": {"num_experts": 8}}', "moe_args"),
        ('{"dim": 48, "n_heads": 6, "n_layers": 2, "quantization_args": {"scheme": "int4"}}', "quantization_args"),
    ],
)
def test_params_that_do_not_fit(folder, text, word):
    (folder / "params.json").write_text(text)
    refused(folder, word)


# ---- Llama's versions


def plan(**params):
    """The recipe of a model of one layer whose params.json has these params."""
    vocab, dim, heads = params.pop("vocab", 64), params.pop("dim", 32), 2

    def tensor(*shape, value=1.0):
        return Tensor("f32", shape, lambda begin, end: np.full((end - begin, shape[-1]), value, np.float32))

    shapes = {"tok_embeddings": (vocab, dim), "norm": (dim,), "layers.0.attention_norm": (dim,)}
    shapes |= {"layers.0.ffn_norm": (dim,)} | {f"layers.0.attention.w{x}": (dim, dim) for x in "qkvo"}
    shapes |= {f"layers.0.feed_forward.w{x}": (dim, 40) if x == 2 else (40, dim) for x in (1, 2, 3)}
    tensors = {f"{name}.weight": tensor(*shape) for name, shape in shapes.items()}
    match params.pop("head", "own"):
        case "own":
            tensors["output.weight"] = tensor(vocab, dim, value=2.0)
        case "equal":
            tensors["output.weight"] = tensor(vocab, dim)
        case "same":
            tensors["output.weight"] = tensors["tok_embeddings.weight"]
    header = {"dim": dim, "n_layers": 1, "n_heads": heads, "vocab_size": -1, **params}
    return recipe(Checkpoint(Path("params"), "Meta .pth", "meta.llama", header, tensors))


def scaled(theta, dim, factor):
    """Rotary frequencies by apply_scaling of Meta's llama3/model.py, in float64."""
    out = []
    for i in range(0, dim, 2):
        freq = theta ** (-i / dim)
        wave = 2 * np.pi / freq
        smooth = np.clip((8192 / wave - 1) / (4 - 1), 0, 1)
        out.append((1 - smooth) * freq / factor + smooth * freq)
    return np.array(out)


@pytest.mark.parametrize(
    ("params", "theta", "factor", "context"),
    [
        ({}, 1e4, 1, 4096),
        ({"rope_theta": 5e5}, 5e5, 1, 8192),
        ({"rope_theta": 1e6}, 1e6, 1, 16384),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "dim": 4096}, 5e5, 8, 131072),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "dim": 2048}, 5e5, 32, 131072),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "rope_scaling_factor": 4.0}, 5e5, 4, 131072),
        ({"rope_theta": 5e5, "max_seq_len": 100}, 5e5, 1, 100),
    ],
)
def test_rotation_and_context(params, theta, factor, context):
    made = plan(**params)
    freqs = np.frombuffer(made.vectors["rope.freqs"], np.float32)
    assert made.config.max_seq == context
    np.testing.assert_allclose(freqs, scaled(theta, made.config.head_dim, factor), rtol=1e-5)


def test_bos_and_stop():
    assert (plan().bos, plan().stop) == (1, (2,))
    three = plan(vocab=128256)
    assert (three.bos, three.stop) == (128000, (128001, 128008, 128009))
    llama2c = plan(hidden_dim=40, max_seq_len=256)
    assert (llama2c.bos, llama2c.stop, llama2c.chat_stop) == (1, (1,), (1, 2))


def test_heads():
    assert "head" in plan(head="own").matrices
    assert "head" not in plan(head="equal").matrices
    assert "head" not in plan(head="same").matrices
    assert "head" not in plan(head="none").matrices


def test_a_head_that_is_the_embedding_in_the_file(folder):
    torch = pytest.importorskip("torch")
    for file in folder.glob("*.pth"):
        state = torch.load(file, weights_only=True)
        torch.save({**state, "output.weight": state["tok_embeddings.weight"]}, file)
    assert "head" not in recipe(open_checkpoint(folder)).matrices
