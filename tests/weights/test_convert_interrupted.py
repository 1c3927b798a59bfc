"""Conversions that end early (full disk, signal) leave the old file or the whole new one, and nothing else."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import fastllm
from fastllm import CheckpointError
from fastllm.weights.convert import convert
from helpers.calls import run
from helpers.commands import SLOW
from helpers.data import names


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["reserving", "writing", "syncing"])
def test_disks_that_fail(write_model, tmp_path, monkeypatch, number, when):
    source, out = write_model(), tmp_path / "out"
    out.write_bytes(b"before")
    before = names(tmp_path)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if when == "writing":
        monkeypatch.setattr("fastllm.weights.convert.pack", fail)  # in place of a failing write
    else:
        monkeypatch.setattr(f"fastllm.files.os.{'fsync' if when == 'syncing' else 'posix_fallocate'}", fail)
    takes = r", it takes [\d,]+ bytes" if number != errno.EIO else ""
    with pytest.raises(CheckpointError, match=f"^{out} cannot be written: {os.strerror(number)}{takes}$"):
        convert(source, out)
    assert names(tmp_path) == before
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize("options", [{}, {"format": "llama2c"}])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_interrupted(write_model, tmp_path, error, options):
    source, out = write_model(), tmp_path / "out"
    out.write_bytes(b"what was there before")
    before = names(tmp_path)

    def stop(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(type(error)):
        convert(source, out, progress=stop, **options)
    assert names(tmp_path) == before
    assert out.read_bytes() == b"what was there before"


@pytest.mark.parametrize("options", [{}, {"format": "llama2c"}])
def test_a_source_truncated_meanwhile(write_model, tmp_path, options):
    source = write_model()
    before = names(tmp_path)

    def shrink(done, total):
        if done == total:
            os.truncate(source, source.stat().st_size - 1)

    def shrink_first(done, total):
        shrink(total, total)

    with pytest.raises(CheckpointError, match=f"{source} was truncated while it was in use"):
        convert(source, tmp_path / "out", progress=shrink_first, **options)
    source.write_bytes(source.read_bytes() + b"\0")
    assert convert(source, tmp_path / "out", progress=None, **options) is None
    (tmp_path / "out").unlink()
    assert names(tmp_path) == before


FULL_DISK = """
import resource, sys
from fastllm import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
raise SystemExit(cli.main(["convert", *sys.argv[1:]]))
"""


def test_out_of_disk(write_model, tmp_path):
    """On a full file system the conversion fails before anything is packed."""
    source = write_model()
    before = names(tmp_path)
    done = run(FULL_DISK, source, tmp_path / "out", "--dtype", "f32")
    assert done.returncode == 2
    assert re.fullmatch(rf"fastllm: {tmp_path}/out cannot be written: [^\n]*\n", done.stderr), done.stderr
    assert names(tmp_path) == before


@contextmanager
def converting(source, out, before=""):
    """A conversion in a process of its own that has begun to write its temporary file. before: code that runs first."""
    there = names(out.parent)
    code = [sys.executable, "-c", before + SLOW, source, out]
    with subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert set(names(out.parent)) - set(there)
        yield process


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize("numbers", [*((n,) for n in ENDING), ENDING], ids=lambda numbers: numbers[-1].name)
def test_signals_leave_nothing(write_model, tmp_path, numbers):
    """One signal, or several at once, as when a session ends."""
    source = write_model()
    before = names(tmp_path)
    with converting(source, tmp_path / "out") as process:
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == f"fastllm: {tmp_path}/out was not written: interrupted\n"
    assert names(tmp_path) == before


def test_nohup(write_model, tmp_path):
    """SIGHUP is ignored if the parent ignored it, as nohup does."""
    ignore = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with converting(write_model(), tmp_path / "out", before=ignore) as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=60)[1].startswith(f"{tmp_path}/out: ")
    assert process.returncode == 0


def test_interrupted_after_the_file_was_written(write_model, tmp_path):
    """An interrupt after the file was written is no failure: the command says that it was written."""
    late = """
real = convert.convert
def late(*args, **options):
    real(*args, **options)
    raise KeyboardInterrupt
convert.convert = late
raise SystemExit"""
    code = SLOW.replace("\nraise SystemExit", late)
    out = tmp_path / "out"
    out.write_bytes(b"before")
    done = run(code, write_model(), out)
    assert (done.returncode, done.stderr) == (130, "")
    assert fastllm.load(out).dtypes == ["f32"]


def test_what_a_killed_one_leaves_goes_with_the_next(write_model, tmp_path):
    """The temporary file of a killed conversion is removed, not that of a running one nor a file of a similar name."""
    source, folder = write_model(), tmp_path / "folder"
    folder.mkdir()
    for alike in (".fastllm-0123456789abcdef", ".fastllm-.part", "fastllm-0123456789abcdef.part"):
        (folder / alike).write_bytes(b"mine")
    (folder / ".fastllm-0123456789abcdee.part").mkdir()
    (folder / ".fastllm-0123456789abcded.part").symlink_to(source)
    before = names(folder)
    with converting(source, folder / "killed") as process:
        process.kill()
    (left,) = set(names(folder)) - set(before)
    assert (folder / left).stat().st_size > 0
    with converting(source, folder / "living") as process:
        assert left not in names(folder)  # it is removed as the next one begins
        assert len(names(folder)) == len(before) + 1
        convert(source, folder / "other")
        assert len(names(folder)) == len(before) + 2
        assert process.communicate(timeout=60)[1].startswith(f"{folder}/living: ")
    assert names(folder) == sorted([*before, "living", "other"])
    assert (folder / "living").read_bytes() == (folder / "other").read_bytes()


def test_killed_at_any_time(write_model, tmp_path):
    """A conversion killed at any time leaves the old file or the whole new one, and the next one cleans up."""
    source, folder = write_model(), tmp_path / "folder"
    folder.mkdir()
    convert(source, folder / "out")
    whole = (folder / "out").read_bytes()
    for i in range(8):
        (folder / "out").write_bytes(b"before")
        code = SLOW.replace("0.1", "0.002")
        with subprocess.Popen([sys.executable, "-c", code, source, folder / "out"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(i * 0.006)
            process.kill()
        assert (folder / "out").read_bytes() in (b"before", whole)
    convert(source, folder / "out")
    assert names(folder) == ["out"]
