"""bench/peers.py: its tables, made from given figures, and what it would measure."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# pytest-benchmark warns of tests that time nothing.
pytestmark = pytest.mark.filterwarnings("ignore::pytest_benchmark.logger.PytestBenchmarkWarning")

PEERS = Path(__file__).with_name("peers.py")


def sample(label: str, value: float, *, work: str = "decode", threads: int = 1, bits: float = 8.5) -> dict[str, Any]:
    about = {"label": label, "shape": "1.1B", "work": work, "threads": threads, "settings": {}, "bits": bits}
    return about | {"token_bytes": 1e9, "value": value, "rss_mb": 100.0, "others": 0.0}


def cells(folder: Path, *runs: tuple[list[dict[str, Any]], dict[str, list[float]]]) -> dict[str, list[str]]:
    """Runs bench/peers.py on (samples, machine's limits) of runs; returns its one table: first cell -> the others."""
    files = [folder / f"run{i}.json" for i in range(len(runs))]
    for file, (samples, machine) in zip(files, runs, strict=True):
        absent = {f"someone of {file.stem}": "no such file"}
        file.write_text(json.dumps({"machine": machine, "absent": absent, "samples": samples}))
    command = [sys.executable, str(PEERS), "--repeats", "0", "--json", *map(str, files[:1])]
    command += ["--also", *map(str, files[1:])] if files[1:] else []
    text = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert all(f"- someone of {file.stem}: left out, no such file" in text for file in files)
    table = next(part for part in text.split("1.1B, ", 1)[1].split("\n\n") if part.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_medians_shares_and_ratios(tmp_path: Path) -> None:
    samples = [sample("fastllm q8", value) for value in (30, 10, 20)]
    samples += [sample("fastllm q8", 40, threads=2), sample("fastllm q4", 36, bits=4.5)]
    samples += [sample("peer Q8_0", 5), sample("peer Q8_0", 10, threads=2), sample("peer Q4_0", 12, bits=4.5)]
    found = cells(tmp_path, (samples, {"read 1": [100, 50, 25], "read 2": [80]}))
    assert found["fastllm q8"] == ["20.0", "10.0 to 30.0", "40%", "", "40.0", "40.0 to 40.0", "50%", ""]
    assert found["peer Q8_0"] == ["5.00", "5.00 to 5.00", "10%", "4.00 x", "10.0", "10.0 to 10.0", "12%", "4.00 x"]
    assert found["peer Q4_0"][3] == "3.00 x"  # compared with q4, not with q8


def test_less_time_is_faster(tmp_path: Path) -> None:
    samples = [sample("fastllm q8", 0.5, work="start"), sample("peer Q8_0", 2.0, work="start")]
    assert cells(tmp_path, (samples, {}))["peer Q8_0"] == ["2.00", "2.00 to 2.00", "4.00 x"]


def test_runs_are_shown_together(tmp_path: Path) -> None:
    first = [sample("fastllm q8", 10), sample("peer Q8_0", 5)], {"read 1": [100]}
    second = [sample("fastllm q8", value) for value in (20, 30)], {"read 1": [50, 25], "read 2": [80]}
    found = cells(tmp_path, first, second)
    assert found["fastllm q8"] == ["20.0", "10.0 to 30.0", "53%", ""]  # 10 of 100, 20 and 30 of 37.5
    assert found["peer Q8_0"][3] == "4.00 x"


@pytest.mark.parametrize("label", ["fastllm q8 (avx2)", "fastllm q8"])
def test_builds_for_an_instruction_set(tmp_path: Path, label: str) -> None:
    """A build for an instruction set is compared with fastllm on the same one, if that was measured."""
    samples = [sample("fastllm q8", 50), sample(label, 20), sample("peer Q8_0 (avx2)", 10)]
    expected = "2.00 x" if label.endswith("(avx2)") else "3.50 x"
    assert cells(tmp_path, (samples, {}))["peer Q8_0 (avx2)"][3] == expected


def test_an_instruction_set_has_a_peak_of_its_own(tmp_path: Path) -> None:
    weights = 22 * (2048 * (2 * 2048 + 2 * 256) + 3 * 2048 * 5632)  # of the layers of 1.1B
    samples = [sample(label, 100, work="prefill") for label in ("peer Q8_0", "peer Q8_0 (avx2)", "peer Q8_0 (sse)")]
    found = cells(tmp_path, (samples, {"int8 1": [weights / 1e6], "int8 1 avx2": [weights / 4e6]}))
    assert [row[2] for row in found.values()] == ["10%", "40%", ""]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS.parent))
    return importlib.import_module("peers")


def test_builds_stand_beside_fastllm_with_their_instruction_set(peers: ModuleType) -> None:
    named = peers.default_peers(["llama.cpp@avx2", "ort", "ik_llama.cpp@avx2", "llama.cpp@avxvnni"])
    extra = ["fastllm@avx2", "llama.cpp@avx2", "ik_llama.cpp@avx2", "fastllm@avxvnni", "llama.cpp@avxvnni"]
    assert named == [*peers.KINDS, *extra]
    eight = peers.KINDS["fastllm"].variants[0]
    assert peers.Peer("fastllm@avx2", eight, "1.1B", "python").environment()["FASTLLM_ISA"] == "avx2"
    limited = peers.Peer("openvino@avx512", eight, "1.1B", "python").environment()
    assert limited["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_VNNI"
    assert "FASTLLM_ISA" not in peers.Peer("openvino", eight, "1.1B", "python").environment()


def test_settings_that_crash_are_not_taken(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that crashes is not taken, and the fastest of the others is used from then on."""
    ran = []

    def run(peer: Any, work: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
        ran.append(settings)
        if settings["repack"] and work == "prefill":
            raise RuntimeError("ended by signal 11")
        return {"values": [10.0 + settings["repack"]], "rss_mb": 1.0, "others": 0.0}

    monkeypatch.setattr(peers, "run", run)
    monkeypatch.setattr(peers, "run_machine", lambda work, threads, isa: 1.0)
    bench = peers.Bench(peers.Result(), None)
    everyone = [peers.Peer("llama.cpp@avx2", peers.GGUF[0], "1.1B", "python")]
    for _ in range(2):
        peers.measure(bench, everyone, ["decode", "prefill"], [1])
    found = [(sample.work, sample.value, sample.settings) for sample in bench.result.samples]
    decode, prefill = {"repack": True}, {"repack": False}
    assert found == 2 * [("decode", 11.0, decode), ("prefill", 10.0, prefill)]
    assert ran == [
        decode,
        prefill,
        decode,
        prefill,
        decode,
        prefill,
    ]  # both settings of each work, then the better
    assert bench.result.machine == {"read 1": 4 * [1.0], "int8 1": 4 * [1.0], "int8 1 avx2": 4 * [1.0]}
    assert not bench.result.absent


def test_what_always_crashes_is_left_out(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -11, "", ""))
    bench = peers.Bench(peers.Result(), None)
    bench.take(peers.Peer("llama.cpp", peers.GGUF[0], "1.1B", "python"), "batch", 2)
    assert bench.result.absent == {"llama.cpp Q8_0, 1.1B, batch": "ended by signal 11"}
    assert not bench.result.samples


def test_several_texts_of_a_process(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text of a process is a sample, and the settings with the better median win."""
    values = {1: [1.0, 9.0, 2.0], 0: [3.0, 4.0, 5.0]}
    ran = []

    def run(peer: Any, work: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
        ran.append((settings["repack"], settings["flash"]))
        return {"values": values[settings["flash"]], "rss_mb": 1.0, "others": 0.0}

    monkeypatch.setattr(peers, "run", run)
    bench = peers.Bench(peers.Result(), None)
    bench.take(peers.Peer("llama.cpp", peers.GGUF[0], "SmolLM2-135M", "python"), "long", 2)
    assert [sample.value for sample in bench.result.samples] == values[0]
    assert sorted(ran) == [(False, 0), (False, 1), (True, 0), (True, 1)]


def test_long_contexts_are_kept_in_16_or_8_bits(peers: ModuleType) -> None:
    peer = peers.Peer("llama.cpp", peers.GGUF[0], "SmolLM2-135M", "python")
    for work, kv in (("long", "f16"), ("long-q8", "q8")):
        spec = peer.spec(work, 1, {})
        assert (spec["kv"], spec["before"]) == (kv, importlib.import_module("peers_kinds").FAR)
        assert spec["before"] + spec["count"] < spec["room"] <= peers.SHAPES["SmolLM2-135M"].context


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_the_table_of_ik_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of new tokens is read from llama-batched-bench's table, on stdout or stderr."""
    lines = ["main: n_threads = 2", "|    PP |  TG |   B |  N_KV |  T_PP s | S_PP t/s |  T_TG s | S_TG t/s |"]
    lines += ["|-------|-----|-----|-------|---------|----------|---------|----------|"]
    lines += ["|     8 |  16 |  16 |   384 |   0.500 |   256.00 |   2.000 |   128.00 |"]
    program = tmp_path / "llama-batched-bench"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write({chr(10).join(lines)!r})\n")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(str(PEERS.parent))
    children, modules = importlib.import_module("peers_children"), importlib.import_module("peers")
    peer = modules.Peer("ik_llama.cpp", modules.GGUF[0], "1.1B", str(tmp_path))
    assert children.measure(peer.spec("batch", 2, {"rtr": 1}))["values"] == [128]
