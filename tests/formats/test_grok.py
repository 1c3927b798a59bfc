"""Grok-1: checkpoints compute what the released code computed, and broken folders are refused."""

import json
import os
import pickle
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError
from fastllm.decoding import Sampling
from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.tensors import floats, transposed
from helpers.calls import failure, soon
from helpers.data import DATA, checkpoints
from helpers.mutations import changed

MODELS = checkpoints("grok1_tiny", "grok1_deep12", "grok1_g1")
DEEP = DATA / "grok1_deep12"


def values(tensor):
    return floats(tensor).reshape(tensor.shape)


# ---- the golden models


@pytest.mark.parametrize("folder", MODELS)
def test_golden_logits_and_greedy_ids(folder):
    with np.load(folder / "expected.npz") as arrays:
        expected = dict(arrays)
    llm = fastllm.load(folder, dtype="f32", threads=1)
    assert np.abs(llm.logits(expected["tokens"]) - expected["logits_f32"]).max() < 1e-3
    # Positions 5 and 9 hold the pad token. No token attends to it, and its own row means nothing.
    assert expected["pad_tokens"][[5, 9]].tolist() == [0, 0]
    difference = np.abs(llm.logits(expected["pad_tokens"]) - expected["pad_logits_f32"])
    assert np.delete(difference, [5, 9], axis=0).max() < 1e-3
    start = llm.start(expected["greedy_prompt"], Sampling(temperature=0), max_tokens=16, seed=0, stop=())
    assert list(start) == expected["greedy_f32"].tolist()


class Quantized:
    weight: object
    scales: object


class Reference(pickle.Unpickler):
    """Python's unpickler with bfloat16 as two bytes, to read the test's own trusted files."""

    def find_class(self, module, name):
        if name == "QuantizedWeight8bit":
            return Quantized
        if (module, name) == ("ml_dtypes", "bfloat16"):
            return "V2"
        assert module.startswith("numpy")
        return super().find_class(module, name)


def widened(array):
    if array.dtype.kind == "V":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the files name numpy.core, which numpy 2 has renamed
@pytest.mark.parametrize("folder", MODELS)
def test_every_tensor(folder):
    about = json.loads((folder / "meta.json").read_text())["tensors"]
    found = open_checkpoint(folder).tensors
    assert list(found) == [entry["path"].removeprefix("params/") for entry in about]
    for (key, tensor), entry in zip(found.items(), about, strict=True):
        with (folder / "ckpt-0" / entry["file"]).open("rb") as file:
            expected = Reference(file).load()
        if isinstance(expected, Quantized):
            scales = widened(expected.scales)
            groups = np.repeat(scales, expected.weight.shape[-2] // scales.shape[-2], axis=-2)
            expected = expected.weight.astype(np.float32) * groups
        assert np.array_equal(values(tensor), widened(expected)), key
        if tensor.rows > 3:  # rows that begin and end inside a group
            rows = widened(expected).reshape(tensor.rows, -1)
            assert np.array_equal(floats(tensor, 1, tensor.rows - 1), rows[1:-1])
            assert np.array_equal(floats(tensor, 2, 3), rows[2:3])


def test_ckpt_0_itself():
    inner, outer = open_checkpoint(DEEP / "ckpt-0"), open_checkpoint(DEEP)
    assert inner.header == outer.header
    assert inner.tensors.keys() == outer.tensors.keys()


def test_bos_and_stop():
    made = recipe(open_checkpoint(DEEP))
    assert (made.bos, made.stop, made.chat_stop) == (None, (2,), (2,))
    assert made.config.pad_token == 0


# ---- the release, of which only the shapes are here


def array_pickle(shape, kind, nbytes, end=b"."):
    """The bytes before and after the data of an array, pickled with protocol 4."""

    def text(word):
        return b"\x8c" + bytes([len(word)]) + word

    def ints(ns):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in ns) + b"t"

    array = text(b"numpy.core.multiarray") + text(b"_reconstruct") + b"\x93"
    array += text(b"numpy") + text(b"ndarray") + b"\x93K\x00\x85C\x01b\x87R"
    dtype = text(b"numpy") + text(b"dtype") + b"\x93" + text(kind) + b"\x89\x88\x87R"
    dtype += b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return array + b"(K\x01" + ints(shape) + dtype + b"\x89\x8e" + struct.pack("<Q", nbytes), b"tb" + end


def write_array(path, shape, *, quantized):
    """Writes a pickled tensor whose values are a hole in a sparse file."""
    size = int(np.prod(shape)) * (1 if quantized else 4)
    before, after = array_pickle(shape, b"i1" if quantized else b"f4", size, b"" if quantized else b".")
    parts = [b"\x80\x04" + before, size, after]
    if quantized:
        scales = (*shape[:-2], 1, shape[-1])
        size = 4 * int(np.prod(scales))
        before, after = array_pickle(scales, b"f4", size, b"ub.")
        parts[0] = b"\x80\x04\x8c\x08__main__\x8c\x13QuantizedWeight8bit\x93)\x81}(\x8c\x06weight" + parts[0][2:]
        parts += [b"\x8c\x06scales" + before, size, after]
    with path.open("wb") as file:
        for part in parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                file.seek(part, os.SEEK_CUR)


LAYER = {
    "moe/linear": (8, 6144, 32768),
    "moe/linear_1": (8, 32768, 6144),
    "moe/linear_v": (8, 6144, 32768),
    "key": (6144, 1024),
    "linear": (6144, 6144),
    "query": (6144, 6144),
    "value": (6144, 1024),
    "rms_norm": (6144,),
    "rms_norm_1": (6144,),
    "rms_norm_2": (6144,),
    "rms_norm_3": (6144,),
    "router": (6144, 8),
}


def write_release(folder, layers=64, layer=LAYER):
    folder.mkdir()
    shapes = [(131072, 6144), (6144,), *(shape for _ in range(layers) for shape in layer.values())]
    for i, shape in enumerate(shapes):
        write_array(folder / f"tensor{i:05}_000", shape, quantized=len(shape) > 1 and shape[-1] != 8 and i > 1)


def test_the_release_needs_no_config(tmp_path):
    """A sparse copy of the release, 318 GB by its sizes: only the pickles' headers are read."""
    write_release(tmp_path / "ckpt-0")
    with soon():
        open_checkpoint(tmp_path)
    tracemalloc.start()
    found = open_checkpoint(tmp_path)
    made = recipe(found).config
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    # The constants in the release's run.py.
    assert (made.dim, made.n_layers, made.n_heads, made.n_kv_heads, made.head_dim) == (6144, 64, 48, 8, 128)
    assert (made.n_experts, made.n_experts_used, made.expert_dim, made.vocab_size) == (8, 2, 32768, 131072)
    assert (made.max_seq, made.attn_softcap, made.norm_eps) == (8192, 30, 1e-5)
    assert (made.embed_scale, made.logit_scale) == (78.38367176906169, 0.5773502691896257)
    assert made.attn_scale == 0.08838834764831845
    expert = found.tensors["transformer/decoder_layer_63/moe/linear_1/w"]
    assert not floats(expert, 5, 7).any()
    assert transposed(expert).shape == (8, 6144, 32768)


@pytest.mark.parametrize("change", [{"layers": 63}, {"layer": {**LAYER, "moe/linear": (8, 6144, 32760)}}])
def test_other_shapes_need_one(tmp_path, change):
    write_release(tmp_path / "ckpt-0", **change)
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


# ---- what is amiss


@pytest.fixture
def folder(tmp_path):
    """A copy of the checkpoint that a test may break."""
    shutil.copytree(DEEP, tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


def refused(path, word):
    with soon(), pytest.raises(CheckpointError, match=word) as error:
        fastllm.load(path, threads=1)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files(folder):
    last = folder / "ckpt-0" / "tensor00145_000"
    last.rename(folder / "ckpt-0" / "tensor00146_000")
    refused(folder, "lacks tensor00145_000")
    (folder / "ckpt-0" / "tensor00146_000").unlink()
    refused(folder, "145 tensor files")
    shutil.rmtree(folder / "ckpt-0")
    (folder / "ckpt-0").mkdir()
    refused(folder, "0 tensor files")


def test_parts_of_several_processes(folder):
    (folder / "ckpt-0" / "tensor00007_000").rename(folder / "ckpt-0" / "tensor00007_001")
    refused(folder, "tensor00007_001")


def test_no_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"needs a config\.json")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_layers": 11}, "more layers"),
        ({"num_layers": 13}, "decoder_layer_12"),
        ({"num_experts": 4}, "shape"),
        ({"key_size": 8}, "shape"),
        ({"num_q_heads": "16"}, "num_q_heads"),
        ({"emb_size": None}, "emb_size"),
        ({"num_selected_experts": 9}, "9 of 8 experts"),
    ],
)
def test_configs_that_do_not_fit(folder, change, word):
    header = json.loads((folder / "config.json").read_text())
    header["model"] |= change
    (folder / "config.json").write_text(json.dumps(header))
    refused(folder, word)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_is_executed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for i, value in enumerate((Evil(), [Evil()], np.array([Evil()], dtype=object), {"weight": Evil()})):
        name = f"tensor{i:05}_000"
        original = (folder / "ckpt-0" / name).read_bytes()
        (folder / "ckpt-0" / name).write_bytes(pickle.dumps(value))
        refused(folder, "mkdir")
        (folder / "ckpt-0" / name).write_bytes(original)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (7, "does not hold an array"),
        ({"weight": 1}, "does not hold an array"),
        (np.zeros((160, 24), np.complex64), "type that fastllm cannot read"),
        (np.zeros((3, 3), np.float32), "shape"),
        (np.zeros((), np.float32), "shape"),
    ],
)
def test_files_of_other_things(folder, value, word):
    (folder / "ckpt-0" / "tensor00000_000").write_bytes(pickle.dumps(value))
    refused(folder, word)


def test_arrays_of_other_kinds(tmp_path):
    """Other forms in which numpy pickles arrays: Fortran order, big-endian, protocol 5."""
    shutil.copytree(DEEP, tmp_path / "model", copy_function=shutil.copyfile)
    path = tmp_path / "model" / "ckpt-0" / "tensor00000_000"
    array = np.random.default_rng(0).standard_normal((160, 24)).astype(np.float32)
    for other in (np.asfortranarray(array), array.astype(">f4"), array.astype(np.float64), array[::-1]):
        path.write_bytes(pickle.dumps(other, 4))
        found = open_checkpoint(tmp_path / "model").tensors["language_model/in_out_embed/embeddings"]
        assert np.array_equal(values(found), other.astype(np.float32))


def test_scales_that_do_not_fit(folder):
    """Scales for seven groups where attention's output matrix has eight."""
    path = folder / "ckpt-0" / "tensor00006_000"
    blob = path.read_bytes()
    shape = blob.index(b"K\x08K\x18\x86", blob.index(b"scales"))
    path.write_bytes(blob[: shape + 1] + b"\x07" + blob[shape + 2 :])
    refused(folder, r"tensor00006_000 is broken: .*scales")


@pytest.mark.parametrize("index", [1, 6])
def test_truncated(folder, index):
    path = folder / "ckpt-0" / f"tensor{index:05}_000"
    blob = path.read_bytes()
    for size in sorted({*range(1, 220), len(blob) // 2, len(blob) - 5, len(blob) - 1}):
        path.write_bytes(blob[:size])
        with pytest.raises(CheckpointError, match=path.name):
            open_checkpoint(folder)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(DEEP, folder, copy_function=shutil.copyfile)
    return folder


@given(
    index=st.sampled_from([1, 5, 6]),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_anywhere(spoilt, index, changes):
    path = spoilt / "ckpt-0" / f"tensor{index:05}_000"
    path.write_bytes(changed((DEEP / "ckpt-0" / path.name).read_bytes(), changes))

    def use():
        for tensor in list(open_checkpoint(spoilt).tensors.values())[: index + 1]:
            floats(tensor)

    error = failure(use)
    path.write_bytes((DEEP / "ckpt-0" / path.name).read_bytes())
    assert error is None or path.name in str(error)
