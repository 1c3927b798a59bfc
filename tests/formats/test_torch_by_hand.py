"""Pickles and archives that torch.save would not write: hostile, broken, or only unusual."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import CheckpointError
from fastllm.formats import _pickles as pickles
from fastllm.tensors import floats
from helpers.calls import soon
from helpers.mutations import read_changed
from helpers.torch_files import (
    GOOD,
    GOOD_LEGACY,
    SIX,
    archive,
    call,
    legacy,
    number,
    numbers,
    state,
    storage,
    tensor,
    tensors,
    text,
    values,
)


def refused(path, word):
    """Asserts that a file is refused within the time of soon(), in one line with its path and this word."""
    with soon(), pytest.raises(CheckpointError, match=word) as error:
        tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


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
    """Nothing that a pickle names is imported, called or changed; its tensors are read all the same."""
    path = tmp_path / "model.pth"
    named, made = b"c" + name.replace(" ", "\n").encode() + b"\n", call(name, text("touch x"))
    for pickled in (
        made,
        named,  # named, not called
        b"".join(text(part) for part in name.split()) + b"\x93",
        b"(i" + name.replace(" ", "\n").encode() + b"\n",
        b"(" + named + text("x") + b"o",
        named + b"(" + b"N" * 1000 + b"t\x81",
        named + b"(" + text("x") + b"t}(" + text("a") + text("b") + b"u\x92",
        made + b"}(" + text("a") + text("b") + b"ub",
        made + b"(" + text("a") + text("b") + b"u(" + text("a") + text("b") + b"e",
        made + b"(" + b"NN" + b"tR",  # calls the result of a call
        b"\x8f(" + text("a") + made + b"\x90(" + made + b"\x910",
        b"}(" + made + text("b") + b")" + text("c") + b"u",  # dictionary keys that are no text
    ):
        path.write_bytes(archive(state(w=tensor(), other=pickled)))
        assert list(tensors(path)) == ["w"]
        path.write_bytes(archive(b"\x80\x02" + pickled + b"."))
        refused(path, "no tensors by name")


def test_tensors_in_forms_that_are_not_read(tmp_path):
    """A tensor in an unsupported form is an error, even among others that can be read."""
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
        (b"\x80\x02]" + b"2\x86" * 200_000 + b".", "no tensors by name"),  # a tuple of tuples, 2^200,000 values
        (b"\x80\x02" + b"]" * 600_000 + b".", "steps"),
        (b"\x80\x02" + b"(" * 400_000 + b".", "no sense"),
        (b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + b"\xff" * (1 << 20) + b".", "1,048,576 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "truncated"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "truncated"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "truncated"),
        (b"\x80\x04h\x05.", "no sense"),
        (b"\x80\x02.", "no sense"),
        (b"\x80\x02N", "no sense"),
        (b"\x80\x02X\x02\x00\x00\x00\xc3\x28.", "no sense"),  # broken UTF-8
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
    """Keys with equal hashes would make a dict of n keys take n^2 steps."""
    modulus = (1 << 61) - 1
    keys = b"".join(number(i * modulus) + b"N" for i in range(100_000))
    path = tmp_path / "model.pth"
    path.write_bytes(archive(b"\x80\x02}(" + keys + b"u."))
    refused(path, "no tensors by name")


def test_modules_that_share_modules(tmp_path):
    """Sixty levels of modules, each holding the one below twice: 2^60 names."""
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
    """With any bytes changed a file is refused, or its tensors are read."""
    read_changed(tmp_path_factory.mktemp("mutated") / "model.pth", blob, changes, tensors)


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
