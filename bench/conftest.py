"""A second table after pytest-benchmark's: GB/s and operations/s of each benchmark, and its share of memory's speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from fastllm.machine import read_bandwidth


class _Row(NamedTuple):
    name: str
    seconds: float
    info: dict[str, Any]


_ROWS = pytest.StashKey[list[_Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the largest shapes if nothing is timed, because they run the same code as the smaller ones."""
    if config.getoption("benchmark_disable"):
        large = [
            item for item in items if any(shape in item.name for shape in ("110M", "1.1B", "SmolLM2", "32000x2048"))
        ]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture(autouse=True)
def _keep(benchmark: Any, pytestconfig: pytest.Config) -> Iterator[None]:
    """Keeps a benchmark's median for the table. extra_info holds the bytes, multiply_adds and threads of a call."""
    benchmark.extra_info["threads"] = 1
    yield
    if benchmark.stats:  # None when benchmarks are disabled
        name = benchmark.name.removeprefix("test_")
        pytestconfig.stash[_ROWS].append(_Row(name, benchmark.stats.stats.median, benchmark.extra_info))


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if not rows:
        return
    counts = sorted({row.info["threads"] for row in rows})
    read = {threads: read_bandwidth(threads, repeats=20) for threads in counts}
    width = max(len(row.name) for row in rows)
    line = terminalreporter.write_line
    line("")
    line(f"{'':{width}}  {'median':>10}  {'GB/s':>7}  {'of memory':>9}  {'Gop/s':>7}")
    for name, seconds, info in rows:
        gbps = info.get("bytes", 0) / seconds / 1e9
        gops = 2 * info.get("multiply_adds", 0) / seconds / 1e9
        share = gbps / read[info["threads"]]
        cells = [f"{gbps:.1f}" if gbps else "", f"{share:.0%}" if gbps else "", f"{gops:.1f}" if gops else ""]
        line(f"{name:{width}}  {_time(seconds):>10}  {cells[0]:>7}  {cells[1]:>9}  {cells[2]:>7}")
    speeds = ", ".join(f"{gbps:.1f} GB/s with {threads}" for threads, gbps in read.items())
    line(f"of memory: of what threads that only read it reach, {speeds}; more than all of it came from a cache.")
    line("An operation is a multiplication or an addition.")


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3f} {unit}"
    return f"{seconds * 1e6:.1f} us"
