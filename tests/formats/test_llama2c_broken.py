"""Broken llama2.c files: each is refused at once by one error that names it, or it is a model that runs."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError
from helpers import writers
from helpers.calls import failure
from helpers.mutations import changed

TINY = writers.config(4, 3, 2, 1, 3, n_layers=1, max_seq=2)
FILES = {
    "v0": writers.v0(TINY, writers.random_weights(TINY)),
    "v0_tied": writers.v0(TINY, writers.random_weights(TINY, tied=True)),
    "v1": writers.v1(TINY, writers.random_weights(TINY)),
    "v2": writers.v2(TINY, writers.random_weights(TINY), 4),
}
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def field_offset(version, name):
    return 4 * FIELDS.index(name) + (0 if version.startswith("v0") else 8)


def patched(version, name, value):
    blob = bytearray(FILES[version])
    struct.pack_into("<i", blob, field_offset(version, name), value)
    return bytes(blob)


def refused(path, blob):
    """Asserts that a file with these bytes is refused in one line that names it; returns the line."""
    path.write_bytes(blob)
    with pytest.raises(CheckpointError) as error:
        fastllm.load(path, threads=1)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def tried(path, blob):
    """Asserts that a file with these bytes is refused, or that its model computes."""
    path.write_bytes(blob)

    def use():
        llm = fastllm.load(path, threads=1)
        assert llm.logits([llm.config.vocab_size - 1]).shape == (1, llm.config.vocab_size)

    error = failure(use)
    assert error is None or str(path) in str(error)


@pytest.mark.parametrize("version", FILES)
def test_the_whole_file_loads(tmp_path, version):
    (tmp_path / "model.bin").write_bytes(FILES[version])
    logits = fastllm.load(tmp_path / "model.bin", threads=1).logits([1, 2])
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("version", FILES)
def test_truncated_at_every_byte(tmp_path, version):
    for size in range(len(FILES[version])):
        refused(tmp_path / "model.bin", FILES[version][:size])


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 44), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_headers(tmp_path_factory, version, changes):
    tried(tmp_path_factory.mktemp("mutated") / "model.bin", changed(FILES[version], changes))


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_mutated_anywhere(tmp_path_factory, version, changes):
    tried(tmp_path_factory.mktemp("mutated") / "model.bin", changed(FILES[version], changes))


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [0, -(1 << 31), (1 << 31) - 1, 1 << 24])
def test_lying_sizes(tmp_path, version, name, value):
    # Nothing else in versions 1 and 2 depends on the context's length, so 2^24 positions are accepted.
    if (name, value) == ("max_seq_len", 1 << 24) and not version.startswith("v0"):
        tried(tmp_path / "model.bin", patched(version, name, value))
    else:
        refused(tmp_path / "model.bin", patched(version, name, value))


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("dim", 9, "dim"),  # does not divide into two heads
        ("dim", 6, "dim"),  # heads of 3 channels: odd
        ("n_heads", 3, "n_heads"),
        ("n_heads", 4, "n_heads"),  # heads of 1
        ("n_kv_heads", 3, "n_kv_heads"),  # cannot share two query heads evenly
        ("n_kv_heads", -1, "n_kv_heads"),
        ("n_layers", 2, "truncated"),
    ],
)
def test_sizes_that_contradict_each_other(tmp_path, version, name, value, word):
    path = tmp_path / "model.bin"
    path.write_bytes(patched(version, name, value))
    with pytest.raises(CheckpointError, match=word) as error:
        fastllm.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("group", [0, -1, 3, 5, 1 << 30])
def test_lying_groups(tmp_path, group):
    blob = bytearray(FILES["v2"])
    struct.pack_into("<i", blob, 37, group)
    refused(tmp_path / "model.bin", bytes(blob))


@pytest.mark.parametrize("version", [-1, 0, 3, 1 << 20])
def test_unknown_versions(tmp_path, version):
    blob = bytearray(FILES["v1"])
    struct.pack_into("<i", blob, 4, version)
    refused(tmp_path / "model.bin", bytes(blob))


def test_a_shared_flag_that_is_none(tmp_path):
    blob = bytearray(FILES["v1"])
    blob[36] = 2
    refused(tmp_path / "model.bin", bytes(blob))


def test_heads_wider_than_the_core_takes(tmp_path):
    """The header and the file's size agree, but the core refuses the heads. The file is sparse, and is not read."""
    wide = writers.config(4096, 1, 1, 1, 1, n_layers=1, max_seq=1)
    dim = 4098
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.write(struct.pack("<7i", dim, wide.hidden_dim, 1, 1, 1, 1, 1))
        file.truncate(28 + 4 * (4 * dim * dim + 8 * dim))
    with pytest.raises(CheckpointError, match="head_dim") as error:
        fastllm.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("dtype", "value"), [(None, np.nan), (None, np.inf), ("f16", 1e5), ("q8", 1e9)])
def test_weights_that_are_no_numbers(tmp_path, dtype, value):
    weights = writers.random_weights(TINY)
    weights["layers.0.ffn.w1"][2, 1] = value
    path = tmp_path / "model.bin"
    path.write_bytes(writers.v0(TINY, weights))
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.w1") as error:
        fastllm.load(path, dtype=dtype)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("blob", [b"", b"\0", b"Once upon a time, there was a text file.\n" * 20, bytes(1000)])
def test_no_checkpoints(tmp_path, blob):
    refused(tmp_path / "story.txt", blob)


@given(st.binary(max_size=400))
def test_random_bytes(tmp_path_factory, blob):
    tried(tmp_path_factory.mktemp("random") / "model.bin", blob)


def test_missing_and_folder(tmp_path):
    for path, word in ((tmp_path / "nothing.bin", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(CheckpointError, match=word) as error:
            fastllm.load(path)
        assert str(path) in str(error.value)


def test_a_path_as_a_string(tmp_path):
    path = tmp_path / "m\u00f6del 1.bin"
    path.write_bytes(FILES["v0"])
    assert fastllm.load(str(path)).path == path
