"""The side-by-side's tables, from figures that are given."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Nothing is timed here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest_benchmark.logger.PytestBenchmarkWarning")

PEERS = Path(__file__).with_name("peers.py")


def sample(label: str, value: float, *, work: str = "decode", threads: int = 1, bits: float = 8.5) -> dict[str, Any]:
    about = {"label": label, "shape": "1.1B", "work": work, "threads": threads, "settings": {}, "bits": bits}
    return about | {"token_bytes": 1e9, "value": value, "rss_mb": 100.0, "others": 0.0}


def cells(folder: Path, samples: list[dict[str, Any]], machine: dict[str, list[float]]) -> dict[str, list[str]]:
    """The one table of speeds that comes out: first cell -> the others."""
    figures = folder / "figures.json"
    figures.write_text(json.dumps({"machine": machine, "absent": {"someone": "no such file"}, "samples": samples}))
    command = [sys.executable, str(PEERS), "--repeats", "0", "--json", str(figures)]
    text = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert "- someone: left out, no such file" in text
    table = next(part for part in text.split("1.1B, ", 1)[1].split("\n\n") if part.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_medians_shares_and_ratios(tmp_path: Path) -> None:
    samples = [sample("fastllm q8", value) for value in (30, 10, 20)]
    samples += [sample("fastllm q8", 40, threads=2), sample("fastllm q4", 36, bits=4.5)]
    samples += [sample("peer Q8_0", 5), sample("peer Q8_0", 10, threads=2), sample("peer Q4_0", 12, bits=4.5)]
    found = cells(tmp_path, samples, {"read 1": [100, 50, 25], "read 2": [80]})
    assert found["fastllm q8"] == ["20.0", "10.0 to 30.0", "40%", "", "40.0", "40.0 to 40.0", "50%", ""]
    assert found["peer Q8_0"] == ["5.00", "5.00 to 5.00", "10%", "4.00 x", "10.0", "10.0 to 10.0", "12%", "4.00 x"]
    assert found["peer Q4_0"][3] == "3.00 x"  # beside q4, not q8


def test_less_time_is_faster(tmp_path: Path) -> None:
    samples = [sample("fastllm q8", 0.5, work="start"), sample("peer Q8_0", 2.0, work="start")]
    assert cells(tmp_path, samples, {})["peer Q8_0"] == ["2.00", "2.00 to 2.00", "4.00 x"]


@pytest.mark.parametrize("label", ["fastllm q8 (avx2)", "fastllm q8"])
def test_builds_for_an_instruction_set(tmp_path: Path, label: str) -> None:
    """Beside fastllm with the same one, where that was measured."""
    samples = [sample("fastllm q8", 50), sample(label, 20), sample("peer Q8_0 (avx2)", 10)]
    expected = "2.00 x" if label.endswith("(avx2)") else "3.50 x"
    assert cells(tmp_path, samples, {})["peer Q8_0 (avx2)"][3] == expected
