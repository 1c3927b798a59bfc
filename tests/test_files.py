"""Files that change while they are read: an error that names the file, never a crash, and never what was made of it."""

import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastllm
from conftest import DATA, run
from fastllm import CheckpointError, OptionError, cli
from fastllm.files import map_file, read_file, reading
from fastllm.weights.convert import convert

BUILT_IN = Path(fastllm.__file__).parent / "demo" / "stories.safetensors"
FORMATS = ("amplify_tiny", "grok1_deep12", "llama2c_untied/model_v0.bin", "meta_llama3_mp2", "mindspore_llama3")
SANITIZED = "ASAN_OPTIONS" in os.environ


@pytest.fixture
def stored(tmp_path):
    """A converted model, which lies in its file as long as it is used."""
    return shutil.copy(BUILT_IN, tmp_path / "model.safetensors")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    """As cp does with a file of the same size: in place."""
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
    """And from then on, whatever is asked of it; a model that is loaded again is another."""
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


# What goes on when it happens has looked at the file before: it reads what is no longer there.
DURING = """
import os, sys
from pathlib import Path
import fastllm
from fastllm.engine import Batch
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
        batch = Batch(llm._engine)
        for text in ("Once", "A dog was", "The"):
            batch.add(llm.start(text, Sampling(temperature=0), max_tokens=50, seed=1))
        batch.step()
        change_it()
        batch.step()
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
    """As our own conversion does: the model has the file that it was loaded from, which has no name any more."""
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
    """What was mapped where a file lies now does not matter to it."""
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
    """The largest file of a checkpoint."""
    files = (
        [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and f.suffix not in (".npz", ".json")]
    )
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_converted(tmp_path, name, change):
    """In every format, and as early as can be; what was there before stays."""
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
    """After the last piece was packed, too: who knows what was in it."""
    path = copied(name, tmp_path)
    file = weights(path)

    def at_last(done, total):
        if done == total:
            change(file)

    with pytest.raises(CheckpointError, match=f"{file} {READ}"):
        fastllm.load(path, progress=at_last, threads=1)


def test_the_change_is_the_cause(tmp_path):
    """Whatever follows from it: here, an error of Python's."""
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
    """Also where other files of the model could do: one sentence that names the file."""
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


# ---- others that use the signal --------------------------------------------------------------------------------------

# A file of somebody else's, truncated under a map: SIGBUS, which is not ours. Before that, one of ours.
FOREIGN = """
import faulthandler, mmap, os, sys, tempfile
import fastllm
when, path = sys.argv[1:]
if when == "before":
    faulthandler.enable()
llm = fastllm.load(path, threads=1)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
if when == "after":
    faulthandler.enable()
llm.generate("Once", max_tokens=1)
next(words)
os.truncate(path, 1 << 12)
try:
    list(words)
except fastllm.CheckpointError as error:
    print(error, flush=True)
with tempfile.TemporaryFile() as file:
    file.truncate(1 << 16)
    view = mmap.mmap(file.fileno(), 1 << 16)
    file.truncate(0)
    view[5000]
print("not reached")
"""


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_other_crashes_are_reported_as_ever(stored, when):
    env = os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"}
    env.pop("PYTHONFAULTHANDLER", None)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, when, stored], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert done.stdout == f"{stored} was truncated while it was in use\n"
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == (when != "never"), done.stderr


HANDLERS = """
import os, signal, sys
import fastllm
when, path = sys.argv[1:]
number = signal.SIGBUS
def install():
    signal.signal(number, lambda *_: print("theirs", flush=True))
if when == "before":
    install()
llm = fastllm.load(path, threads=1)
if when == "after":
    install()
if when == "ignored":
    signal.signal(number, signal.SIG_IGN)
llm.generate("Once", max_tokens=1)
for _ in range(2):
    os.kill(os.getpid(), number)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
next(words)
os.truncate(path, 1 << 12)
try:
    list(words)
except fastllm.CheckpointError:
    print("ours")
"""


@pytest.mark.parametrize("when", ["before", "after", "ignored"])
def test_other_handlers_are_called(stored, when):
    done = run(HANDLERS, when, stored)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if when == "ignored" else "theirs\ntheirs\n") + "ours\n"


def test_a_child_has_the_handler_too(stored):
    code = """
import os, sys, fastllm
llm = fastllm.load(sys.argv[1], threads=1)
words = llm.generate("Once", temperature=0, max_tokens=20, stream=True)
next(words)
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.truncate(sys.argv[1], 1 << 12)
try:
    list(words)
except fastllm.CheckpointError:
    os._exit(7)
"""
    assert run(code, stored).returncode == 7


# ---- low limits ------------------------------------------------------------------------------------------------------


# The command line with at most so many of something.
LIMITED = """
import resource, sys
kind, most = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (most, most))
from fastllm import cli
raise SystemExit(cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("most", [5, 6, 7, 8, 12])
def test_few_open_files(tmp_path, most):
    """Each of the files may be the one that cannot be opened, those of libraries among them: it is named as that."""
    for words in (
        ("run", BUILT_IN, "-n", 3),
        ("embed", DATA / "amplify_tiny", "MKV"),
        ("inspect", DATA / "mindspore_llama3"),
        ("convert", DATA / "grok1_deep12", tmp_path / "out"),
    ):
        done = run(LIMITED, "RLIMIT_NOFILE", most, *words)
        if done.returncode == 0:
            continue
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "Too many open files" in done.stderr
    assert not list(tmp_path.glob(".fastllm*"))


@pytest.mark.skipif(SANITIZED, reason="it takes terabytes of addresses")
def test_little_memory(tmp_path):
    """A library that has no room to be loaded is not missing."""
    done = run(LIMITED, "RLIMIT_AS", 60 << 20, "embed", DATA / "amplify_tiny", "MKV")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install" not in done.stderr
    assert "memory" in done.stderr or "failed to map" in done.stderr
    done = run(LIMITED, "RLIMIT_AS", 500 << 20, "run", BUILT_IN, "--context", "1", "--threads", "200")
    assert done.returncode == 2
    assert done.stderr.startswith("fastllm: 200 threads cannot be started: ")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files", "file.so"), ImportError("x.so: failed to map")])
def test_a_library_that_is_there_is_not_missing(monkeypatch, error):
    from fastllm.tokenizer._library import library

    def refuse(name, *args, **kwargs):
        if name == "tokenizers":
            raise error
        return real(name, *args, **kwargs)

    import builtins

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    said = "Too many open files" if isinstance(error, OSError) else "x.so: failed to map"
    with pytest.raises(fastllm.LibraryError, match=f"^the library tokenizers cannot be loaded: {said}$"):
        library("it")


def test_threads_that_cannot_be_started(monkeypatch):
    def refuse(_):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("fastllm.machine._core.try_threads", refuse)
    with pytest.raises(OptionError, match=r"^3 threads cannot be started: Resource temporarily unavailable; ask for"):
        fastllm.load(BUILT_IN, threads=3)


def test_inspect_of_a_file_that_changes(stored, monkeypatch, capsys):
    from fastllm.weights import store

    load = store.load

    def late(path, data):
        truncate(path)
        return load(path, data)

    monkeypatch.setattr(store, "load", late)
    assert cli.main(["inspect", str(stored)]) == 2
    assert capsys.readouterr().err == f"fastllm: {stored} was truncated while it was in use\n"
