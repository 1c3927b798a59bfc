"""Finds circles between the files of csrc/: python tests/c/circles.py

A file's .h and .c count as one. A file depends on what it includes, and on the files that define the fl_ functions and
tables it names. fastllm.h, which declares what many files define, depends on nothing.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
DEFINITION = re.compile(
    r"^(?!static|extern|typedef)\w[\w *]*?\b(fl_\w+)(?:\([^;{]*\)\s*\{|(?:\[\w*\])? = )", re.MULTILINE
)


def main() -> int:
    texts: dict[str, str] = defaultdict(str)
    for path in sorted(CSRC.rglob("*.[ch]")):
        name = str(path.relative_to(CSRC).with_suffix(""))
        texts[name] += re.sub(r"//.*", "", path.read_text())
    definers = {symbol: name for name, text in texts.items() for symbol in DEFINITION.findall(text)}
    needs = {name: included(name, text, texts) | used(text, definers) - {name} for name, text in texts.items()}
    needs["fastllm"] = set()
    circles = {frozenset(circle) for name in texts if len(circle := circle_of(name, needs)) > 1}
    for circle in circles:
        print("circle:", *sorted(circle))
    return 1 if circles else 0


def included(name: str, text: str, texts: dict[str, str]) -> set[str]:
    """A path is relative to the file's own folder or to csrc/."""
    folder = Path(name).parent
    found = (str(path) for include in INCLUDE.findall(text) for path in (folder / include, Path(include)))
    return {path.removesuffix(".h") for path in found if path.removesuffix(".h") in texts} - {name}


def used(text: str, definers: dict[str, str]) -> set[str]:
    return {definers[symbol] for symbol in re.findall(r"\bfl_\w+", text) if symbol in definers}


def reached(name: str, needs: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(needs[name])
    while todo:
        if (next_one := todo.pop()) not in seen:
            seen.add(next_one)
            todo += needs[next_one]
    return seen


def circle_of(name: str, needs: dict[str, set[str]]) -> set[str]:
    """The files that a file depends on and that depend on it, itself included."""
    return {name} | {other for other in reached(name, needs) if name in reached(other, needs)}


if __name__ == "__main__":
    sys.exit(main())
