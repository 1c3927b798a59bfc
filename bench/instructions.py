"""How many instructions small fixed works take, held to committed ceilings: python bench/instructions.py

Times on shared machines swing by a third; counts do not. Each work of bench/instructions.c runs under valgrind's
callgrind on one thread, and only what one function of the core takes, with all that it calls, is counted. A count more
than 5 % above the one in bench/instructions.json fails; of one as far below it says that --update would lower it.

Counts are the compiler's work too: the committed ones are of GCC 12, as on Debian 12, with setup.py's flags; another
compiler wants its own (--update in a copy). valgrind knows no AVX-512 or AVX-VNNI: AVX2 and scalar stand for all, the
source of the kernels being one. Tokenizers are Python and other people's libraries, and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
COUNTS = HERE / "instructions.json"
SLACK = 0.05


class Work(NamedTuple):
    """A work of instructions.c, and the function that is counted."""

    name: str
    dtype: str
    isa: str
    function: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.isa}"


WORKS = [
    *(Work("decode", dtype, isa, "fl_forward") for dtype in ("f16", "q8", "q4") for isa in ("avx2", "scalar")),
    *(Work("prefill", dtype, "avx2", "fl_forward") for dtype in ("f16", "q8", "q4")),
    Work("attend", "f16", "scalar", "fl_forward"),
    *(Work(name, kv, "avx2", "fl_forward") for name in ("attend", "attend-prompt") for kv in ("f16", "q8", "q4")),
    Work("greedy", "f32", "avx2", "fl_sampler_draw"),
    Work("top-p", "f32", "avx2", "fl_sampler_draw"),
    Work("pack", "f16", "scalar", "fl_pack"),
    *(Work("pack", dtype, "avx2", "fl_pack") for dtype in ("q8", "q4")),
]


class CountError(Exception):
    """What keeps the works from being counted, in one sentence, and what a command said if one failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write {COUNTS.name} anew")
    parser.add_argument("--objects", metavar="DIR", help="setup.py's --build-temp, if the core is built already")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="fastllm-instructions-") as folder:
            objects = Path(args.objects) if args.objects else build(Path(folder, "objects"))
            program = link(objects, Path(folder, "instructions"))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                counts = dict(zip(map(str, WORKS), pool.map(lambda work: count(program, work), WORKS), strict=True))
    except CountError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    if args.update:
        COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
        return 0
    return compare(counts, json.loads(COUNTS.read_text()))


def compare(counts: dict[str, int], expected: dict[str, int]) -> int:
    """Prints all counts beside the committed ones. Returns 1 where one is too large, or has none to compare with."""
    failures = []
    for work, found in counts.items():
        if work not in expected:
            failures.append(f"{work} has no ceiling: run bench/instructions.py --update")
            continue
        ceiling = int(expected[work] * (1 + SLACK))
        print(f"{work:22} {found:>12,}  {found / expected[work] - 1:+.1%}")
        if found > ceiling:
            failures.append(f"{work} takes {found:,} instructions, more than its ceiling of {ceiling:,}")
        elif found < expected[work] * (1 - SLACK):
            print(f"  fewer than the {expected[work]:,} committed: lower the ceiling with --update")
    for failure in failures:
        print(f"instructions: {failure}", file=sys.stderr)
    return 1 if failures else 0


def build(temp: Path) -> Path:
    """The core's objects, as for the extension."""
    run([sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(temp), "--build-lib", str(temp / "lib")])
    return temp


def link(objects: Path, program: Path) -> Path:
    found = sorted(str(path) for path in objects.rglob("*.o") if "csrc" in path.parts)
    if not found:
        raise CountError(f"{objects} has no objects of csrc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-Icsrc", "-fopenmp"]
    run([os.environ.get("CC", "gcc"), *flags, str(HERE / "instructions.c"), *found, "-o", str(program), "-lm"])
    return program


def count(program: Path, work: Work) -> int:
    tool = ["valgrind", "--tool=callgrind", f"--toggle-collect={work.function}", "--callgrind-out-file=/dev/null"]
    said = run([*tool, str(program), work.name, work.dtype, work.isa])
    found = re.search(r"Collected : (\d+)", said)
    if not found or int(found[1]) == 0:
        raise CountError(f"{work} was not counted: callgrind saw no {work.function}\n{said}")
    return int(found[1])


def run(command: list[str]) -> str:
    """Runs a command in the repository and returns what it said on stderr. Raises CountError if it fails."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    except OSError as error:
        raise CountError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise CountError(f"{' '.join(command)} ended with code {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stderr


if __name__ == "__main__":
    sys.exit(main())
