"""The converted file: it gives back the same bits, is written whole or not at all, and is checked when it is read."""

import copy
import json
import math
import os
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError, OptionError
from fastllm.families import recipe
from fastllm.files import map_file
from fastllm.formats import open_checkpoint
from fastllm.weights import store
from fastllm.weights.packing import assemble
from helpers import writers
from helpers.calls import failure
from helpers.writers import SMALL

TINY = writers.config(8, 6, 2, 1, 261, n_layers=1, max_seq=16)


def stored_from(path, dtype=None):
    stored = assemble(recipe(open_checkpoint(path)), dtype=dtype, threads=1)
    return with_tokenizer(stored, ("llama2.c", (path.parent / "tokenizer.bin").read_bytes()))


def with_tokenizer(stored, tokenizer):
    fields = ("config", "tensors", "bos", "stop", "chat_stop")
    return store.Stored(**{name: getattr(stored, name) for name in fields}, tokenizer=tokenizer)


@pytest.fixture
def converted(write_model, tmp_path):
    path = tmp_path / "tiny.safetensors"
    store.save(path, stored_from(write_model(TINY, tied=True), "q8"))
    return path


def header_of(blob):
    (length,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def file_of(header, body):
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text + body


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8", None])
def test_there_and_back(write_model, tmp_path, dtype, tied):
    cfg = SMALL if dtype else writers.config(64, 96, 4, 2, 300)
    source = write_model(cfg, tied=tied, version=0 if dtype else 2)
    stored, path = stored_from(source, dtype or "q8"), tmp_path / "converted.safetensors"
    store.save(path, stored)
    found = store.load(path, map_file(path))
    for name in ("config", "bos", "stop", "chat_stop", "tokenizer"):
        assert getattr(found, name) == getattr(stored, name)
    assert set(found.tensors) == set(stored.tensors)
    for name, tensor in stored.tensors.items():
        assert type(found.tensors[name]) is type(tensor)
        assert found.tensors[name].shape == tensor.shape
        assert getattr(found.tensors[name], "dtype", None) == getattr(tensor, "dtype", None)
        assert found.tensors[name].data == tensor.data
    before, after = fastllm.load(source, dtype=dtype, threads=1), fastllm.load(path, threads=1)
    tokens = list(range(1, 90))
    assert (before.logits(tokens) == after.logits(tokens)).all()
    options = {"max_tokens": 20, "seed": 4}
    assert before.generate("the ocean", **options) == after.generate("the ocean", **options)


def test_the_safetensors_library_reads_it(converted):
    blob = converted.read_bytes()
    header, body = header_of(blob)
    assert (len(blob) - len(body)) % 64 == 0
    about = json.loads(header.pop("__metadata__")["fastllm"])
    assert about["config"]["dim"] == TINY.dim
    ends = [0]
    for tensor in sorted(header.values(), key=lambda t: t["data_offsets"]):
        begin, end = tensor["data_offsets"]
        assert begin % 64 == 0
        assert begin == ends[-1]
        ends.append(end)
    assert ends[-1] == len(body)
    with safetensors.safe_open(converted, framework="numpy") as file:
        assert set(file.keys()) == set(header)
        for name in header:
            begin, end = header[name]["data_offsets"]
            assert file.get_tensor(name).tobytes() == body[begin:end]
        found = store.load(converted, map_file(converted))
        norm = file.get_tensor("final_norm")[: TINY.dim]
        assert found.tensors["final_norm"].data == norm.astype("<f4").tobytes()


def test_the_same_input_gives_the_same_bytes(write_model, tmp_path):
    stored = stored_from(write_model())
    for name in ("a", "b"):
        store.save(tmp_path / name, stored)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = stored_from(write_model())
    store.save(tmp_path / "c", again)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_dtypes(converted):
    assert fastllm.load(converted, dtype="q8").dtypes == ["q8"]
    for dtype in ("f32", "f16", "bf16"):
        with pytest.raises(OptionError, match="already converted to q8") as error:
            fastllm.load(converted, dtype=dtype)
        assert str(converted) in str(error.value)


# ---- writing fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(converted, monkeypatch, name, error):
    stored = store.load(converted, map_file(converted))
    before = {path.name: path.read_bytes() for path in converted.parent.iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr(os, name, fail)
    for target in (converted, converted.with_name("new.safetensors")):
        expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            store.save(target, stored)
        if expected is CheckpointError:
            assert f"{target} cannot be written: No space left on device" in str(caught.value)
    assert {path.name: path.read_bytes() for path in converted.parent.iterdir()} == before


def test_places_that_cannot_be_written(converted):
    stored = store.load(converted, map_file(converted))
    folder = converted.parent / "folder"
    folder.mkdir()
    before = sorted(converted.parent.rglob("*"))
    for target in (folder, folder / "missing" / "model", converted / "model"):
        with pytest.raises(CheckpointError, match="cannot be written") as error:
            store.save(target, stored)
        assert str(target) in str(error.value)
    assert sorted(converted.parent.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(converted):
    stored = store.load(converted, map_file(converted))
    converted.parent.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            store.save(converted.with_name("new"), stored)
    finally:
        converted.parent.chmod(0o755)


def test_replaced_while_in_use(converted):
    """Replacing a file does not disturb a model that has mapped it."""
    llm = fastllm.load(converted, threads=1)
    expected = llm.logits([1, 2, 3])
    stored = store.load(converted, map_file(converted))
    store.save(converted, with_tokenizer(stored, None))
    assert (llm.logits([1, 2, 3]) == expected).all()


# ---- reading what is broken ------------------------------------------------------------------------------------------


def test_truncated(converted):
    blob = converted.read_bytes()
    sizes = {*range(40), *range(40, len(blob), 61), *range(len(blob) - 130, len(blob))}
    for size in sorted(sizes):
        converted.write_bytes(blob[:size])
        with pytest.raises(CheckpointError) as error:
            fastllm.load(converted)
        assert str(converted) in str(error.value)


def test_other_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(16, np.float32)}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        fastllm.load(path)


def leaves(data, path=()):
    """The path of every value in nested JSON, including the JSON inside the metadata."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(data, path, value):
    out = copy.deepcopy(data)
    place = out
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return out


WRONG = [
    None, 0, 1, 7, -1, 64, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, math.inf, math.nan, True, "", "x", "f32", [],
    {}, [0, 2**70], [0, math.inf], [math.inf], ["f32", math.inf, 1], "sentencepiece",
]  # fmt: skip


def check(path, blob):
    path.write_bytes(blob)
    refused = failure(lambda: store.load(path, map_file(path)))
    assert refused is None or (isinstance(refused, CheckpointError) and str(path) in str(refused))

    def use():
        llm = fastllm.load(path, threads=1)
        llm.logits([1])
        llm.generate([1, 5], max_tokens=2, temperature=0)
        llm.generate("the", max_tokens=2, temperature=0)

    # A header that passes the store's checks must give a model that works or an error of ours.
    error = failure(use)
    assert refused is None or isinstance(error, CheckpointError)
    assert error is None or "\n" not in str(error)


def test_every_field_wrong(converted):
    """Each value of the header is replaced by each of many wrong ones, one at a time."""
    blob = converted.read_bytes()
    header, body = header_of(blob)
    about = json.loads(header["__metadata__"]["fastllm"])
    rng = np.random.default_rng(0)
    for path in leaves(about):
        for value in WRONG:
            outer = dict(header)
            outer["__metadata__"] = {"fastllm": json.dumps(changed(about, path, value))}
            check(converted, file_of(outer, body))
    for path in leaves(header):
        for value in rng.permutation(np.array(WRONG, object))[:8]:
            check(converted, file_of(changed(header, path, value), body))


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_headers(tmp_path_factory, tiny_blob, changes):
    blob = bytearray(tiny_blob)
    (length,) = struct.unpack_from("<Q", blob)
    for place, value in changes:
        blob[place % (8 + length)] = value
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    path.write_bytes(blob)
    error = failure(lambda: fastllm.load(path, threads=1).logits([1]))
    assert error is None or (isinstance(error, CheckpointError) and str(path) in str(error))


@pytest.fixture(scope="module")
def tiny_blob(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    source = folder / "model.bin"
    source.write_bytes(writers.v0(TINY, writers.random_weights(TINY)))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(261)))
    store.save(folder / "tiny", stored_from(source, "q8"))
    return (folder / "tiny").read_bytes()
