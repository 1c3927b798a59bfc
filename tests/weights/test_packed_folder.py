"""The folder of the packed cache: its place, its bound, what goes first, and the commands that show and clear it."""

import ast
import json
import os
import time
from types import SimpleNamespace

import pytest

import fastllm
from fastllm import CacheWarning
from fastllm.files import TargetError
from fastllm.weights import folder, packed
from helpers import commands, packing
from helpers.commands import one_sentence
from helpers.data import ROOT, names
from helpers.packing import given


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("FASTLLM_CACHE", str(path))
    monkeypatch.setattr(packed, "_SMALL", 0)
    return path


@pytest.fixture
def models(tmp_path, cache):
    """Three checkpoints that were packed one after the other, and their files."""
    paths = [packing.gguf(tmp_path / f"{name}.gguf", seed=i) for i, name in enumerate("abc")]
    files = []
    for path in paths:
        given(path)
        files += set(cache.iterdir()) - set(files)
        time.sleep(0.01)  # longer than a tick of a file system's clock
    return paths, files


def test_folder_is_found_as_systems_have_it(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLLM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert folder.cache_folder() == tmp_path / "x" / "fastllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr("sys.platform", "linux")
    assert folder.cache_folder() == tmp_path / ".cache" / "fastllm"
    monkeypatch.setattr("sys.platform", "darwin")
    assert folder.cache_folder() == tmp_path / "Library" / "Caches" / "fastllm"
    monkeypatch.setenv("FASTLLM_CACHE", "~/mine")
    assert folder.cache_folder() == tmp_path / "mine"


def test_without_a_home(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    for home in ("", "nowhere", str(tmp_path / "nowhere")):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(TargetError, match=r"^there is no home folder"):
            folder.cache_folder()
        with pytest.warns(CacheWarning, match="is packed into memory at each start: there is no home folder"):
            assert given(path) == plain
    assert names(tmp_path) == ["model"]


def test_the_least_recently_used_goes_first(models, cache, monkeypatch):
    (a, _, c), files = models
    given(a)  # so that b is the oldest
    size = files[0].stat().st_size
    monkeypatch.setattr(folder, "_MOST", 3 * size + 100)
    path = packing.gguf(a.with_name("d.gguf"), seed=3)
    assert given(path) == given(path, cache=False)
    left = names(cache)
    assert {name.split(".")[0] for name in left} == {"a", "c", "d"}
    assert [given(one) for one in (a, c)] == [given(one, cache=False) for one in (a, c)]
    assert names(cache) == left, "those that are left were not packed again"


def test_a_model_in_use_may_be_removed(models, cache):
    (a, *_), files = models
    llm = fastllm.load(a)
    before = llm.logits([1, 2, 3]).tobytes()
    for file in files:
        file.unlink()
    assert llm.logits([1, 2, 3]).tobytes() == before
    assert given(a) == given(a, cache=False)


def test_use_changes_no_file_that_is_in_use(models):
    """A model that is running looks at its file's time of modification; other starts must not change it."""
    (a, *_), files = models
    llm = fastllm.load(a)
    used = files[0].stat().st_atime_ns
    given(a)
    assert files[0].stat().st_atime_ns > used
    assert len(llm.generate([1, 2, 3], max_tokens=4, seed=0).tokens) == 4


def test_a_model_beyond_the_bound(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    monkeypatch.setattr(folder, "_MOST", 10_000)
    message = (
        rf"^{path} is packed into memory at each start: its [\d,]+ bytes are more than the 10,000 that {cache} may"
    )
    with pytest.warns(CacheWarning, match=message):
        assert given(path) == plain
    assert names(cache) == []


def test_a_tenth_of_the_free_disk(models, cache, monkeypatch):
    used = sum(file.stat().st_size for file in cache.iterdir())
    assert folder.used_bytes(cache) == used
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9 * used))
    assert folder.most_bytes(cache) == used
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 50))
    assert folder.most_bytes(cache / "not" / "there") == 20 << 30


def test_other_files_in_the_folder_stay(models, cache, monkeypatch):
    for name in ("mine.safetensors", "a.packed", "x.0123456789abcdef.packed.txt"):
        (cache / name).write_bytes(bytes(1000))
    (cache / "y.0123456789abcdef.packed").mkdir()
    commands.fastllm("cache", "clear")
    assert names(cache) == [
        "a.packed",
        "mine.safetensors",
        "x.0123456789abcdef.packed.txt",
        "y.0123456789abcdef.packed",
    ]


# ---- commands --------------------------------------------------------------------------------------------------------


def test_listing(models, cache):
    (a, b, c), files = models
    given(b)
    listed = json.loads(commands.fastllm("cache", "--json")[0])
    assert [one["model"] for one in listed] == [str(b), str(c), str(a)]
    assert [(one["bytes"], one["dtype"]) for one in listed] == [(file.stat().st_size, "f32") for file in files]
    assert {one["path"] for one in listed} == set(map(str, files))
    for path in files:  # long ago, so that a file system would record that it is read
        os.utime(path, ns=(path.stat().st_atime_ns - 10**15, path.stat().st_mtime_ns))
    times = [path.stat().st_atime_ns for path in files]
    commands.fastllm("cache")
    assert [path.stat().st_atime_ns for path in files] == times
    files[0].write_bytes(b"damaged")
    lines = commands.fastllm("cache")[0].splitlines()
    assert lines[0].split() == ["MODEL", "DTYPE", "SIZE", "LAST", "USED", "PATH"]
    assert sorted(line.split()[0] for line in lines[1:]) == ["(damaged)", str(b), str(c)]
    assert "packed weights of models take" in commands.fastllm("list")[1]
    assert f"packed weights in {cache}: " in commands.fastllm("info")[0]


def test_clearing(models, cache):
    (_, b, _), files = models
    assert commands.fastllm("cache", "clear", "a.gguf", str(b))[1].startswith("2 files removed, ")
    assert names(cache) == [files[2].name]
    message = one_sentence(commands.fastllm("cache", "clear", "c", "nothing", code=2)[1])
    assert message == f"fastllm: no packed weights of 'nothing' are in {cache}\n"
    assert names(cache) == [files[2].name]
    (cache / f".fastllm-{'0' * 16}.part").touch()
    assert commands.fastllm("cache", "clear")[1].startswith("1 file removed, ")
    assert names(cache) == []
    assert commands.fastllm("cache")[1] == f"no packed weights in {cache}\n"
    one_sentence(commands.fastllm("cache", "remove", code=2)[1])
    assert "FASTLLM_CACHE is 'off'" in commands.fastllm("cache", FASTLLM_CACHE="off")[1]
    assert "FASTLLM_CACHE is 'off'" in commands.fastllm("info", FASTLLM_CACHE="off")[0]


def test_no_cache(tmp_path, cache):
    path = packing.folder(tmp_path / "model")
    text = commands.fastllm("run", str(path), "Once", "-t", "0", "--max-tokens", "4", "--no-cache")[0]
    assert not cache.exists()
    for _ in range(2):
        assert commands.fastllm("run", str(path), "Once", "-t", "0", "--max-tokens", "4")[0] == text
        assert len(names(cache)) == 1


# ---- the structure ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the repository")
def test_readers_ask_the_file_system_through_files():
    """What a reader asks in another way is not recorded, and so what it found could go out of date in silence."""
    asking = {"exists", "is_dir", "is_file", "iterdir", "glob", "rglob", "cwd", "stat", "read_text", "read_bytes"}
    asking |= {"open", "listdir", "scandir", "getcwd", "isdir", "isfile"}
    package = ROOT / "python" / "fastllm"
    parts = ["formats", "families", "tokenizer", "heads", "weights/lora", "weights/source.py", "tensors.py"]
    # find_source looks for what the user named, before anything is read.
    known = {("source.py", "path.exists")}
    for part in parts:
        for file in [package / part] if part.endswith(".py") else sorted((package / part).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                plain = isinstance(node.func, ast.Name) and name == "open"
                method = isinstance(node.func, ast.Attribute) and node.func.attr in asking and name != "self.open"
                assert not (plain or method) or (file.name, name) in known, f"{file}:{node.lineno} calls {name}"
