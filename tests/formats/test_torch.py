"""Files that torch.save and libtorch wrote are read as torch reads them."""

import json

import numpy as np
import pytest

from fastllm import CheckpointError
from fastllm.files import map_file
from fastllm.formats import open_checkpoint
from fastllm.formats import torch as torch_format
from fastllm.tensors import floats
from helpers.data import DATA
from helpers.torch_files import tensors, values


def many_kinds(torch):
    """A state_dict with tensors of all types and layouts that a checkpoint may have."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "f32": base,
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(4, 7).bfloat16(),
        "f64": torch.randn(2, 3, dtype=torch.float64),
        "ints": torch.arange(-3, 9).view(3, 4),
        "i32": torch.arange(5, dtype=torch.int32),
        "i16": torch.arange(5, dtype=torch.int16),
        "i8": torch.arange(-2, 3, dtype=torch.int8),
        "u8": torch.arange(200, 205, dtype=torch.uint8),
        "mask": torch.tensor([[True, False], [False, True]]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(4, 4)),
        "same": base,
        "turned": base.t(),
        "turned bf16": torch.randn(5, 6).bfloat16().t(),
        "cut": base[1:5, 2:7],
        "one column": base[:, 3],
        "every second": base.view(-1)[1::2],
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "windows": torch.arange(10.0).unfold(0, 4, 2),
        "expanded": torch.randn(1, 5).expand(4, 5),
        "turned ints": torch.arange(6).view(2, 3).t(),
    }


@pytest.mark.parametrize("form", ["zip 2", "zip 3", "zip 4", "zip 5", "legacy 2", "legacy 4"])
def test_every_kind_of_tensor(tmp_path, form):
    torch = pytest.importorskip("torch")
    state, path = many_kinds(torch), tmp_path / "model.pth"
    form, protocol = form.split()
    torch.save(state, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=int(protocol))
    found = tensors(path)
    assert list(found) == list(state)
    kinds = {torch.float16: "f16", torch.bfloat16: "bf16"}
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype == kinds.get(tensor.dtype, "f32")
        expected = tensor.detach().float().numpy()
        assert np.array_equal(values(found[name]), expected), name
        if found[name].rows > 1:
            assert np.array_equal(floats(found[name], 1, 2), expected.reshape(found[name].rows, -1)[1:2])
    assert found["same"] is found["f32"]


def test_rows_lie_in_the_map(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"a": torch.randn(6, 8), "b": torch.randn(6, 8)[2:4]}, path)
    data = map_file(path)
    for tensor in torch_format.tensors(path, data).values():
        assert tensor.read(0, 2).obj is data.obj


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_inside_a_training_checkpoint(tmp_path, key):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 4)
    moments = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 3)}}, "param_groups": [{"lr": 1e-3}]}
    path = tmp_path / "checkpoint.pt"
    torch.save({key: layer.state_dict(), "optimizer": moments, "step": 7, "args": {"lr": 1e-3}}, path)
    found = tensors(path)
    assert set(found) == {"weight", "bias"}
    assert np.array_equal(values(found["weight"]), layer.weight.detach().numpy())


def test_types_without_numbers_of_ours(tmp_path):
    """A tensor of a type that is not supported is an error only when it is read."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(
        {"w": torch.ones(2), "freqs": torch.ones(3, dtype=torch.complex64), "u16": torch.ones(2).to(torch.uint16)}, path
    )
    found = tensors(path)
    assert np.array_equal(values(found["u16"]), [1, 1])
    with pytest.raises(CheckpointError, match="freqs"):
        found["freqs"].all()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_module_of_torchscript(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.LayerNorm(4)))
    path = tmp_path / "module.pt"
    torch.jit.trace(module, torch.ones(3)).save(path)
    found = tensors(path)
    assert set(found) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert np.array_equal(values(found[name]), tensor.numpy())


def test_what_libtorch_saves_for_tch():
    """tests/data/libtorch has what a C++ program wrote with libtorch's OutputArchive, as tch's VarStore::save does.

    Names are joined with |. a|weight is arange(24).reshape(4, 6) / 7, h|turned is its transpose (a view), h|half is
    the same in f16; a|bias is arange(4) - 2, and h|steps is arange(3) as int64.
    """
    found = tensors(DATA / "libtorch" / "module.ot")
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / np.float32(7)
    expected = {
        "a.weight": base,
        "a.bias": np.arange(4) - 2,
        "h.turned": base.T,
        "h.half": base.astype(np.float16),
        "h.steps": np.arange(3),
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(values(found[name]), array), name


def test_the_config_beside_it(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SomeModel"], "hidden_size": 2}))
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    assert checkpoint.architecture == "SomeModel"
    assert checkpoint.header["hidden_size"] == 2
    assert list(checkpoint.tensors) == ["w"]
