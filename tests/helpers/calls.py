"""How a call ends: in which error, how soon, and whether it takes its process along."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import fastllm

SANITIZED = "ASAN_OPTIONS" in os.environ  # the tests run under AddressSanitizer


@contextmanager
def soon():
    """Asserts that the block takes less than two seconds of CPU time (ten under sanitizers, which are slower)."""
    start = time.process_time()
    yield
    assert time.process_time() - start < (10 if SANITIZED else 2)


def run(code, *args):
    """Runs code in a Python process of its own, so that a crash fails one test and does not end pytest."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )


def failure(call):
    """The FastLLMError that a call raises, or None. Any other exception passes and fails the test."""
    try:
        call()
    except fastllm.FastLLMError as error:
        return error
    return None


def refusal(call, kind):
    """The message of the error of this kind that a call must raise."""
    with pytest.raises(kind) as error:
        call()
    return str(error.value)
