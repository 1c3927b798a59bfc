"""Fixtures of all tests, and hypothesis's settings."""

import os

import pytest
from hypothesis import Phase, settings

import fastllm
from helpers import writers

# Tests also run under sanitizers and on busy machines, so there are few examples and no deadline for one. Hypothesis's
# "explain" phase is left out because it runs a failing test hundreds of times more.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("fastllm", deadline=None, max_examples=50, derandomize=True, phases=PHASES)
settings.load_profile("fastllm")


@pytest.fixture(scope="session", autouse=True)
def _packed_cache(tmp_path_factory):
    """A packed cache of the tests' own: none fills the user's, or finds what another run has left."""
    before = os.environ.get("FASTLLM_CACHE")
    os.environ["FASTLLM_CACHE"] = str(tmp_path_factory.mktemp("packed") / "cache")
    yield
    del os.environ["FASTLLM_CACHE"]
    if before is not None:
        os.environ["FASTLLM_CACHE"] = before


@pytest.fixture
def write_model(tmp_path):
    """A function that writes a random llama2.c file of version 0, 1 or 2 (int8 in groups) and returns its path.

    A tokenizer.bin lies beside the file unless tokenizer is False.
    """

    def write(cfg=writers.SMALL, *, seed=0, tied=False, version=0, group=32, tokenizer=True):
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
