"""The folder of cached files: whole or absent, bounded, shared between processes."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError
from fastllm.engine.folder import CacheFolder, file_bytes, file_name
from helpers.mutations import changed

NAMES = [file_name(bytes([i]) * 20, "0") for i in range(16)]
BODY = bytes(range(256)) * 3
SIZE = len(BODY)


def read(folder, name, nbytes=SIZE):
    body = folder.read(name, bytearray(file_bytes(nbytes)))
    return None if body is None else bytes(body)


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path / "cache")


def test_a_file_is_what_was_written(folder):
    assert read(folder, NAMES[0]) is None
    folder.write(NAMES[0], BODY)
    folder.write(NAMES[1], memoryview(BODY)[::-1].tobytes())
    assert read(folder, NAMES[0]) == BODY
    assert read(folder, NAMES[1]) == BODY[::-1]
    folder.write(NAMES[0], BODY[:100])
    assert read(folder, NAMES[0]) is None
    assert read(folder, NAMES[0], 100) == BODY[:100]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_only_its_owner_enters_a_new_folder(tmp_path):
    before = os.umask(0)
    try:
        folder = CacheFolder(tmp_path / "a" / "b")
        folder.write(NAMES[0], BODY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder.path / NAMES[0]).st_mode) == 0o600


# ---- damage ----------------------------------------------------------------------------------------------------------


def spoil(folder, blob, name=NAMES[0]):
    """Puts `blob` in the place of a file; it must count as absent, be gone or of no use, and be replaceable."""
    (folder.path / name).write_bytes(blob)
    assert read(folder, name) is None
    assert not folder.has(name, SIZE)
    folder.write(name, BODY)
    assert read(folder, name) == BODY


def test_a_flipped_bit_is_found_wherever_it_is(folder):
    folder.write(NAMES[0], BODY)
    blob = (folder.path / NAMES[0]).read_bytes()
    for at in range(len(blob)):
        spoil(folder, changed(blob, [(at, blob[at] ^ 1 << at % 8)]))


@given(at=st.integers(0, file_bytes(SIZE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_found(tmp_path_factory, at, value):
    folder = CacheFolder(tmp_path_factory.getbasetemp() / "changed")
    folder.write(NAMES[0], BODY)
    blob = (folder.path / NAMES[0]).read_bytes()
    (folder.path / NAMES[0]).write_bytes(changed(blob, [(at, value)]))
    assert read(folder, NAMES[0]) == (BODY if value == blob[at] else None)


def test_a_file_of_another_length_is_found(folder):
    folder.write(NAMES[0], BODY)
    blob = (folder.path / NAMES[0]).read_bytes()
    for length in (0, 1, 60, 127, 128, 129, len(blob) - 1):
        spoil(folder, blob[:length])
    spoil(folder, blob + b"\0")
    spoil(folder, bytes(len(blob)))


def test_a_renamed_file_is_found(folder):
    folder.write(NAMES[0], BODY)
    spoil(folder, (folder.path / NAMES[0]).read_bytes(), NAMES[1])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_is_no_file_counts_as_absent(folder):
    folder.write(NAMES[9], BODY)
    os.mkfifo(folder.path / NAMES[0])
    (folder.path / NAMES[1]).mkdir()
    (folder.path / NAMES[2]).symlink_to(folder.path / NAMES[9])
    (folder.path / NAMES[3]).symlink_to("nowhere")
    for name in NAMES[:4]:
        assert not folder.has(name, SIZE)
        assert read(folder, name) is None
    folder.write(NAMES[0], BODY)
    folder.write(NAMES[2], BODY)
    assert read(folder, NAMES[0]) == read(folder, NAMES[2]) == BODY
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on the system
        folder.write(NAMES[1], BODY)
    folder.make_room(0)
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([*NAMES[:4], NAMES[9]])


# ---- bounds ----------------------------------------------------------------------------------------------------------


@given(
    uses=st.lists(st.integers(0, len(NAMES) - 1), min_size=1, max_size=40),
    most=st.integers(1, 12),
    room=st.integers(0, 4),
)
def test_the_least_recently_used_files_go_first(tmp_path_factory, uses, most, room):
    size = file_bytes(SIZE)
    path = tmp_path_factory.getbasetemp() / "evicted"
    folder = CacheFolder(path, most_bytes=most * size)
    for old in path.iterdir():
        old.unlink()
    last = {}  # by name: when it was used last
    for now, use in enumerate(uses):
        name = NAMES[use]
        if name not in last:
            folder.write(name, BODY)
        folder.touch(name, (now + 1) * 10**9)
        last[name] = now
    folder.make_room(room * size)
    expected = sorted(last, key=last.get)[max(0, len(last) + room - most) :]
    assert sorted(entry.name for entry in path.iterdir()) == sorted(expected)


def test_files_of_others_are_left_alone(tmp_path):
    others = ["letter.txt", NAMES[0].upper(), NAMES[0] + "~", "x" + NAMES[0], ".hidden.part", NAMES[0][:-7]]
    for name in others:
        (tmp_path / name).write_bytes(BODY)
        os.utime(tmp_path / name, (1, 1))
    folder = CacheFolder(tmp_path, most_bytes=1)
    folder.write(NAMES[1], BODY)
    folder.make_room(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_temporary_files_of_the_dead_are_removed(folder):
    old, new = (folder.path / f".{digit * 16}.part" for digit in "0f")
    for path, age in ((old, 2 * 3600), (new, 60)):
        path.write_bytes(BODY)
        os.utime(path, (time.time() - age,) * 2)
    folder.make_room(0)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(("free", "expected"), [(10**15, 8 << 30), (10**9, (10**9 + file_bytes(SIZE)) // 10)])
def test_the_default_bound(tmp_path, monkeypatch, free, expected):
    """8 GiB, or a tenth of what would be free without the cache."""
    CacheFolder(tmp_path).write(NAMES[0], BODY)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    assert CacheFolder(tmp_path).most_bytes == expected


# ---- folders that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "8"])
def test_a_bound_that_is_no_size(tmp_path, most):
    with pytest.raises(OptionError, match="most_bytes must be 1 or more"):
        CacheFolder(tmp_path, most_bytes=most)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match=r"file cannot be used: it is not a folder"):
        CacheFolder(tmp_path / "file")
    with pytest.raises(OptionError, match="cannot be used: Not a directory"):
        CacheFolder(tmp_path / "file" / "below")
    with pytest.raises(OptionError, match="cannot be used: embedded null"):
        CacheFolder(Path("a\0b"))
    with pytest.raises(OptionError, match="cannot be used: File name too long"):
        CacheFolder(tmp_path / ("x" * 300))


def test_a_disk_that_is_full(folder):
    """A limit on the size of files ends a write in the middle, as a full disk does."""
    resource = pytest.importorskip("resource")
    folder.write(NAMES[0], BODY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            folder.write(NAMES[1], BODY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in folder.path.iterdir()] == [NAMES[0]]


# ---- several processes -----------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from fastllm.engine.folder import CacheFolder, file_name
folder = CacheFolder(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for i in range(16):
        folder.write(file_name(bytes([i]) * 20, "0"), bytes(range(256)) * 4096)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is being read")
def test_killed_writers_leave_whole_files(tmp_path):
    """Two processes write the same files again and again, and are killed at any moment; readers see whole files."""
    folder, body = CacheFolder(tmp_path), bytes(range(256)) * 4096
    for delay in (0.01, 0.03, 0.05, 0.08):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        end, seen = time.monotonic() + delay, 0
        while time.monotonic() < end or not seen:
            for name in NAMES:
                if folder.has(name, len(body)):
                    assert read(folder, name, len(body)) == body
                    seen += 1
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        for path in tmp_path.glob("*.cached"):
            assert read(folder, path.name, len(body)) == body
    assert len(list(tmp_path.glob(".*.part"))) <= 8
    for path in tmp_path.glob(".*.part"):
        os.utime(path, (1, 1))
    folder.make_room(0)
    assert not list(tmp_path.glob(".*"))
