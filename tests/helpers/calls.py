"""How a call ends: in which error, how soon, and in a Python process of its own."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import fastllm


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


def refusal(call, kind):
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


SANITIZED = "ASAN_OPTIONS" in os.environ
