"""How many cores this process has, by what the system grants it."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path


def core_count() -> tuple[int, str]:
    """How many threads may run at once, and why: physical cores, but no more than this process may use.

    More threads than the affinity mask or the cgroup's quota allow would wait for each other at every barrier.
    """
    cores, quota = _physical_cores(_allowed_cpus()), _cgroup_quota()
    if quota < cores:
        return max(1, int(quota)), "the cgroup's CPU quota"
    return cores, "physical cores this process may use"


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int]) -> int:
    """Of hardware threads that share a core, one counts. Without Linux's topology every CPU does."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def _cgroup_quota() -> float:
    """CPUs' worth of time that the cgroup, or one above it, grants; infinity where nothing limits it."""
    quota = inf
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return quota
    for line in lines:
        controllers, path = ([*line.split(":", 2), "", ""])[1:3]
        if controllers == "":
            base = Path("/sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            base = Path("/sys/fs/cgroup/cpu")
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = min(quota, _quota_of(folder))
            if folder == base:
                break
    return quota


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(granted) / int(period) if granted not in ("max", "-1") else inf
    except (OSError, ValueError):
        return inf
