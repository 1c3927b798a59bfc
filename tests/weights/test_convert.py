"""Conversion to fastllm's own file: what it holds, and which files it must not replace."""

import json
import os
import pty
import re
import select
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError, TokenizerError
from fastllm.files import map_file
from fastllm.llm.verify import verify
from fastllm.weights import packing, store
from fastllm.weights.convert import convert
from fastllm.weights.store import DTYPES
from helpers import oracle, writers
from helpers.calls import run
from helpers.commands import SLOW
from helpers.data import names
from helpers.writers import write_folder

TOKENS = list(range(3, 45))


# ---- what the file holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, None])
@pytest.mark.parametrize("version", [0, 2])
def test_the_file_is_what_load_makes(write_model, tmp_path, dtype, version):
    """A converted file gives the same bits as the loaded checkpoint, with any threads; no other file is left."""
    source = write_model(writers.config(64, 96, 4, 2, 300), version=version)
    before = names(tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert(source, out, dtype=dtype, threads=1) is None
    assert names(tmp_path) == sorted([*before, out.name])
    loaded, mapped = fastllm.load(source, dtype=dtype), fastllm.load(out)
    assert mapped.dtypes == loaded.dtypes
    assert (mapped.logits(TOKENS) == loaded.logits(TOKENS)).all()
    assert mapped.generate("the ocean", seed=3) == loaded.generate("the ocean", seed=3)
    assert (mapped.bos, mapped.stop, mapped.chat_stop) == (loaded.bos, loaded.stop, loaded.chat_stop)
    again = tmp_path / "again"
    convert(source, again, dtype=dtype, threads=2)
    assert again.read_bytes() == out.read_bytes()


def test_the_same_bytes_in_any_chunks(write_model, tmp_path, monkeypatch):
    source = write_model()
    convert(source, tmp_path / "whole", dtype="q8")
    for size in (1, 1 << 12):
        monkeypatch.setattr(packing, "_CHUNK", size)
        convert(source, tmp_path / "parts", dtype="q8")
        assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_experts_in_any_chunks(tmp_path, monkeypatch):
    """A stack of experts whose rows are no multiple of a panel's 16, read a few rows at a time."""
    cfg = writers.config(40, 0, 4, 2, 300, n_experts=3, n_experts_used=2, expert_dim=41)
    weights = writers.random_weights(cfg)
    source = tmp_path / "f32.safetensors"
    tensors = writers.core_tensors(cfg, weights, "f32")
    del tensors["rope.freqs_local"]
    store.save(source, store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    monkeypatch.setattr(packing, "_CHUNK", 1 << 11)
    convert(source, tmp_path / "again", dtype="f32")
    assert np.abs(fastllm.load(tmp_path / "again").logits(TOKENS) - oracle.forward(cfg, weights, TOKENS)).max() < 1e-4
    again = store.load(source, map_file(tmp_path / "again")).tensors
    assert all(again[name].data == tensor.data for name, tensor in tensors.items())


def test_converted_floats_can_be_converted(write_model, tmp_path):
    """A converted f32 file can be converted to any type; an int8 file cannot become floats."""
    source, f32, q8 = write_model(), tmp_path / "f32", tmp_path / "q8"
    for dtype in ("f32", "bf16"):
        convert(source, f32, dtype=dtype)
        convert(f32, q8)
        assert q8.read_bytes() == f32.read_bytes()
    convert(source, f32)
    convert(f32, q8, dtype="q8")
    assert (fastllm.load(q8).logits(TOKENS) == fastllm.load(source, dtype="q8").logits(TOKENS)).all()
    assert fastllm.load(q8).generate("the", seed=1) == fastllm.load(source, dtype="q8").generate("the", seed=1)
    with pytest.raises(OptionError, match=r"already converted to q8: convert the checkpoint it was made from"):
        convert(q8, tmp_path / "no", dtype="f16")


def test_a_tokenizer_travels_or_is_missed(write_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    source, out = write_model(), tmp_path / "bare" / "out"
    convert(source, out)
    (tmp_path / "tokenizer.bin").rename(tmp_path / "other")
    assert fastllm.load(out).detokenize(fastllm.load(out).tokenize("the ocean")) == "the ocean"
    missing = convert(source, out)
    assert isinstance(missing, TokenizerError)
    with pytest.raises(TokenizerError):
        fastllm.load(out).tokenize("the")
    assert convert(source, out, tokenizer=tmp_path / "other") is None
    assert fastllm.load(out).tokenize("the")
    with pytest.raises(TokenizerError, match="nothing does not exist"):
        convert(source, tmp_path / "no", tokenizer=tmp_path / "nothing")


def test_the_first_version_s_files_load():
    """The built-in model's file is of the first version, without a source in its header."""
    llm = fastllm.load(os.path.join(os.path.dirname(fastllm.__file__), "demo", "stories.safetensors"))
    assert llm.generate("Once", max_tokens=5, temperature=0)


@pytest.mark.parametrize("dtype", ["f16", "q8"])
def test_verify(write_model, tmp_path, dtype):
    """verify's figures equal their definitions, computed from the logits of both models."""
    source, out = write_model(writers.config(64, 96, 4, 2, 300, max_seq=50)), tmp_path / "out"
    convert(source, out, dtype=dtype)
    found = verify(source, out)
    assert found.tokens == 50
    ids = np.random.default_rng(0).integers(0, 300, 50).tolist()
    p, q = (fastllm.load(path).logits(ids).astype(np.float64) for path in (source, out))
    assert found.largest == np.abs(p - q).max()
    assert np.isclose(found.mean, np.abs(p - q).mean())
    sp, sq = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (p, q))
    assert np.isclose(found.kl, (sp * np.log(sp / sq)).sum(axis=1).mean())
    assert found.top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    exact = verify(source, source)
    assert (exact.largest, exact.kl, exact.top1) == (0, 0, 1)


# ---- what is refused, and which files are replaced -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("dtype must be one of f32, f16, bf16, q8, q4, not 'q3'", {"dtype": "q3"}),
        ("format must be one of", {"format": "gguf"}),
        ("version says the dtype", {"format": "llama2c", "dtype": "q8"}),
        ("versions are 0, 1, 2", {"format": "llama2c", "version": 3}),
        ("goes with the format llama2c", {"version": 1}),
        ("threads", {"threads": 0}),
        ("only those have revisions", {"revision": "main"}),
    ],
)
def test_options_that_are_none(write_model, tmp_path, said, options):
    with pytest.raises(OptionError, match=said):
        convert(write_model(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_read_is_written_over(write_model, tmp_path):
    source = write_model()
    blob, link = source.read_bytes(), tmp_path / "link"
    link.symlink_to(source)
    for target in (source, link, tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written") as error:
            convert(source, target)
        assert str(target) in str(error.value)
    assert source.read_bytes() == blob
    with pytest.raises(CheckpointError, match=r"a part of it"):
        convert(tmp_path, source)


def test_places_that_cannot_be_written(write_model, tmp_path):
    source = write_model()
    before = names(tmp_path)
    for target in (tmp_path / "missing" / "out", source / "out"):
        for options in ({}, {"format": "llama2c"}):
            with pytest.raises(CheckpointError, match=f"{target} cannot be written"):
                convert(source, target, **options)
    assert names(tmp_path) == before


def test_only_regular_files_are_replaced(write_model, tmp_path):
    """Only a regular file is replaced. For root, /dev/null would otherwise become a file."""
    source = write_model()
    places = dict.fromkeys(("pipe", "socket", "link"), "no regular file") | {"loop": "Too many levels"}
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if os.geteuid() == 0:
        with suppress(PermissionError):  # some containers forbid making devices
            os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            places["null"] = "no regular file"
    before = {name: os.lstat(tmp_path / name) for name in places}
    for name, said in places.items():
        for options in ({}, {"format": "llama2c"}):
            with pytest.raises(CheckpointError, match=f"{tmp_path / name} cannot be written: .*{said}"):
                convert(source, tmp_path / name, **options)
        now = os.lstat(tmp_path / name)
        assert (now.st_ino, now.st_mode) == (before[name].st_ino, before[name].st_mode)
    listener.close()


def test_a_link_s_target_is_replaced(write_model, tmp_path):
    """If the target is a symbolic link, the file it names is written, even if it does not exist yet; the link stays."""
    source, other = write_model(), tmp_path / "other"
    other.mkdir()
    convert(source, tmp_path / "plain")
    expected = (tmp_path / "plain").read_bytes()
    (other / "old").write_bytes(b"old")
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(Path("other", name))
        convert(source, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (other / name).read_bytes() == expected
    assert names(other) == ["new", "old"]


def test_nothing_that_is_read_is_written_over_by_another_name(tmp_path):
    """No hard or symbolic link to a file of the checkpoint, its tokenizer or the calibration text is replaced."""
    cfg = writers.config(40, 56, 4, 2, 300)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg))
    (tmp_path / "tok.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    (tmp_path / "text").write_text("the ocean " * 300)
    options = {"tokenizer": tmp_path / "tok.bin", "calibrate": tmp_path / "text", "dtype": "q4"}
    files = [folder / "model.safetensors", folder / "config.json", tmp_path / "tok.bin", tmp_path / "text"]
    before = [file.read_bytes() for file in files]
    for i, file in enumerate(files):
        hard, soft = tmp_path / f"hard{i}", tmp_path / f"soft{i}"
        hard.hardlink_to(file)
        soft.symlink_to(file)
        for target in (hard, soft, *([file] if file.parent == tmp_path else [])):
            with pytest.raises(CheckpointError, match=f"{target} cannot be written: it is .*a part of it"):
                convert(folder, target, **options)
    assert [file.read_bytes() for file in files] == before


def test_long_names(write_model, tmp_path):
    source = write_model()
    convert(source, tmp_path / ("x" * 250))
    assert fastllm.load(tmp_path / ("x" * 250))
    with pytest.raises(CheckpointError, match="cannot be written: File name too long"):
        convert(source, tmp_path / ("x" * 256))


def test_permissions(write_model, tmp_path):
    """A new file has the permissions of any new file; one that replaces another has the other's."""
    source, out = write_model(), tmp_path / "out"
    mask = os.umask(0o027)
    try:
        convert(source, out)
        assert stat.S_IMODE(out.stat().st_mode) == 0o640
        for mode in (0o600, 0o666):
            out.chmod(mode)
            convert(source, out)
            assert stat.S_IMODE(out.stat().st_mode) == mode
    finally:
        os.umask(mask)


def test_the_bar_is_for_terminals(write_model, tmp_path):
    """A terminal shows bytes and the time left; a pipe gets only the result."""
    pytest.importorskip("rich")
    source, out = write_model(), tmp_path / "out"
    done = run(SLOW, source, out)
    assert done.stderr == f"{out}: {out.stat().st_size:,} bytes\n"
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, source, out],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(follower)
        seen, end = b"", time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    seen += os.read(leader, 1 << 16)
                except OSError:
                    break
        assert process.wait(60) == 0
    os.close(leader)
    assert b"converting" in seen
    assert re.search(rb"[\d.]+/[\d.]+ kB", seen), seen
    assert re.search(rb"0:00:\d\d", seen)


def test_a_text_without_bos_begins_after_the_end_of_one(tmp_path):
    """In families without BOS a text begins after the token that training put between texts."""
    cfg = writers.config(40, 56, 4, 2, 300, max_seq=64)
    folder = write_folder(tmp_path / "granite", cfg, writers.random_weights(cfg, tied=True))
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    llm = fastllm.load(folder)
    assert llm.bos is None
    assert llm.tokenize("the ocean") == llm.tokenizer.encode("the ocean")
    assert llm.tokenize("") == [2]
    assert llm.generate("", max_tokens=3, temperature=0)
