"""When the system refuses files, memory or threads, one error says which."""

import pytest

import fastllm
from fastllm import OptionError
from helpers.calls import SANITIZED, run
from helpers.data import BUILT_IN, DATA

# The command line with a limit set by resource.setrlimit.
LIMITED = """
import resource, sys
kind, most = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (most, most))
from fastllm import cli
raise SystemExit(cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("most", [5, 6, 7, 8, 12])
def test_few_open_files(tmp_path, most):
    """Any file may be the one that cannot be opened, also one of a library: the error names it and the limit."""
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
    """A library that cannot be loaded for lack of memory is not reported as missing."""
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
