"""The key of a model in the prompt cache: what changes it, and what does not."""

import os
from pathlib import Path

import pytest

from fastllm import CheckpointError, _core
from fastllm.engine import key
from fastllm.engine.key import model_key
from fastllm.weights import store
from helpers import writers

CONFIG = writers.SMALL


def tensors(dtype="q8", **changes):
    """Random tensors; changes: name -> factor of that tensor's last value."""
    weights = writers.random_weights(CONFIG)
    for name, factor in changes.items():
        weights[name].reshape(-1)[-1] *= factor
    return writers.core_tensors(CONFIG, weights, dtype)


@pytest.fixture
def of(tmp_path):
    def of(config=CONFIG, weights=None, kv="f16", **options):
        return model_key(config, weights or tensors(), kv, tmp_path / "cache", **options)

    return of


def test_a_key_is_the_same_for_the_same_model(of, tmp_path):
    assert len(of()) == 32
    assert of() == of() == of(threads=3) == model_key(CONFIG, tensors(), "f16", tmp_path / "other")
    assert of(weights=dict(reversed(tensors().items()))) == of()


def test_a_key_changes_with_all_that_changes_bits(of, monkeypatch, tmp_path):
    without = tensors()
    del without["layers.1.ffn_norm"]
    swapped = tensors()
    first, second = "layers.0.attn.wq", "layers.1.attn.wq"
    swapped[first], swapped[second] = swapped[second], swapped[first]
    keys = [
        of(),
        of(kv="q8"),
        of(CONFIG._replace(norm_eps=1e-6)),
        of(CONFIG._replace(max_seq=161)),
        of(weights=tensors("f16")),
        of(weights=without),
        of(weights=swapped),
        *(of(weights=tensors(**{name: 1.5})) for name in writers.random_weights(CONFIG)),
    ]
    codes = {name: t for name, t in tensors("q4").items() if isinstance(t, _core.Matrix)}
    for table in (None, tuple(range(-8, 8))):
        made = {n: _core.Matrix("q4", *t.shape, t.data, values=table or t.values) for n, t in codes.items()}
        keys.append(of(weights=tensors("q4") | made))
    core = tmp_path / "core"
    core.write_bytes(Path(_core.__file__).read_bytes() + b"\0")
    monkeypatch.setattr(_core, "__file__", str(core))
    keys.append(of())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_contents_are_hashed_in_pieces(of, monkeypatch, threads):
    monkeypatch.setattr(key, "_PIECE", 700)
    keys = [of(weights=tensors(**{name: 1.5}), threads=threads) for name in ("embed", "layers.0.ffn.w1", "final_norm")]
    assert len({of(threads=threads), *keys}) == 4
    assert of(threads=threads) == of()


# ---- mapped files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def convert(tmp_path):
    """A function that writes a converted file and opens it: every matrix is mapped."""
    path = tmp_path / "model.safetensors"

    def convert(age=10, **changes):
        made = store.Stored(CONFIG, tensors(**changes), bos=1, stop=(), chat_stop=())
        store.save(path, made)
        os.utime(path, ns=(os.stat(path).st_mtime_ns - age * 10**9,) * 2)
        opened = store.open_file(path).tensors
        assert all(t.file.path == str(path) for t in opened.values() if isinstance(t, _core.Matrix))
        return opened

    return convert


@pytest.fixture
def hashed(monkeypatch):
    """The numbers of bytes of all files that were hashed."""
    sizes, real = [], key._hashes

    def counted(contents, threads):
        if list(contents) == [""]:
            sizes.append(len(contents[""]))
        return real(contents, threads)

    monkeypatch.setattr(key, "_hashes", counted)
    monkeypatch.setattr(key, "_SETTLED", -(10**12))
    return sizes


def test_a_mapped_file_is_hashed_once(of, convert, hashed):
    opened = convert()
    first = of(weights=opened)
    assert of(weights=opened) == of(weights=store.open_file(Path(opened["embed"].file.path)).tensors) == first
    assert hashed == [os.stat(opened["embed"].file.path).st_size]
    assert of(weights=tensors()) != first  # in memory it is another model: only time is lost


@pytest.mark.parametrize("name", ["embed", "layers.0.attn.wq", "final_norm", "head"])
def test_a_changed_file_is_hashed_again(of, convert, hashed, name):
    """Also one of the same size and time of modification: the time of change differs."""
    first = of(weights=convert())
    assert of(weights=convert(**{name: 1.5})) != first
    assert len(hashed) == 2


def test_a_damaged_memory_is_hashed_again(of, convert, hashed, tmp_path):
    opened = convert()
    first = of(weights=opened)
    (file,) = (tmp_path / "cache").iterdir()
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)
    assert of(weights=opened) == first
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_remembered(of, convert, tmp_path):
    """It may change again within a tick of the file system's clock."""
    of(weights=convert(age=0))
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_that_changed_since_it_was_mapped(of, convert, tmp_path):
    opened = convert()
    path = Path(opened["embed"].file.path)
    with open(path, "r+b") as file:
        file.truncate(os.stat(path).st_size - 64)
    with pytest.raises(CheckpointError, match="truncated"):
        of(weights=opened)
    assert not list((tmp_path / "cache").iterdir())


def test_a_mapped_file_has_a_descriptor(convert):
    file = convert()["embed"].file
    assert os.fstat(file.fileno()).st_ino == os.stat(file.path).st_ino
    assert tensors()["embed"].file is None
