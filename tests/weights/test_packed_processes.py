"""The packed cache and other processes: packing at once, killed while packing, disks and folders that fail."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

import fastllm
from fastllm import CacheWarning
from fastllm.locks import locked
from fastllm.weights import packed
from helpers import packing
from helpers.data import names
from helpers.packing import given

# `fastllm run` that says "packing" before each piece of a matrix and then waits for a line or the end of its input:
# so a test decides how long the packing takes, however slow the machine is.
SLOW = """
import sys
from fastllm import cli
from fastllm.weights import convert
pack = convert.pack
def slow(*args, **options):
    sys.stderr.write("packing\\n")
    sys.stdin.readline()
    pack(*args, **options)
convert.pack = slow
raise SystemExit(cli.main(["run", *sys.argv[1:]]))
"""
ASK = ("Once", "-t", "0", "--max-tokens", "4")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("FASTLLM_CACHE", str(path))
    monkeypatch.setattr(packed, "_SMALL", 0)
    return path


def running(path, code=SLOW):
    command = [sys.executable, "-c", code, path, *ASK]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True)


def test_two_at_once_pack_once(tmp_path, cache):
    path = packing.folder(tmp_path / "model")
    with running(path) as first:
        assert first.stderr.readline() == "packing\n"
        with running(path) as second:
            assert second.stderr.readline() == f"fastllm: waiting for another process, which packs {path}\n"
            out, _ = first.communicate(timeout=120)
            again, said = second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0)
    assert again == out
    assert "packing" not in said
    assert len(names(cache)) == 1


def test_threads_pack_once(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    from fastllm.weights import convert

    packs, found, pack = [], [], convert.pack
    monkeypatch.setattr(convert, "pack", lambda *args, **more: (packs.append(1), time.sleep(0.01), pack(*args, **more)))
    threads = [threading.Thread(target=lambda: found.append(given(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    once = len(packs)
    given(path)
    assert found == [plain] * 4
    packs.clear()
    given(packing.gguf(tmp_path / "other", seed=1))
    assert len(packs) == once


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_killed_while_packing(tmp_path, cache, number):
    path = packing.folder(tmp_path / "model")
    with running(path) as process:
        process.stderr.readline()
        assert any(name.endswith(".part") for name in names(cache))
        process.send_signal(number)
        process.communicate(timeout=120)
    assert not any(name.endswith(".packed") for name in names(cache))
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert names(cache) == []
    assert given(path) == given(path, cache=False)
    (name,) = names(cache)
    assert name.endswith(".packed")


def test_waiting_for_one_that_is_killed(tmp_path, cache):
    path = packing.folder(tmp_path / "model")
    with running(path) as first:
        first.stderr.readline()
        with running(path) as second:
            assert second.stderr.readline().startswith("fastllm: waiting")
            first.kill()
            assert second.stderr.readline() == "packing\n"
            assert second.communicate(timeout=120)[0].startswith("Once")
        first.communicate(timeout=120)
    assert len(names(cache)) == 1


def test_one_that_is_stuck_is_not_waited_for(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("fastllm.locks._PATIENCE", 0.5)
    path = packing.folder(tmp_path / "model")
    with running(path) as stuck:
        stuck.stderr.readline()
        stuck.send_signal(signal.SIGSTOP)
        assert given(path) == given(path, cache=False)
        stuck.kill()
        stuck.communicate(timeout=120)
    given(path)
    packing.gguf(tmp_path / "other")
    given(tmp_path / "other")
    assert all(name.endswith(".packed") for name in names(cache))


def test_one_whose_disk_is_slow_is_waited_for(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("fastllm.locks._PATIENCE", 1.0)
    path = packing.folder(tmp_path / "model")
    waits = SLOW.replace("sys.stdin.readline()", "").replace(
        "raise SystemExit",
        "import os, time, fastllm.locks\n"
        "fastllm.locks._SIGN = 0.1\n"
        "os.fsync = lambda _: (print('syncing', file=sys.stderr, flush=True), time.sleep(3))\n"
        "raise SystemExit",
    )
    with running(path, waits) as slow:
        while slow.stderr.readline() != "syncing\n":
            pass
        monkeypatch.setattr("fastllm.weights.convert.pack", lambda *_, **__: pytest.fail("packed again"))
        given(path)
        slow.communicate(timeout=120)


def test_locks_let_in_one_at_a_time(tmp_path):
    inside, most, told = [], [], []

    def work():
        for _ in range(20):
            with locked(tmp_path / "lock", lambda: told.append(1)):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (60, 1)
    assert told
    assert names(tmp_path) == []


def test_without_locks_each_packs(tmp_path, cache, monkeypatch):
    """As on file systems that have none: two may pack at once, and the later file takes the earlier one's place."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = packing.gguf(tmp_path / "model")
    plain, found = given(path, cache=False), []
    monkeypatch.setattr(fcntl, "flock", refuse)
    threads = [threading.Thread(target=lambda: found.append(given(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [plain] * 3
    assert len(names(cache)) == 1


def test_as_on_windows(tmp_path, cache, monkeypatch):
    """There are no locks there, and an open file cannot be removed: an hour later its owner must have died."""
    unlink = os.unlink

    def unlink_closed(path, **options):
        for file in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/self/fd/{file}"), os.lstat(path)):
                    raise PermissionError(errno.EACCES, "it is open", path)
        unlink(path, **options)

    path = packing.gguf(tmp_path / "model")
    for module in ("locks", "files"):
        monkeypatch.setattr(f"fastllm.{module}.lock", lambda *_, **__: None)
        monkeypatch.setattr(f"fastllm.{module}.os.unlink", unlink_closed)
    cache.mkdir()
    old, new = (cache / f".fastllm-{digit * 16}.part" for digit in "01")
    for file in (old, new):
        file.touch()
    os.utime(old, (time.time() - 3700,) * 2)
    given(path)
    (name,) = set(names(cache)) - {new.name}
    assert name.endswith(".packed")


# ---- disks and folders that fail -------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from fastllm import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
raise SystemExit(cli.main(["run", *sys.argv[1:]]))
"""


def test_a_full_disk(tmp_path, cache):
    path = packing.folder(tmp_path / "model")
    with running(path, SLOW.replace("convert.pack = slow", "")) as process:
        text = process.communicate(timeout=120)[0]
    (cache / names(cache)[0]).unlink()
    with running(path, FULL) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, text)
    said = rf"fastllm: {path} is packed into memory at each start: {cache}/\S+ cannot be written: [^\n]*bytes"
    assert re.fullmatch(said, err.splitlines()[0]), err
    assert len(err.splitlines()) == 2, "a sentence, and the speed"
    assert names(cache) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["posix_fallocate", "fsync", "replace", "utime"])
def test_disks_that_fail(tmp_path, cache, monkeypatch, number, when):
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as failing:
        failing.setattr(f"fastllm.files.os.{when}", fail)
        with pytest.warns(CacheWarning, match=f"cannot be written: {os.strerror(number)}"):
            assert given(path) == plain
    assert names(cache) == []
    assert given(path) == plain
    assert len(names(cache)) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_folders_that_cannot_be_made_or_written(tmp_path, cache, monkeypatch, number):
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    mkdir, open_ = os.mkdir, os.open

    def no_mkdir(name, *args, **more):
        if str(name).startswith(str(cache)):
            raise OSError(number, os.strerror(number), name)
        return mkdir(name, *args, **more)

    def no_open(name, flags, *args, **more):
        if str(name).startswith(str(cache)) and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), name)
        return open_(name, flags, *args, **more)

    sentence = f"^{path} is packed into memory at each start: {cache} cannot be written: {os.strerror(number)}$"
    with monkeypatch.context() as failing:
        failing.setattr(os, "mkdir", no_mkdir)
        with pytest.warns(CacheWarning, match=sentence):
            assert given(path) == plain
    cache.mkdir()
    with monkeypatch.context() as failing:
        failing.setattr(os, "open", no_open)
        with pytest.warns(CacheWarning, match=sentence):
            assert given(path) == plain
    given(path)
    with monkeypatch.context() as failing:  # what is there can be used
        failing.setattr(os, "open", no_open)
        assert given(path) == plain


def test_folders_that_are_none(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    cache.write_text("a file")
    for place, why in ((cache, "it is not a folder"), (cache / "below", "Not a directory"), ("\0", "")):
        if place != "\0":
            monkeypatch.setenv("FASTLLM_CACHE", str(place))
        else:
            monkeypatch.setattr("fastllm.weights.folder.os.environ", {"FASTLLM_CACHE": "/a\0b"})
        with pytest.warns(CacheWarning, match=f"cannot be written: {why}"):
            assert given(path) == plain


def test_a_checkpoint_that_changes_while_it_is_packed(tmp_path, cache):
    path = packing.gguf(tmp_path / "model")

    def shrink(done, total):
        os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(fastllm.CheckpointError, match=f"^{path} was truncated while it was in use$"):
        fastllm.load(path, progress=shrink)
    assert names(cache) == []


def test_broken_weights_leave_nothing(tmp_path, cache):
    import numpy as np
    import safetensors.numpy

    path = packing.folder(tmp_path / "model")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = np.nan
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    with pytest.raises(fastllm.CheckpointError) as first:
        fastllm.load(path)
    with pytest.raises(fastllm.CheckpointError) as plain:
        fastllm.load(path, cache=False)
    assert str(first.value) == str(plain.value)
    assert str(plain.value).startswith(f"{path} cannot be used: ")
    assert names(cache) == []
