"""numpy's .npz files: read as numpy reads them, broken ones refused."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastllm import CheckpointError
from fastllm.files import map_file
from fastllm.formats import npz, open_checkpoint
from fastllm.tensors import floats
from helpers.calls import soon
from helpers.mutations import read_changed

KINDS = ("f2", "f4", "f8", ">f4", ">f2", "i1", "i2", "i4", "i8", ">i4", "u1", "u2", "u4", "u8", "?")


def tensors(path):
    return npz.tensors(path, map_file(path))


def values(tensor):
    return floats(tensor).reshape(tensor.shape)


def refused(path, word):
    with soon(), pytest.raises(CheckpointError, match=word) as error:
        tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type(tmp_path, kind, save):
    rng = np.random.default_rng(0)
    whole = (100 * rng.standard_normal((6, 8))).astype(kind)
    several = {
        "rows": whole,
        "columns": np.asfortranarray(whole),
        "three": np.asfortranarray(whole.reshape(2, 3, 8)),
        "vector": whole[0],
        "scalar": whole[0, :1].reshape(()),
        "empty": whole[:0],
        "a.dotted/name": whole[1:3],
    }
    save(tmp_path / "model.npz", **several)
    found = tensors(tmp_path / "model.npz")
    assert found.keys() == several.keys()
    for name, array in several.items():
        assert found[name].dtype == ("f16" if kind == "f2" else "f32")
        assert found[name].shape == array.shape
        assert np.array_equal(values(found[name]), array.astype(np.float32)), name
    # Rows are read in any order, and some twice.
    for begin, end in ((4, 6), (0, 1), (2, 5), (2, 5)):
        assert np.array_equal(floats(found["rows"], begin, end), whole[begin:end].astype(np.float32))


def test_bfloat16_as_ml_dtypes_writes_it(tmp_path):
    """numpy itself knows bfloat16 only as |V2: two bytes without a type."""
    exact = np.array([[1.5, -2.0, 0.25], [3.0, 0.0, -0.5]], np.float32)
    raw = (exact.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    np.savez(tmp_path / "model.npz", w=raw, turned=np.asfortranarray(raw))
    found = tensors(tmp_path / "model.npz")
    for name in ("w", "turned"):
        assert found[name].dtype == "bf16"
        assert np.array_equal(values(found[name]), exact)


@given(arrays.arrays("f4", arrays.array_shapes(max_dims=4, max_side=5), elements=st.floats(width=32, allow_nan=False)))
def test_any_shape(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("any") / "model.npz"
    np.savez_compressed(path, rows=array, columns=np.asfortranarray(array))
    found = tensors(path)
    for tensor in found.values():
        assert np.array_equal(values(tensor), array)
        assert np.array_equal(floats(tensor, tensor.rows - 1), array.reshape(tensor.rows, -1)[-1:])


def test_what_is_stored_lies_in_the_map(tmp_path):
    np.savez(tmp_path / "model.npz", w=np.ones((4, 4), np.float32))
    data = map_file(tmp_path / "model.npz")
    assert npz.tensors(tmp_path / "model.npz", data)["w"].read(1, 3).obj is data.obj


def test_the_config_beside_it(tmp_path):
    np.savez(tmp_path / "model.npz", w=np.ones((2, 2), np.float32))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "some_model"}))
    checkpoint = open_checkpoint(tmp_path / "model.npz")
    assert checkpoint.architecture == "some_model"
    assert list(checkpoint.tensors) == ["w"]


# ---- files that are none


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(content, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("w.npy", content)
    return out.getvalue()


SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
STORED, DEFLATED = archive(npy(SIX)), archive(npy(SIX), zipfile.ZIP_DEFLATED)


def with_header(header, version=1):
    size = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(size, "little") + header + SIX.tobytes()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions_of_the_header(tmp_path, version):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    (tmp_path / "model.npz").write_bytes(archive(with_header(header, version)))
    assert np.array_equal(values(tensors(tmp_path / "model.npz")["w"]), SIX)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", "Python objects"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}", "Python objects"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4)}", "needs value 8 of"),
        (b"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 4)}", "needs value 8 of"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3)}", "needs value 6 of"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}", "impossible"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 40 + b", 3)}", "needs value"),
        (b"{'descr': '<f-4', 'fortran_order': False, 'shape': (2, 3)}", "Python objects"),
        (b"{'descr': '<f0', 'fortran_order': False, 'shape': (2, 3)}", "Python objects"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': 6}", "Python objects"),
        (b"{'descr': '<f4', 'shape': (2, 3)}", "Python objects"),
        (b"__import__('os').system('true')", "Python objects"),
        (b"(" * 9000, "Python objects"),
        (b"-" * 9000 + b"1", "Python objects"),
        (b"[" * 90 + b"]" * 90, "Python objects"),
        (b"\xff\xfe", "Python objects"),
        (b"{" + b" " * 20000, "not an array"),
    ],
)
def test_headers_that_lie(tmp_path, header, word):
    (tmp_path / "model.npz").write_bytes(archive(with_header(header)))
    refused(tmp_path / "model.npz", word)


def test_objects_are_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    np.savez(tmp_path / "model.npz", w=np.array([Evil(), 1], dtype=object))
    refused(tmp_path / "model.npz", "Python objects")
    assert not (tmp_path / "executed").exists()


def test_bombs(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(archive(npy(np.zeros(16 << 20, np.uint8)), zipfile.ZIP_DEFLATED))
    refused(path, "packed into")
    # A size beyond the content: harmless unless a row that is read needs it.
    lying = bytearray(archive(npy(SIX), zipfile.ZIP_DEFLATED))
    central, size = lying.rfind(b"PK\x01\x02"), len(npy(SIX))
    lying[central + 24 : central + 28] = (size + 4).to_bytes(4, "little")
    path.write_bytes(bytes(lying))
    assert np.array_equal(values(tensors(path)["w"]), SIX)
    longer = with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}")[:-4]
    lying = bytearray(archive(longer, zipfile.ZIP_DEFLATED))
    central = lying.rfind(b"PK\x01\x02")
    lying[central + 24 : central + 28] = (len(longer) + 4).to_bytes(4, "little")
    path.write_bytes(bytes(lying))
    with pytest.raises(CheckpointError, match="ends before") as error:
        tensors(path)["w"].all()
    assert str(path) in str(error.value)
    path.write_bytes(archive(b"\x93NUMPY", zipfile.ZIP_DEFLATED))
    refused(path, "not an array")


@pytest.mark.parametrize("blob", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_truncated_at_every_byte(tmp_path, blob):
    for size in range(4, len(blob)):
        (tmp_path / "model.npz").write_bytes(blob[:size])
        refused(tmp_path / "model.npz", "truncated|broken")


@settings(max_examples=200)
@given(
    st.sampled_from([STORED, DEFLATED]),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_mutated_anywhere(tmp_path_factory, blob, changes):
    read_changed(tmp_path_factory.mktemp("mutated") / "model.npz", blob, changes, tensors)
