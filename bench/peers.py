"""fastllm beside its peers: python bench/peers.py --with llama.cpp=PYTHON --with ctranslate2=PYTHON ...

Every peer gets the same random weights of real shapes, converted to its formats by its own converter, the same prompts
and the same number of threads. Each measurement is a process of its own. Peers, thread counts and the machine's limits
(reading memory, int8 multiply-adds) take turns, and a measurement that other processes disturbed is repeated. The first
round tries all settings of a peer; the fastest are used from then on. Prints Markdown tables. A peer that is missing or
fails is left out, and a line says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import peers_report
from fastllm.weights.store import DTYPES
from peers_files import Files, output
from peers_kinds import GGUF, KINDS, Peer, Variant
from peers_models import SHAPES
from peers_report import Result, Sample

HERE = Path(__file__).resolve().parent
DISTURBED = 0.1  # cores that other processes may take; with more, a figure is measured again
TRIES = 4

# Work -> the shapes on which it is measured.
WORKS = {
    "decode": tuple(SHAPES),
    "prefill": tuple(SHAPES),
    "batch": ("1.1B",),
    "long": ("SmolLM2-135M",),
    "long-q8": ("SmolLM2-135M",),
    "start": ("1.1B", "stories15M"),
    "busy": ("1.1B", "stories15M"),
}


# ---- measuring -----------------------------------------------------------------------------------------------------


def machine_seconds() -> tuple[float, float]:
    """CPU seconds of all processes, and of this one with those it waited for; zeros without /proc/stat."""
    try:
        fields = list(map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]))
    except (OSError, ValueError):
        return 0.0, 0.0
    own = os.times()
    busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    return busy, own.user + own.system + own.children_user + own.children_system


def run(peer: Peer, work: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs one measurement in a process of its own, up to TRIES times while others disturb it.

    Returns "values" (tokens/s; of "start" seconds), "rss_mb", and "others": the cores that other processes took.
    """
    spec = json.dumps(peer.spec(work, threads, settings))
    command = [peer.python(), str(HERE / "peers_children.py"), "measure", spec]
    best: dict[str, Any] = {}
    for _ in range(TRIES):
        before, start = machine_seconds(), time.perf_counter()
        with neighbour() if work == "busy" else contextlib.nullcontext():
            done = subprocess.run(command, text=True, capture_output=True, check=False, env=peer.environment())
            seconds = time.perf_counter() - start
        after = machine_seconds()
        result: dict[str, Any] = json.loads(output(done))
        result["others"] = max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds
        if work == "start":
            result["values"] = [seconds]
        if not best or result["others"] < best["others"]:
            best = result
        if best["others"] < DISTURBED:
            break
    return best


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def run_machine(work: str, threads: int, isa: str | None) -> float:
    command = [sys.executable, str(HERE / "peers_children.py"), "machine", json.dumps([work, threads, isa])]
    return float(json.loads(output(subprocess.run(command, text=True, capture_output=True, check=False))))


class Bench:
    """What was measured so far, the best settings, and what is left out."""

    def __init__(self, result: Result, path: Path | None) -> None:
        self.result, self.path = result, path
        self.best: dict[tuple[str, str, str], dict[str, Any]] = {}
        for sample in result.samples:  # those of an earlier run keep their settings
            self.best[sample.label, sample.shape, sample.work] = sample.settings

    def take(self, peer: Peer, work: str, threads: int) -> None:
        """Measures a peer once with its best settings. The first time all are tried, and the best figure counts."""
        key = (peer.label, peer.shape, work)
        why = f"{peer.label}, {peer.shape}, {work}"
        if why in self.result.absent:
            return
        known = [self.best[key]] if key in self.best else peer.settings(work)
        tried: list[list[Sample]] = []
        for settings in known:
            try:
                got = run(peer, work, threads, settings)
            except RuntimeError as error:
                reason = str(error)
                continue
            about = {"settings": settings, "token_bytes": peer.token_bytes, "bits": peer.variant.bits}
            rest = {name: got[name] for name in ("rss_mb", "others")}
            tried.append([Sample(*key, threads, value=value, **about, **rest) for value in got["values"]])
        if not tried:
            self.leave_out(why, reason)
            return
        chosen = (min if work == "start" else max)(tried, key=lambda samples: median(each.value for each in samples))
        self.best[key] = chosen[0].settings
        self.result.samples += chosen
        if self.path:
            self.result.write(self.path)  # so that an interrupted run can go on

    def take_machine(self, threads: int, tags: Sequence[str]) -> None:
        for work, tag in [("read", ""), *(("int8", tag) for tag in tags)]:
            with contextlib.suppress(RuntimeError):
                value = run_machine(work, threads, tag or None)
                self.result.machine.setdefault(peers_report.limit_key(work, threads, tag), []).append(value)

    def leave_out(self, what: str, why: str) -> None:
        self.result.absent[what] = why
        print(f"{what}: left out, {why}", flush=True)


def measure(bench: Bench, peers: Sequence[Peer], works: Sequence[str], threads: Sequence[int]) -> None:
    """A round: every work of every peer once."""
    tags = list(dict.fromkeys(["", *(peer.tag for peer in peers)]))
    for work in works:
        # Other works are measured with the most threads only: with one, a busy process would have the other core.
        counts = threads if work in ("decode", "prefill") else [max(threads)]
        for count in counts:
            bench.take_machine(count, tags)
            for peer in peers:
                if peer.shape in WORKS[work] and work not in KINDS[peer.kind].without:
                    bench.take(peer, work, count)


def find_peers(
    names: Sequence[str], shapes: Sequence[str], where: dict[str, str], files: Files, bench: Bench
) -> list[Peer]:
    """The peers that are installed, with their files made. All others are left out with the reason."""
    found = []
    for name in names:
        kind = KINDS[name.partition("@")[0]]
        for variant in kind.variants:
            if name.startswith("fastllm") and variant.name not in DTYPES:
                bench.leave_out(f"{kind.title} {variant.name}", "this build does not have it")
                continue
            for shape in shapes:
                made = variant
                if shape == "SmolLM2-135M" and not name.startswith("fastllm"):
                    if variant not in GGUF[:1]:
                        continue  # the GGUF file is measured once, as it is
                    made = Variant("Q4_1", 5)
                peer = Peer(name, made, shape, where.get(name, where.get(name.partition("@")[0], "")))
                try:
                    if not peer.where:
                        raise RuntimeError(f"--with {name}=PATH is not given")
                    files.prepare(peer)
                except (RuntimeError, OSError) as error:
                    bench.leave_out(f"{peer.label}, {shape}", str(error))
                else:
                    found.append(peer)
    return found


# ---- the command ---------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option(
        "--with",
        dest="where",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="where a peer is: an interpreter that has its package, or of llama2.c the folder with runq and of "
        "ik_llama.cpp the one with llama-bench; others are looked for in this interpreter. PEER@ISA is a build "
        "for an instruction set, as llama.cpp@avx2, or a library that can be told to use no more (ctranslate2, "
        "openvino); beside it stands fastllm with no more than that (fastllm@avx2)",
    )
    option("--peers", type=names, help=f"of these: {', '.join(KINDS)}; PEER@ISA too (default: all that --with names)")
    option("--shapes", type=names, default=list(SHAPES), help="of these: %(default)s")
    option("--works", type=names, default=list(WORKS), help="of these: %(default)s")
    option("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], help="(default 1,2)")
    option("--repeats", type=int, default=5, help="rounds (default %(default)s); 0 only shows what files have")
    option("--smollm2", type=Path, metavar="FILE", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    option("--folder", type=Path, help="keeps the peers' files for the next time (default: a temporary one)")
    option("--json", type=Path, metavar="FILE", help="raw figures are written here, after those that it has")
    option("--also", type=Path, nargs="+", default=[], metavar="FILE", help="shows these runs' figures beside them")
    option("--plot", type=Path, metavar="FILE", help="draws them")
    args = parser.parse_args()
    for given, known in ((args.shapes, SHAPES), (args.works, WORKS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    if wrong := [pair for pair in args.where if "=" not in pair]:
        parser.error(f"{wrong[0]}: not PEER=PATH")
    args.where = dict(pair.split("=", 1) for pair in args.where)
    args.peers = args.peers or default_peers(args.where)
    if unknown := {name for name in (*args.peers, *args.where) if name.partition("@")[0] not in KINDS}:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(KINDS)}")
    return args


def default_peers(where: Iterable[str]) -> list[str]:
    """Every kind of peer, then fastllm and the builds for each instruction set that `where` names."""
    builds: dict[str, list[str]] = {}
    for name in where:
        _, _, tag = name.partition("@")
        if tag:
            builds.setdefault(tag, [f"fastllm@{tag}"]).append(name)
    return list(KINDS) + [name for names in builds.values() for name in names]


def main() -> None:
    args = parse()
    here = {name: sys.executable for name in KINDS if name not in ("llama2.c", "ik_llama.cpp")}
    where = here | args.where
    result = Result.read(args.json) if args.json and args.json.exists() else Result()
    bench = Bench(result, args.json)
    with contextlib.ExitStack() as stack:
        if args.repeats > 0:
            result.absent.clear()
            folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastllm-peers-")))
            peers = find_peers(args.peers, args.shapes, where, Files(folder, args.smollm2, where), bench)
            for _ in range(args.repeats):
                measure(bench, peers, args.works, args.threads)
    shown = Result()
    for each in (result, *map(Result.read, args.also)):
        shown.add(each)
    print(peers_report.tables(shown))
    if args.plot:
        peers_report.plot(shown, args.plot)


if __name__ == "__main__":
    main()
