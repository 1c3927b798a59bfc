"""How many physical cores this process may use."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

from fastllm import cgroups


def core_count() -> tuple[int, str]:
    """How many threads can run at the same time, and the reason for that number, for people.

    It is the number of physical cores in the process's affinity mask, or the cgroup's CPU quota where that is smaller.
    With more threads than that, all would wait at every barrier for one that is not scheduled.
    """
    cores, quota = _physical_cores(_allowed_cpus()), _cgroup_quota()
    if quota < cores:
        return max(1, int(quota)), "the cgroup's CPU quota"
    return cores, "physical cores this process may use"


def _allowed_cpus() -> set[int]:
    """The CPUs of the affinity mask; all of the machine's where the system has no masks (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int]) -> int:
    """The number of cores that these CPUs (hardware threads) are on. Without Linux's sysfs every CPU is a core."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def _cgroup_quota() -> float:
    """CPU seconds per second that the process's cgroup and those above it grant; infinity without a limit."""
    return min(map(_quota_of, cgroups.folders("cpu")), default=inf)


def _quota_of(folder: Path) -> float:
    """The quota of one cgroup, of version 2 (cpu.max: "max 100000") or 1 (cfs_quota_us, -1 for none)."""
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(granted) / int(period) if granted not in ("max", "-1") else inf
    except (OSError, ValueError):
        return inf
