"""What this machine can do: threads, free memory, read bandwidth, and the peak of its int8 instructions."""

from __future__ import annotations

import os
import time
from math import inf
from pathlib import Path

from fastllm import _core, cgroups
from fastllm.cores import core_count
from fastllm.errors import OptionError

MOST_THREADS = 1024
_LEAST_KV = 64 << 20  # bytes of keys and values that are always allowed
_UNKNOWN_KV = 1 << 30  # where the system does not say how much memory is free
_MEMORY = Path("/proc/meminfo")
_LEAST_READ, _MOST_READ = 64 << 20, 512 << 20  # bytes that one pass over memory reads


def thread_count() -> tuple[int, str]:
    """The default number of threads, and the reason for it, for people: OMP_NUM_THREADS, else one for each core.

    Raises OptionError where OMP_NUM_THREADS is not a number of threads.
    """
    if not _core.has_threads():
        return 1, "built without OpenMP"
    asked = _omp_num_threads()
    return (asked, "OMP_NUM_THREADS") if asked else core_count()


def _omp_num_threads() -> int:
    """OMP_NUM_THREADS, or its first number if it is a list (one for each nesting level); 0 if absent or empty."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not value:
        return 0
    first = value.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and len(first) < 10 and int(first) > 0):
        raise OptionError(f"OMP_NUM_THREADS must be a number of threads, or a list of them, not {value!r}")
    return min(int(first), MOST_THREADS)


def check_threads(threads: int | None) -> int:
    """`threads`, or the default for None, once the system has started so many.

    Raises OptionError for a number out of range, and where the system refuses: it may limit a user's threads, and each
    takes memory for its stack.
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


def kv_bytes_default() -> tuple[int, str]:
    """The most bytes that keys and values of a model may take unless the user says so, and the reason, for people.

    Half of the memory that is free now: of the machine, or of the process's cgroups where that is less.
    """
    free, why = _free_memory(), "half of the free memory"
    for folder in cgroups.folders("memory"):
        if (left := _memory_left(folder)) < free:
            free, why = left, "half of what the cgroup's memory limit leaves"
    if free == inf:
        return _UNKNOWN_KV, "the system does not say how much memory is free"
    return max(_LEAST_KV, int(free) // 2), why


def _free_memory() -> float:
    """Bytes that programs can take without swapping, page cache that can be dropped included; infinity if unknown."""
    try:
        lines = _MEMORY.read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), inf)
    except (OSError, ValueError, IndexError):
        pass
    try:  # macOS says how much there is, not how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return inf


def _memory_left(folder: Path) -> float:
    """Bytes that one cgroup, of version 2 or 1, still grants; infinity without a limit.

    Of the page cache, which counts as used, the part that was not read for long can be dropped: inactive_file.
    """
    version_2 = (folder / "memory.max").exists()
    limit, used, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version_2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        granted = (folder / limit).read_text().strip()
        if granted == "max":
            return inf
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(granted) - int((folder / used).read_text()) + int(counts.get(cached, 0)))
    except (OSError, ValueError):
        return inf


def read_bandwidth(threads: int, *, data: memoryview | None = None, repeats: int = 3) -> float:
    """GB/s at which `threads` threads read `data`: the best of `repeats` passes.

    None: read from memory, over a buffer twice as large as the largest cache (64 to 512 MiB).
    """
    if data is None:
        nbytes = min(max(_LEAST_READ, 2 * _largest_cache()), _MOST_READ)
        data = memoryview(_core.Buffer(nbytes))
        data[::4096] = bytes([1]) * len(range(0, nbytes, 4096))  # else all would map the system's one page of zeros
    best = inf
    for _ in range(repeats):
        start = time.perf_counter()
        _core.read_memory(data, threads)
        best = min(best, time.perf_counter() - start)
    return len(data) / best / 1e9


def _largest_cache() -> int:
    """Bytes of the largest cache; 0 where the system does not say (only Linux's sysfs is read)."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(file.read_text().strip().removesuffix("K")) << 10 for file in files), default=0)
    except (OSError, ValueError):
        return 0


def int8_peak(threads: int, *, isa: str | None = None, seconds: float = 0.02, repeats: int = 3) -> float:
    """The most int8 multiply-adds that `threads` threads do, in billions a second.

    It is the best of `repeats` runs, of `seconds` at least, of nothing but the widest int8 dot product of the
    instruction set `isa` (None: the machine's best). Raises OptionError for an instruction set the machine lacks.
    """
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
