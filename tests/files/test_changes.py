"""Files that change while they are in use: an error that names the file, never a crash and never a wrong result."""

import mmap
import os
import shutil

import pytest

import fastllm
from fastllm import CheckpointError, cli
from fastllm.files import map_file, reading
from fastllm.weights.convert import convert
from helpers.calls import run
from helpers.data import BUILT_IN, DATA

FORMATS = ("amplify_tiny", "grok1_deep12", "llama2c_untied/model_v0.bin", "meta_llama3_mp2", "mindspore_llama3")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    """Overwrites part of a file in place, as cp does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))


CHANGES = {truncate: "was truncated while it was in use", overwrite: "was changed since it was loaded: load it again"}
READ = "(was truncated while it was in use|was changed while it was read)$"
USES = {
    "generate": lambda llm: llm.generate("Once", max_tokens=3, temperature=0),
    "guesses": lambda llm: llm.generate("Once", max_tokens=3, temperature=0, lookup=True),
    "stream": lambda llm: list(llm.generate("Once", max_tokens=3, stream=True)),
    "batch": lambda llm: llm.generate_batch(["Once", "A dog"], max_tokens=3, temperature=0),
    "logits": lambda llm: llm.logits([5, 6]),
    "hidden states": lambda llm: llm.hidden_states([5, 6]),
    "attentions": lambda llm: llm.attentions([5, 6], 0),
    "embed": lambda llm: llm.embed(["Once"]),
}


# ---- a model that lies in its file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_texts(stored, use, change):
    """Every use fails from then on; loading the model again helps."""
    llm = fastllm.load(stored, threads=1)
    USES[use](llm)
    change(stored)
    for name in (use, *USES):
        with pytest.raises(CheckpointError, match=f"^{stored} {CHANGES[change]}$"):
            USES[name](llm)
    shutil.copy(BUILT_IN, stored)
    assert fastllm.load(stored).generate("Once", max_tokens=3, temperature=0)
    with pytest.raises(CheckpointError, match=str(stored)):
        USES[use](llm)


# A program whose file is changed in the middle of a text, after the check that a text begins with.
DURING = """
import os, sys
from pathlib import Path
import fastllm
from fastllm.decoding import Sampling
path, change, what, threads = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
llm = fastllm.load(path, threads=threads)
def change_it():
    if change == "truncate":
        os.truncate(path, 1 << 16)
    else:
        path.write_bytes(os.urandom(path.stat().st_size))
try:
    if what == "stream":
        for i, _ in enumerate(llm.generate("Once", temperature=0, stream=True)):
            if i == 5:
                change_it()
            assert i < 7, "text from what is in the file now"
    elif what == "batch":
        texts = [llm.start(t, Sampling(temperature=0), max_tokens=50, seed=1) for t in ("Once", "A dog was", "The")]
        texts[0].watch = lambda token: len(texts[0].tokens) == 5 and change_it()
        llm._scheduler.run(texts)
        assert texts[0].error is texts[2].error
        assert len(texts[1].tokens) < 7
        raise texts[1].error
    else:
        rows = llm._engine.logits([5] * 300)
        next(rows)
        change_it()
        next(rows)
except fastllm.CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("what", ["stream", "batch", "logits"])
@pytest.mark.parametrize("change", ["truncate", "overwrite"])
def test_changed_in_the_middle_of_a_text(stored, what, change, threads):
    done = run(DURING, stored, change, what, threads)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{stored} was truncated" if change == "truncate" else f"{stored} was "), done.stdout


def test_replaced_by_another_file(stored, tmp_path):
    """A file that is replaced, as convert does it, is still there for the model that has mapped it."""
    llm = fastllm.load(stored, threads=1)
    text = llm.generate("Once", max_tokens=10, temperature=0)
    (tmp_path / "other").write_bytes(bytes(5000))
    (tmp_path / "other").replace(stored)
    assert llm.generate("Once", max_tokens=10, temperature=0) == text
    stored.unlink()
    assert llm.generate("Once", max_tokens=10, temperature=0) == text


def test_a_model_in_memory_needs_its_file_no_more(write_model):
    source = write_model()
    llm = fastllm.load(source, threads=1)
    text = llm.generate("the", max_tokens=10, temperature=0)
    source.write_bytes(b"")
    assert llm.generate("the", max_tokens=10, temperature=0) == text


def test_another_model_in_the_same_addresses(stored, tmp_path):
    """A fault that was recorded for a mapping is forgotten when another file is mapped at the same address."""
    for i in range(3):
        first = shutil.copy(BUILT_IN, tmp_path / f"{i}.safetensors")
        llm = fastllm.load(first, threads=1)
        first.write_bytes(b"")
        with pytest.raises(CheckpointError, match=str(first)):
            llm.generate("Once", max_tokens=2)
        del llm
        assert fastllm.load(stored, threads=1).generate("Once", max_tokens=2)


# ---- while it is loaded and converted --------------------------------------------------------------------------------


def copied(name, folder):
    source = DATA / name
    if source.is_dir():
        return shutil.copytree(source, folder / "model")
    shutil.copytree(source.parent, folder / "model")
    return folder / "model" / source.name


def weights(path):
    """The path of the largest file of a checkpoint."""
    files = (
        [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and f.suffix not in (".npz", ".json")]
    )
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_converted(tmp_path, name, change):
    """A file of any format that changes during its conversion: an error, and the old file stays."""
    path, out = copied(name, tmp_path), tmp_path / "out"
    file = weights(path)
    out.write_bytes(b"before")
    seen = []

    def once(*_):
        if not seen:
            change(file)
        seen.append(0)

    with pytest.raises(CheckpointError, match=f"{file} {READ}"):
        convert(path, out, progress=once, threads=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_loaded(tmp_path, name, change):
    """Even a change after the last tensor was packed is an error: what was read may have been changed already."""
    path = copied(name, tmp_path)
    file = weights(path)

    def at_last(done, total):
        if done == total:
            change(file)

    with pytest.raises(CheckpointError, match=f"{file} {READ}"):
        fastllm.load(path, progress=at_last, threads=1)


def test_the_change_is_the_cause(tmp_path):
    """The error is that the file changed, whatever other error followed from it: here one of Python's own."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))

    def fail(length):
        with reading():
            data = map_file(path)
            os.truncate(path, length)
            assert bytes(data) == bytes(3 * mmap.PAGESIZE)
            raise ZeroDivisionError

    with pytest.raises(CheckpointError, match=f"{path} was truncated"):
        fail(1)
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    os.utime(path, (0, 0))
    with pytest.raises(CheckpointError, match=f"{path} was changed while it was read"):
        fail(3 * mmap.PAGESIZE)


def test_inspect_of_a_file_that_changes(stored, monkeypatch, capsys):
    from fastllm.weights import store

    load = store.load

    def late(path, data):
        truncate(path)
        return load(path, data)

    monkeypatch.setattr(store, "load", late)
    assert cli.main(["inspect", str(stored)]) == 2
    assert capsys.readouterr().err == f"fastllm: {stored} was truncated while it was in use\n"
