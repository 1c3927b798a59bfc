"""What this machine gives: threads, and how fast its memory reads."""

from __future__ import annotations

import os
import time
from math import inf
from pathlib import Path

from fastllm import _core
from fastllm.cores import core_count
from fastllm.errors import OptionError

MOST_THREADS = 1024
_LEAST_READ, _MOST_READ = 64 << 20, 512 << 20  # bytes read to measure memory


def thread_count() -> tuple[int, str]:
    """How many threads to run, and why: as OMP_NUM_THREADS says, or else one for each core.

    Raises OptionError for an OMP_NUM_THREADS that is no number of threads.
    """
    if not _core.has_threads():
        return 1, "built without OpenMP"
    asked = _omp_num_threads()
    return (asked, "OMP_NUM_THREADS") if asked else core_count()


def _omp_num_threads() -> int:
    """OMP_NUM_THREADS, of a list (a number for each level of nesting) the first; 0 where it is absent or empty."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not value:
        return 0
    first = value.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and len(first) < 10 and int(first) > 0):
        raise OptionError(f"OMP_NUM_THREADS must be a number of threads, or a list of them, not {value!r}")
    return min(int(first), MOST_THREADS)


def check_threads(threads: int | None) -> int:
    """A thread count that was asked for, or the default. Raises OptionError when it is impossible.

    Also where the system refuses so many: it may limit the threads of a user, and each takes memory for its stack.
    """
    if threads is None:
        threads = thread_count()[0]
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise OptionError(f"threads must be between 1 and {MOST_THREADS}, not {threads!r}")
    try:
        _core.try_threads(threads)
    except OSError as error:
        raise OptionError(f"{threads} threads cannot be started: {error.strerror}; ask for fewer") from None
    return threads


def read_bandwidth(threads: int, *, data: memoryview | None = None, repeats: int = 3) -> float:
    """GB/s at which `threads` threads read: the best of a few passes over `data`, or else over so much memory that
    caches do not hold it, twice the largest."""
    if data is None:
        nbytes = min(max(_LEAST_READ, 2 * _largest_cache()), _MOST_READ)
        data = memoryview(_core.Buffer(nbytes))
        data[::4096] = bytes([1]) * len(range(0, nbytes, 4096))  # pages of their own, not the zero page
    best = inf
    for _ in range(repeats):
        start = time.perf_counter()
        _core.read_memory(data, threads)
        best = min(best, time.perf_counter() - start)
    return len(data) / best / 1e9


def _largest_cache() -> int:
    """Bytes of this machine's largest cache; 0 where Linux's files about it are missing."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(file.read_text().strip().removesuffix("K")) << 10 for file in files), default=0)
    except (OSError, ValueError):
        return 0


def int8_peak(threads: int, *, isa: str | None = None, seconds: float = 0.02, repeats: int = 3) -> float:
    """Billions of int8 multiply-adds a second that `threads` threads do at most: the best of a few runs of about
    `seconds` with nothing but the best such instruction of `isa` (None: of the machine). Raises OptionError for an
    instruction set that is not there."""
    rounds, best, took = 64, 0.0, 0.0
    while repeats > 0:
        start = time.perf_counter()
        done = _core.int8_peak(rounds, threads, isa)
        took = time.perf_counter() - start
        if took < seconds:
            rounds *= 2
            continue
        best, repeats = max(best, done / took / 1e9), repeats - 1
    return best
