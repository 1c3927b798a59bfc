"""Where the fixtures are, and files of random models."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import Phase, settings

import fastllm
import writers

DATA = Path(__file__).parent / "data"

# What others published, and what is too large, lies beside the repository, on machines that have it.
SHARED = Path(__file__).parents[2] / "shared" / "fixtures"
STORIES = SHARED / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not here")

# A test runs under sanitizers and on busy machines too: examples are few and have no deadline.
# No phase that explains: it runs a failing test hundreds of times more.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("fastllm", deadline=None, max_examples=50, derandomize=True, phases=PHASES)
settings.load_profile("fastllm")

SMALL = writers.config(40, 57, 4, 2, 300, max_seq=160)


def checkpoints(*names):
    """Folders of golden checkpoints as parameters of a test, which needs them to be here."""
    folders = {name: DATA / name if (DATA / name).exists() else SHARED / name for name in names}
    return [
        pytest.param(folder, id=name, marks=pytest.mark.skipif(not folder.exists(), reason=f"{name} is not here"))
        for name, folder in folders.items()
    ]


@contextmanager
def soon():
    """A broken file is refused within two seconds of the processor's time; sanitizers take several times as long."""
    start = time.process_time()
    yield
    assert time.process_time() - start < (10 if "ASAN_OPTIONS" in os.environ else 2)


def run(code, *args):
    """Runs code in a Python of its own: a crash there is a failure here, not the end of the tests."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )


def failure(call):
    """The error that a call ends in, if it is one of ours; any other is the test's to fail with."""
    try:
        call()
    except fastllm.FastLLMError as error:
        return error
    return None


@pytest.fixture
def write_model(tmp_path):
    """Writes a random model, f32 unless a group size is given, with a tokenizer beside it."""

    def write(cfg=SMALL, *, seed=0, tied=False, version=0, group=32, tokenizer=True):
        weights = writers.random_weights(cfg, seed, tied=tied)
        path = tmp_path / f"model_{seed}_v{version}.bin"
        blob = {0: writers.v0, 1: writers.v1}.get(version, lambda c, w: writers.v2(c, w, group))
        path.write_bytes(blob(cfg, weights))
        if tokenizer:
            words = writers.tokenizer_words(cfg.vocab_size)
            (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(words))
        return path

    return write


@pytest.fixture
def llm(write_model):
    return fastllm.load(write_model(), threads=1)
