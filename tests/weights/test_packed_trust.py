"""Files of the packed cache that cannot be trusted: damaged ones, and those that others may have written."""

import os
import shutil

import pytest

from fastllm import CacheWarning
from fastllm.weights import packed
from helpers import packing
from helpers.data import names
from helpers.packing import given


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of a packed cache, which takes files of any size."""
    path = tmp_path / "cache"
    monkeypatch.setenv("FASTLLM_CACHE", str(path))
    monkeypatch.setattr(packed, "_SMALL", 0)
    return path


@pytest.fixture
def unpackable(monkeypatch):
    """A function after whose call nothing can be packed, so that what loads must come from the cache."""

    def forbid():
        def pack(*_, **__):
            raise AssertionError("packed again")

        monkeypatch.setattr("fastllm.weights.convert.pack", pack)
        monkeypatch.setattr("fastllm.weights.packing.pack", pack)

    return forbid


def only(cache):
    (name,) = names(cache)
    return cache / name


# ---- damaged files ---------------------------------------------------------------------------------------------------


def _flip(at):
    def damage(path):
        with open(path, "r+b") as file:
            file.seek(at if at >= 0 else path.stat().st_size + at)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))

    return damage


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "four bytes": lambda path: os.truncate(path, 4),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 64),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("<html>"),
    "length": _flip(0),
    "header": _flip(500),
    "weights": _flip(-20_000),
    "end": _flip(-1),
    "a copy": lambda path: shutil.copyfile(shutil.copy(path, f"{path}~"), path),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_files_are_packed_anew(tmp_path, cache, unpackable, how):
    path = packing.gguf(tmp_path / "model")
    plain = given(path)
    whole = only(cache).read_bytes()
    DAMAGE[how](only(cache))
    assert given(path) == plain
    assert len((next(cache.glob("*.packed"))).read_bytes()) == len(whole)
    unpackable()
    assert given(path) == plain


def test_another_model_s_file_under_its_name(tmp_path, cache):
    paths = [packing.gguf(tmp_path / str(seed), seed=seed) for seed in range(2)]
    plain = [given(path) for path in paths]
    first, second = sorted(cache.iterdir())
    os.replace(second, first)
    assert [given(path) for path in paths] == plain


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners")
def test_another_user_s_files_and_folders(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    plain = given(path)
    if os.getuid() == 0:
        os.chown(only(cache), 12345, -1)
        given(path)
        assert only(cache).stat().st_uid == 0, "packed anew"
        os.chown(cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    only(cache).unlink()
    message = f"{path} is packed into memory at each start: {cache} belongs to another user"
    with pytest.warns(CacheWarning, match=f"^{message}$"):
        assert given(path) == plain


@pytest.mark.skipif(os.name == "nt", reason="files have no permissions")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_folder_that_others_can_write(tmp_path, cache, mode):
    """Anyone could put a file of other weights there."""
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    cache.mkdir()
    cache.chmod(mode)
    message = f"{path} is packed into memory at each start: {cache} can be written by other users"
    with pytest.warns(CacheWarning, match=f"^{message}"):
        assert given(path) == plain
    assert names(cache) == []
    cache.chmod(0o755)
    given(path)
    cache.chmod(mode)
    with pytest.warns(CacheWarning, match=f"^{message}") as said:
        given(path)
    assert len(said) == 1


@pytest.mark.skipif(os.name == "nt", reason="files have no permissions")
@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_that_others_can_write(tmp_path, cache, mode):
    path = packing.gguf(tmp_path / "model")
    plain = given(path)
    assert only(cache).stat().st_mode & 0o777 == 0o600
    only(cache).chmod(mode)
    before = only(cache).stat().st_ino
    assert given(path) == plain
    after = only(cache).stat()
    assert (after.st_mode & 0o777, after.st_ino != before) == (0o600, True)


def test_links_in_the_folder_are_not_followed(tmp_path, cache, unpackable):
    path = packing.gguf(tmp_path / "model")
    plain = given(path)
    elsewhere, target = tmp_path / "elsewhere", only(cache)
    os.replace(target, elsewhere)
    before = elsewhere.stat()
    target.symlink_to(elsewhere)
    assert given(path) == plain
    assert not target.is_symlink()
    assert (elsewhere.stat().st_ino, elsewhere.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    target.unlink()
    lock = cache / f".fastllm-{target.name.split('.')[-2]}.part"
    lock.symlink_to(tmp_path / "nothing")
    with pytest.warns(CacheWarning, match="is packed into memory at each start"):
        assert given(path) == plain
    assert not (tmp_path / "nothing").exists()
