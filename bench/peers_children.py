"""One measurement, in a process of its own with the peer's interpreter: python peers_children.py FUNCTION JSON -> JSON.

Only the standard library is imported before the peer's own package, because the time of the whole process counts too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers_runners import BEFORE, RUNNERS, Runner

WARM = 32  # tokens of a first prompt, which is not timed


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one work. Returns "values" in tokens/s and the peak memory "rss_mb".

    There is one value, except for "start", whose process is timed from outside, and for "long", whose prompt takes so
    long that several texts are measured after it.
    """
    if spec["peer"] in PROGRAMS:
        return PROGRAMS[spec["peer"]](spec)
    runner: Runner = RUNNERS[spec["peer"]](spec)
    work, count = spec["work"], spec["count"]
    values: list[float] = []
    if work == "start":
        runner.prompt([1])
    elif work == "prefill":
        values = [count / _prompt_seconds(runner, count)]
    elif work == "batch":
        values = [spec["batch"] * count / runner.decode_batch(spec["batch"], count)]
    else:
        values = [count / runner.decode(spec["before"], count) for _ in range(spec["texts"])]
    return {"values": values, "rss_mb": peak_rss_mb()}


def _prompt_seconds(runner: Runner, count: int) -> float:
    """Seconds for a prompt: the median of up to three after one to warm up, as many as fit into two seconds."""
    runner.prompt(runner.tokens(WARM))
    times: list[float] = []
    while len(times) < 4 and sum(times) < 2:
        tokens = runner.tokens(count, len(times) + 1)
        start = time.perf_counter()
        runner.prompt(tokens)
        times.append(time.perf_counter() - start)
    counted = sorted(times[1:] or times)
    return counted[len(counted) // 2]


def peak_rss_mb() -> float:
    try:  # getrusage would also count the process that started this one, before exec
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1e3
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# ---- programs ------------------------------------------------------------------------------------------------------


def llama2c(spec: dict[str, Any]) -> dict[str, Any]:
    model, count = Path(spec["model"]), 1 if spec["work"] == "start" else BEFORE + spec["count"]
    command = [str(Path(spec["where"]) / "runq"), str(model), "-z", str(model.with_name("tokenizer.bin"))]
    done = _run([*command, "-t", "0", "-n", str(count + 1)], OMP_NUM_THREADS=str(spec["threads"]))
    if len(done.stdout.split()) != count + 1:
        raise RuntimeError("runq did not write the whole text")
    speed = re.search(r"achieved tok/s: ([\d.]+)", done.stderr)
    return {"values": [float(speed[1]) if speed else 0.0], "rss_mb": _children_rss_mb()}


def ik_llama_cpp(spec: dict[str, Any]) -> dict[str, Any]:
    work, count, threads = spec["work"], spec["count"], spec["threads"]
    common = ["-m", spec["model"], "-t", str(threads)]
    if spec["kv"] == "q8":
        common += ["-ctk", "q8_0", "-ctv", "q8_0", "-fa", "1"]
    repack = bool(spec["settings"]["rtr"])
    if work == "batch":
        command = ["llama-batched-bench", *common, "-c", str(spec["batch"] * spec["room"]), "-npp", str(BEFORE)]
        command += ["-ntg", str(count), "-npl", str(spec["batch"]), *(["-rtr"] if repack else [])]
        command += [
            "--log-file",
            str(Path(spec["scratch"]) / "ik_llama.cpp"),
        ]  # else in the current folder
    else:
        after = f"{spec['before']},{count}"
        lengths = ["-p", str(count if work == "prefill" else 0), "-n", str(count if work in ("decode", "busy") else 0)]
        command = ["llama-bench", *common, *lengths, *(["-gp", after] if work.startswith("long") else [])]
        command += ["-r", "1", "-o", "json", "-rtr", str(int(repack))]
    done = _run([str(Path(spec["where"]) / command[0]), *command[1:]])
    if work == "batch":
        rows = [line.split("|") for line in (done.stdout + done.stderr).splitlines() if re.match(r"\|\s+\d", line)]
        value = float(rows[-1][8])  # S_TG t/s, of the generation
    else:
        value = float(json.loads(done.stdout[done.stdout.index("[") :])[-1]["avg_ts"])
    return {"values": [value], "rss_mb": _children_rss_mb()}


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, text=True, capture_output=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done


def _children_rss_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


PROGRAMS = {"llama2.c": llama2c, "ik_llama.cpp": ik_llama_cpp}


def machine(work: str, threads: int, isa: str | None) -> float:
    """GB/s of reading memory ("read"), or 1e9 int8 multiply-adds/s ("int8") of an instruction set or the best one."""
    from fastllm import machine

    if work == "read":
        return machine.read_bandwidth(threads, repeats=10)
    return machine.int8_peak(threads, isa=isa)


def main() -> None:
    args = json.loads(sys.argv[2])
    print(json.dumps(machine(*args) if sys.argv[1] == "machine" else measure(args)))


if __name__ == "__main__":
    main()
