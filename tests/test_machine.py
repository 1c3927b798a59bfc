"""How many threads, and why; how fast memory reads."""

import os
import subprocess
import sys
from math import inf

import pytest

from fastllm import _core, machine
from fastllm.errors import OptionError

openmp = pytest.mark.skipif(not _core.has_threads(), reason="built without OpenMP")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, inf),
        ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, inf),
        ({"cpu.max": "garbage\n"}, inf),
        ({}, inf),
    ],
)
def test_quota_of_a_cgroup(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine._quota_of(tmp_path) == quota


@openmp
@pytest.mark.parametrize(
    ("cores", "quota", "count", "why"),
    [(8, inf, 8, "cores"), (8, 3.9, 3, "quota"), (8, 0.5, 1, "quota"), (2, 4, 2, "cores")],
)
def test_no_more_threads_than_cores_and_quota(monkeypatch, cores, quota, count, why):
    monkeypatch.setattr(machine, "_physical_cores", lambda cpus: cores)
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    found, reason = machine.thread_count()
    assert found == count
    assert why in reason


@openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_mask_is_obeyed():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    code += "from fastllm.machine import thread_count; print(thread_count()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().strip() == "1"


def test_threads_that_cannot_be():
    assert machine.check_threads(3) == 3
    assert machine.check_threads(None) == machine.thread_count()[0]
    for threads in (0, -1, 1025, 1.5, "2", True):
        with pytest.raises(OptionError, match="threads"):
            machine.check_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lines", [1, 7, 8, 64, 101])
def test_all_memory_is_read_once(lines, threads):
    data = _core.Buffer(64 * lines)
    words = memoryview(data).cast("B").cast("Q")
    for i in range(len(words)):
        words[i] = i * i + 1
    assert _core.read_memory(data, threads) == sum(i * i + 1 for i in range(len(words)))


def test_bandwidth():
    assert machine.read_bandwidth(1, data=memoryview(bytes(1 << 20)), repeats=1) > 0
    largest = machine._largest_cache()
    assert largest == 0 or 16 << 10 <= largest < 16 << 30


def test_peak_counts_what_it_does():
    for isa, supported in _core.isas():
        if not supported:
            continue
        one = _core.int8_peak(1, 1, isa)
        assert one > 0
        assert _core.int8_peak(6, 1, isa) == 6 * one
        if _core.has_threads():
            assert _core.int8_peak(3, 2, isa) == 6 * one
    with pytest.raises(OptionError, match="instruction set"):
        _core.int8_peak(1, 1, "abacus")


def test_peak_is_a_speed():
    assert machine.int8_peak(1, seconds=1e-4, repeats=1) > 0
