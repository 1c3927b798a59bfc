"""torch.save's files against torch itself, and pickles that are not what they should be."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import CheckpointError
from fastllm.files import map_file
from fastllm.formats import open_checkpoint, pickles
from fastllm.formats import torch as torch_format
from fastllm.tensors import floats
from helpers.calls import failure, soon
from helpers.data import DATA


def tensors(path):
    return torch_format.tensors(path, map_file(path))


def values(tensor):
    return floats(tensor).reshape(tensor.shape)


def refused(path, word):
    """The file is refused at once, by one line that names it and has the word."""
    with soon(), pytest.raises(CheckpointError, match=word) as error:
        tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# ---- files that torch writes


def many_kinds(torch):
    """A state_dict with tensors of every kind that a checkpoint may have."""
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
    """A buffer of a type that is not read does no harm until it is asked for."""
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
    """libtorch's OutputArchive, which tch's VarStore::save fills, its names joined with |, from C++ by hand.

    a|weight is arange(24).reshape(4, 6) / 7, h|turned its transpose (a view), h|half itself in f16; a|bias is
    arange(4) - 2, h|steps arange(3) as int64.
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


# ---- files made by hand


def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(n):
    return b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def call(name, *args):
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(args) + b"tR"


def numbers(ns):
    return b"(" + b"".join(map(number, ns)) + b"t"


def storage(count, key="0", kind="FloatStorage"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(count=6, offset=0, shape=(2, 3), strides=(3, 1), key="0"):
    hooks = call("collections OrderedDict")
    args = (storage(count, key), number(offset), numbers(shape), numbers(strides), b"\x89", hooks)
    return call("torch._utils _rebuild_tensor_v2", *args)


def state(**items):
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def archive(pickled, files=None, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in ({"data/0": bytes(24)} if files is None else files).items():
            file.writestr(f"archive/{name}", data)
    return out.getvalue()


def legacy(pickled, storages=b"", *, little=True, keys=("0",)):
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little})
    parts = [pickle.dumps(head, 2) for head in heads]
    return b"".join(parts) + pickled + pickle.dumps(list(keys), 2) + storages


SIX = np.arange(6, dtype=np.float32)
GOOD = archive(state(w=tensor()), {"data/0": SIX.tobytes(), "byteorder": b"little"})
GOOD_LEGACY = legacy(state(w=tensor()), struct.pack("<q", 6) + SIX.tobytes())


@pytest.mark.parametrize("blob", [GOOD, GOOD_LEGACY])
def test_the_files_made_by_hand_are_right(tmp_path, blob):
    path = tmp_path / "model.pth"
    path.write_bytes(blob)
    assert np.array_equal(values(tensors(path)["w"]), SIX.reshape(2, 3))


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("nested", ["top", "value", "list", "state", "key"])
@pytest.mark.parametrize("form", [archive, legacy])
def test_nothing_is_executed(tmp_path, form, nested, protocol):
    import os

    evil = Evil(os.system, f"touch {tmp_path / 'executed'}")
    wrap = {
        "top": evil,
        "value": {"w": evil},
        "list": {"model": [[evil]]},
        "state": {"state_dict": {"w": evil}},
        "key": {("a", evil): 1},
    }
    path = tmp_path / "model.pth"
    path.write_bytes(form(pickle.dumps(wrap[nested], protocol)))
    refused(path, "no tensors by name|do not name" if protocol else "opcode")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["posix system", "builtins eval", "torch load", "numpy load", "argparse Namespace"])
def test_names_that_are_not_looked_up(tmp_path, name):
    """Whatever would be imported, called, made or changed by a file is left out; its tensors are read."""
    path = tmp_path / "model.pth"
    named, made = b"c" + name.replace(" ", "\n").encode() + b"\n", call(name, text("touch x"))
    for pickled in (
        made,
        named,  # never called
        b"".join(text(part) for part in name.split()) + b"\x93",
        b"(i" + name.replace(" ", "\n").encode() + b"\n",
        b"(" + named + text("x") + b"o",
        named + b"(" + b"N" * 1000 + b"t\x81",
        named + b"(" + text("x") + b"t}(" + text("a") + text("b") + b"u\x92",
        made + b"}(" + text("a") + text("b") + b"ub",
        made + b"(" + text("a") + text("b") + b"u(" + text("a") + text("b") + b"e",
        made + b"(" + b"NN" + b"tR",  # the result called again
        b"\x8f(" + text("a") + made + b"\x90(" + made + b"\x910",
        b"}(" + made + text("b") + b")" + text("c") + b"u",  # keys that no name is
    ):
        path.write_bytes(archive(state(w=tensor(), other=pickled)))
        assert list(tensors(path)) == ["w"]
        path.write_bytes(archive(b"\x80\x02" + pickled + b"."))
        refused(path, "no tensors by name")


def test_tensors_in_forms_that_are_not_read(tmp_path):
    """Beside tensors that are: nothing of the weights is left out in silence."""
    path = tmp_path / "model.pth"
    made = call("torch._utils _rebuild_qtensor", storage(6), number(0), numbers((2, 3)), numbers((3, 1)))
    path.write_bytes(archive(state(w=tensor(), v=made)))
    refused(path, "'v' as torch._utils._rebuild_qtensor, which fastllm does not read")
    path.write_bytes(archive(state(w=tensor(), v=tensor().replace(b"FloatStorage", b"QInt8Storage"))))
    refused(path, "'v' as torch.QInt8Storage")


@pytest.mark.parametrize(
    ("items", "word"),
    [
        ({"count": 7}, "7 values in 24 bytes"),
        ({"count": -1}, "no sense"),
        ({"count": 1 << 62}, "values in 24 bytes"),
        ({"offset": 1}, "needs value 7 of"),
        ({"offset": -1}, "impossible"),
        ({"shape": (3, 3)}, "needs value 9 of"),
        ({"shape": (-2, 3)}, "impossible"),
        ({"shape": (2,)}, "impossible"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "spreads"),
        ({"shape": (1 << 100, 3)}, "needs value"),
        ({"shape": (2,) * 60, "strides": (0,) * 60}, "impossible"),
        ({"shape": (2,) * 70, "strides": (0,) * 70}, "no sense"),
        ({"strides": (4, 1)}, "needs value 7 of"),
        ({"strides": (-3, 1)}, "impossible"),
        ({"strides": (1 << 100, 1)}, "needs value"),
        ({"key": "1"}, "'1' is missing"),
        ({"key": "../data/0"}, "missing"),
    ],
)
def test_lying_sizes(tmp_path, items, word):
    path = tmp_path / "model.pth"
    path.write_bytes(archive(state(w=tensor(**items))))
    refused(path, word)


@pytest.mark.parametrize(
    ("pickled", "word"),
    [
        (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "no tensors by name"),  # lists in lists
        (b"\x80\x02)" + b"\x85" * 400_000 + b".", "no tensors by name"),  # tuples in tuples
        (b"\x80\x02}(" + b")" + b"\x85" * 400_000 + b"Nu.", "no tensors by name"),
        (b"\x80\x02]" + b"2\x86" * 200_000 + b".", "no tensors by name"),  # 2^200,000 values
        (b"\x80\x02" + b"]" * 600_000 + b".", "steps"),
        (b"\x80\x02" + b"(" * 400_000 + b".", "no sense"),
        (b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + b"\xff" * (1 << 20) + b".", "1,048,576 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "truncated"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "truncated"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "truncated"),
        (b"\x80\x04h\x05.", "no sense"),
        (b"\x80\x02.", "no sense"),
        (b"\x80\x02N", "no sense"),
        (b"\x80\x02X\x02\x00\x00\x00\xc3\x28.", "no sense"),  # no UTF-8
        (b"\x80\x02(lQ.", "no sense"),
        (b"\x80\x02" + storage(1)[:-1] + b"0.", "no sense"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "without end"),  # contains itself
        (
            b"\x80\x02]q\x00"
            + b"("
            + b"N" * 200_000
            + b"e"
            + b"ctorch\nSize\nq\x01"
            + b"h\x01h\x00\x85R0" * 50_000
            + b".",
            "no sense",
        ),
    ],
    ids=range(18),
)
@pytest.mark.parametrize("form", [archive, legacy])
def test_hostile_pickles(tmp_path, form, pickled, word):
    path = tmp_path / "model.pth"
    path.write_bytes(form(pickled))
    if form is legacy and word in ("no tensors by name", "without end"):
        word = f"{word}|do not name"
    refused(path, word)


def test_keys_that_collide(tmp_path):
    """Numbers with one hash would make a dict of n keys take n^2 steps."""
    modulus = (1 << 61) - 1
    keys = b"".join(number(i * modulus) + b"N" for i in range(100_000))
    path = tmp_path / "model.pth"
    path.write_bytes(archive(b"\x80\x02}(" + keys + b"u."))
    refused(path, "no tensors by name")


def test_modules_that_share_modules(tmp_path):
    """Sixty levels, each with the level below twice: 2^60 names."""
    pickled = tensor()
    for _ in range(60):
        pickled = b"c__torch__\nM\n)\x81}(" + text("a") + pickled + b"q\x00" + text("b") + b"h\x00ub"
    path = tmp_path / "model.pth"
    path.write_bytes(archive(b"\x80\x02" + pickled + b"."))
    refused(path, "without end")


def test_other_archives(tmp_path):
    path = tmp_path / "model.pth"
    for blob, word in (
        (archive(state(w=tensor()), {"data/0": bytes(24), "byteorder": b"big"}), "big-endian"),
        (legacy(state(w=tensor()), struct.pack("<q", 6) + bytes(24), little=False), "big-endian"),
        (archive(state(w=tensor()), {}), "'0' is missing"),
        (archive(state(w=tensor()), {"data/0": bytes(23)}), "23 bytes"),
        (archive(state(n=b"N")), "no tensors by name"),
        (archive(b"\x80\x02]."), "no tensors by name"),
        (GOOD.replace(b"data.pkl", b"data.pkk"), "without data.pkl"),
        (legacy(state(w=tensor()), struct.pack("<q", 5) + bytes(24)), "6 values"),
        (legacy(state(w=tensor()), struct.pack("<q", 6) + bytes(23)), "truncated"),
        (legacy(state(w=tensor()), struct.pack("<q", 6) + bytes(24), keys=()), "missing"),
        (legacy(state(w=tensor()), (struct.pack("<q", 6) + bytes(24)) * 2, keys=("0", "0")), "twice"),
        (legacy(state(w=tensor()), struct.pack("<q", 6) + bytes(24), keys=("1",)), "do not name"),
    ):
        path.write_bytes(blob)
        refused(path, word)


def test_deflated_archives(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(archive(state(w=tensor()), {"data/0": SIX.tobytes()}, zipfile.ZIP_DEFLATED))
    found = tensors(path)["w"]
    assert np.array_equal(floats(found, 1, 2), [[3, 4, 5]])
    assert np.array_equal(floats(found, 0, 1), [[0, 1, 2]])
    zeros = 64 << 20
    bomb = archive(
        state(w=tensor(zeros // 4, shape=(zeros // 4,), strides=(1,))), {"data/0": bytes(zeros)}, zipfile.ZIP_DEFLATED
    )
    path.write_bytes(bomb)
    refused(path, "67,108,864 bytes")


@pytest.mark.parametrize("blob", [GOOD, GOOD_LEGACY], ids=["zip", "legacy"])
def test_truncated_at_every_byte(tmp_path, blob):
    path = tmp_path / "model.pth"
    for size in range(2, len(blob)):
        path.write_bytes(blob[:size])
        refused(path, "truncated|broken")


@settings(max_examples=200)
@given(
    st.sampled_from([GOOD, GOOD_LEGACY]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_mutated_anywhere(tmp_path_factory, blob, changes):
    """A byte or several are others: it is refused, or tensors are read."""
    changed = bytearray(blob)
    for place, value in changes:
        changed[place % len(blob)] = value
    path = tmp_path_factory.mktemp("mutated") / "model.pth"
    path.write_bytes(bytes(changed))

    def use():
        for found in tensors(path).values():
            assert floats(found).size <= 1 << 16

    error = failure(use)
    assert error is None or str(path) in str(error)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 100), 1 << 100)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(3, 5))
def test_plain_objects_are_what_python_reads(tmp_path_factory, value, protocol):
    blob = pickle.dumps(value, protocol)
    found, end = pickles.load(tmp_path_factory.getbasetemp() / "x", memoryview(blob + b"rest"), lambda _: None)
    assert found == value
    assert end == len(blob)
