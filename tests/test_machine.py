"""The number of threads and the reasons for it, free memory, and the measured speed of memory."""

import os
import subprocess
import sys
from math import inf

import pytest

from fastllm import _core, cgroups, cores, machine
from fastllm.cli import main
from fastllm.errors import OptionError
from helpers.calls import run

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
    assert cores._quota_of(tmp_path) == quota


@pytest.mark.parametrize(
    ("listed", "controller", "expected"),
    [
        ("0::/a/b\n", "memory", ["a/b", "a", "."]),
        ("0::/\n", "cpu", ["."]),
        ("5:cpu,cpuacct:/x\n4:memory:/y\n3:cpuset:/z\n", "cpu", ["cpu/x", "cpu"]),
        ("5:cpu,cpuacct:/x\n4:memory:/y\n", "memory", ["memory/y", "memory"]),
        ("4:memory:/y\n0::/s\n", "memory", ["memory/y", "memory", "s", "."]),
        ("1:name=systemd:/u\nnonsense\n", "memory", ["."]),
        (None, "memory", []),
    ],
)
def test_folders_of_cgroups(tmp_path, monkeypatch, listed, controller, expected):
    if listed is not None:
        (tmp_path / "cgroup").write_text(listed)
    monkeypatch.setattr(cgroups, "_LISTED", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "_MOUNTED", tmp_path)
    assert list(cgroups.folders(controller)) == [tmp_path / name for name in expected]


GIB = 1 << 30


@pytest.mark.parametrize(
    ("meminfo", "files", "expected"),
    [
        ("MemTotal: 99 kB\nMemAvailable:    8388608 kB\n", {}, (4 * GIB, "half of the free memory")),
        ("MemAvailable: 8388608 kB\n", {"memory.max": "max", "memory.current": "5"}, (4 * GIB, "free memory")),
        (
            "MemAvailable: 8388608 kB\n",
            {"memory.max": f"{3 * GIB}", "memory.current": f"{2 * GIB}", "memory.stat": f"anon 7\ninactive_file {GIB}"},
            (GIB, "cgroup"),
        ),
        (
            "MemAvailable: 8388608 kB\n",
            {
                "memory.limit_in_bytes": f"{3 * GIB}",
                "memory.usage_in_bytes": f"{2 * GIB}",
                "memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}",
            },
            (GIB, "cgroup"),
        ),
        (
            "MemAvailable: 8388608 kB\n",
            {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "5", "memory.stat": ""},
            (4 * GIB, "free memory"),
        ),
        ("MemAvailable: 8388608 kB\n", {"memory.max": "garbage"}, (4 * GIB, "free memory")),
        ("MemAvailable: 5 kB\n", {}, (64 << 20, "free memory")),
        (
            "MemAvailable: 8388608 kB\n",
            {"memory.max": "5", "memory.current": "9", "memory.stat": ""},
            (64 << 20, "cgroup"),
        ),
    ],
)
def test_keys_and_values_take_half_of_what_is_free(tmp_path, monkeypatch, meminfo, files, expected):
    """Of the machine or of the cgroup above the process's own, whichever has less."""
    (tmp_path / "meminfo").write_text(meminfo)
    (tmp_path / "own").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(cgroups, "folders", lambda controller: [tmp_path / "own", tmp_path])
    found, reason = machine.kv_bytes_default()
    assert found == expected[0]
    assert expected[1] in reason


def test_keys_and_values_where_nothing_says_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(cgroups, "folders", lambda controller: [])
    pages = {"SC_PHYS_PAGES": 2 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert machine.kv_bytes_default()[0] == 4 * GIB
    monkeypatch.delattr(os, "sysconf")
    assert machine.kv_bytes_default() == (GIB, "the system does not say how much memory is free")


@openmp
@pytest.mark.parametrize(
    ("physical", "quota", "count", "why"),
    [(8, inf, 8, "cores"), (8, 3.9, 3, "quota"), (8, 0.5, 1, "quota"), (2, 4, 2, "cores")],
)
def test_no_more_threads_than_cores_and_quota(monkeypatch, physical, quota, count, why):
    monkeypatch.setattr(cores, "_physical_cores", lambda cpus: physical)
    monkeypatch.setattr(cores, "_cgroup_quota", lambda: quota)
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


@openmp
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads cannot be counted here")
def test_no_more_threads_run_than_cpus(write_model):
    code = """
import os, sys
import fastllm
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
llm = fastllm.load(sys.argv[1], threads=1)
before = len(os.listdir("/proc/self/task"))
llm._engine.threads = 16  # only now, for packing takes what it is given
llm.logits(list(range(1, 100)))
assert len(os.listdir("/proc/self/task")) == before
"""
    done = run(code, write_model())
    assert done.returncode == 0, done.stderr


@openmp
@pytest.mark.parametrize(
    ("value", "count"),
    [("3", 3), ("4,2", 4), (" 5 , 1 ", 5), ("007", 7), ("1024", 1024), ("99999", 1024), ("", None), ("  ", None)],
)
def test_omp_num_threads_is_honoured(monkeypatch, value, count):
    default = machine.thread_count()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert machine.thread_count() == (default if count is None else (count, "OMP_NUM_THREADS"))
    assert machine.check_threads(None) == machine.thread_count()[0]
    assert machine.check_threads(2) == 2  # an explicit number wins


@openmp
@pytest.mark.parametrize("value", ["0", "-2", "two", "2.5", ",2", "\u0663", "1" * 5000])
def test_omp_num_threads_that_is_none(monkeypatch, capsys, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(OptionError, match="OMP_NUM_THREADS must be a number"):
        machine.thread_count()
    assert machine.check_threads(2) == 2
    assert main(["info"]) == 2
    assert "OMP_NUM_THREADS" in capsys.readouterr().err


@openmp
def test_info_says_why(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert main(["info"]) == 0
    assert "threads: 3 (OMP_NUM_THREADS)" in capsys.readouterr().out


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
