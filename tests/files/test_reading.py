"""What may stand where a file should be: folders, pipes, devices, Git LFS pointers, unfinished downloads."""

import os
import shutil
from pathlib import Path

import pytest

import fastllm
from fastllm import CheckpointError, cli
from fastllm.files import map_file, read_file
from helpers.data import DATA


def test_what_can_be_read(tmp_path):
    path = tmp_path / "file"
    for read in (map_file, read_file):
        with pytest.raises(CheckpointError, match=f"{path} does not exist"):
            read(path)
        with pytest.raises(CheckpointError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot be read: .*null"):
            read(Path("a\0b"))
    os.mkfifo(path)
    for read in (map_file, read_file):
        with pytest.raises(CheckpointError, match=f"{path} is no regular file"):
            read(path)
    path.unlink()
    path.write_bytes(b"")
    assert read_file(path) == b""
    with pytest.raises(CheckpointError, match=f"{path} is empty"):
        map_file(path)
    path.write_bytes(b"abc")
    assert (bytes(map_file(path)), read_file(path), map_file(path).readonly) == (b"abc", b"abc", True)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 16060522496\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
FILES = (
    *("model.safetensors", "pytorch_model.bin", "model.gguf", "model.ckpt", "model.pth", "model.npz", "model.bin"),
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "config.json", "chat_template.jinja"),
)


@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_a_files_place(tmp_path, name):
    path = tmp_path / name
    for blob, word in (
        (POINTER, "is a Git LFS pointer, not the file itself: run git lfs pull"),
        (POINTER.replace(b"git-lfs", b"hawser"), "Git LFS pointer"),
        (b"# xet version 0\nfilesize = 7\nhash = 'a1'\n", "git-xet"),
        (PAGE, "is a web page"),
        (b"\xef\xbb\xbf<HTML>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    ):
        path.write_bytes(blob)
        for read in (map_file, read_file):
            with pytest.raises(CheckpointError, match=f"{path} {word}" if word.startswith("is") else word) as error:
                read(path)
            assert "\n" not in str(error.value)
    for blob in (b"version 1", b"<unk>\n<s>", b"<|html|>", b" ", b"{}", b"<h"):
        path.write_bytes(blob)
        assert bytes(map_file(path)) == read_file(path) == blob


@pytest.mark.parametrize("name", ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"])
@pytest.mark.parametrize("blob", [POINTER, PAGE, b""])
def test_a_model_with_a_file_that_is_none(tmp_path, capfd, name, blob):
    """One sentence names the file, even if the model could be loaded from its other files."""
    shutil.copytree(DATA / "meta_llama3_mp2", tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(blob)
    assert cli.main(["run", str(tmp_path / "model"), "--prompt", "a", "--max-tokens", "1"]) == 2
    said = capfd.readouterr().err
    assert f"{path} is {'empty' if not blob else 'a'}" in said
    assert said.count("\n") == 1


def test_downloads_that_have_not_ended(tmp_path):
    shutil.copytree(DATA / "meta_llama3_mp2", tmp_path / "model")
    path = tmp_path / "model" / "consolidated.01.pth"
    path.rename(f"{path}.incomplete")
    for suffix in (".incomplete", ".part", ".crdownload"):
        Path(f"{path}.incomplete").write_bytes(b"")
        Path(f"{path}.incomplete").rename(f"{path}{suffix}")
        with pytest.raises(CheckpointError, match=rf"does not exist, only {path.name}\{suffix}: its download has not"):
            map_file(path)
        Path(f"{path}{suffix}").unlink()
    path.write_bytes(b"\0")
    Path(f"{path}.aria2").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match=rf"is not complete: {path.name}\.aria2 beside it"):
        fastllm.load(tmp_path / "model")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.incomplete").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match=r"no weights.*, only model\.safetensors\.incomplete: its download"):
        fastllm.load(tmp_path)
