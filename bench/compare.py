"""Two commits side by side on this machine: python bench/compare.py BASE [HEAD]

Each is built in a folder of its own. HEAD's benchmarks run on both builds in turns, and differences are printed.
Without HEAD it is the working tree as it is, with uncommitted and new files. Nothing is written to the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parent.parent
NOTABLE = 0.10  # smaller differences occur on a shared machine between runs of the same code


class CompareError(Exception):
    """Why two commits cannot be compared, in one sentence, with the output of a command that failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument("head", metavar="HEAD", nargs="?", help="a commit; without one, the working tree")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each (default %(default)s)")
    parser.add_argument("-k", metavar="EXPRESSION", help="only the benchmarks that pytest's -k selects")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder is removed
    try:
        with tempfile.TemporaryDirectory(prefix="fastllm-compare-") as folder:
            compare(Path(folder), args.base, args.head, args.rounds, args.k)
    except CompareError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def compare(folder: Path, base: str, head: str | None, rounds: int, select: str | None) -> None:
    builds = {"base": folder / "base", "head": folder / "head"}
    names = {"base": check_out(builds["base"], base)}
    names["head"] = check_out(builds["head"], head) if head is not None else copy_working_tree(builds["head"])
    if not (builds["head"] / "bench").is_dir():
        raise CompareError(f"{names['head']} has no bench/ to run")
    for side, path in builds.items():
        say(f"building {side}: {names[side]}")
        run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], path)
    found: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in builds}
    for i in range(rounds):
        # The order alternates, so that neither side gains when the machine becomes slower or faster.
        for side in list(builds)[:: -1 if i % 2 else 1]:
            say(f"round {i + 1} of {rounds}: {side}")
            for name, seconds in measure(builds[side], builds["head"], select).items():
                found[side][name].append(seconds)
    report(*({name: median(times) for name, times in found[side].items()} for side in builds))


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def run(command: Sequence[str], cwd: Path, *, env: Mapping[str, str] | None = None, fine: Sequence[int] = (0,)) -> str:
    """Runs a command and returns its output. Raises CompareError with the output's end unless its code is in `fine`."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    except OSError as error:
        raise CompareError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode not in fine:
        said = (done.stdout + done.stderr).strip().splitlines()[-30:]
        raise CompareError("\n".join([f"{' '.join(command[:3])} ... failed in {cwd}:", *said]))
    return done.stdout


def check_out(folder: Path, revision: str) -> str:
    """Writes the files of a commit into `folder` and returns its short hash."""
    try:
        commit = run(["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], REPOSITORY).strip()
    except CompareError:
        raise CompareError(f"{revision!r} names no commit of this repository") from None
    run(["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(folder)], REPOSITORY)
    run(["git", "checkout", "--quiet", "--detach", commit], folder)
    return run(["git", "log", "-1", "--format=%h %s"], folder).strip()


def copy_working_tree(folder: Path) -> str:
    """Copies the files that git tracks or does not ignore, as they are now."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], REPOSITORY)
    for name in filter(None, listed.split("\0")):
        source, target = REPOSITORY / name, folder / name
        if source.is_file():  # else it was deleted, which is not committed yet
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return "the working tree"


def measure(build: Path, source: Path, select: str | None) -> dict[str, float]:
    """Runs the benchmarks of `source` on a build: name -> median seconds."""
    results = build / "results.json"
    command = [sys.executable, "-m", "pytest", "bench", f"--benchmark-json={results}", "-p", "no:cacheprovider"]
    # A pythonpath in the settings of `source` would put its package before the build's.
    command += ["--continue-on-collection-errors", "-o", "pythonpath="]
    command += ["-W", "default"]  # a benchmark that fails before its timing gives a warning, which must not be an error
    if select:
        command += ["-k", select]
    results.unlink(missing_ok=True)
    # pytest ends with 1 if a benchmark failed. The table says which this side cannot run.
    env = os.environ | {"PYTHONPATH": str(build / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    output = run(command, source, env=env, fine=(0, 1))
    try:
        benchmarks = json.loads(results.read_text())["benchmarks"]
    except (OSError, ValueError):
        raise CompareError(f"no benchmark ran:\n{output[-2000:]}") from None
    return {b["fullname"].partition("::test_")[2]: b["stats"]["median"] for b in benchmarks}


def report(base: Mapping[str, float], head: Mapping[str, float]) -> None:
    names = list(base | head)
    width = max(map(len, names), default=0)
    print(f"{'median, ms':{width}}  {'base':>10}  {'head':>10}  {'head / base':>11}")
    notable = []
    for name in names:
        times = [f"{side[name] * 1e3:.4f}" if name in side else "none" for side in (base, head)]
        ratio = head[name] / base[name] if name in base and name in head else None
        print(f"{name:{width}}  {times[0]:>10}  {times[1]:>10}  {f'{ratio:.2f}' if ratio else '':>11}")
        # Symmetric: a ratio of 1 / 1.1 is as notable as one of 1.1.
        if ratio and not 1 / (1 + NOTABLE) <= ratio <= 1 + NOTABLE:
            notable.append(
                f"  {name}: {f'{ratio:.2f} times as slow' if ratio > 1 else f'{1 / ratio:.2f} times as fast'}"
            )
    print(f"\nDiffer by more than {NOTABLE:.0%}:" if notable else f"\nNone differs by more than {NOTABLE:.0%}.")
    print("\n".join(notable))


if __name__ == "__main__":
    sys.exit(main())
