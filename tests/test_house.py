"""The structure of the sources: no circular imports, folders whose __init__ only exports, no file of over 400 lines.

Which part of python/fastllm may import which is in pyproject.toml, as contracts of import-linter.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON, CSRC = ROOT / "python", ROOT / "csrc"
_MOST_LINES = 400
# Longer files, and why each is not two: no sentence could name the halves.
_LONGER: dict[str, str] = {
    "bench/storyteller/grammar.py": "a table of words and plots",
    "csrc/fastllm.h": "the whole public interface, half of it text",
    "pyx/libfastllm.pxd": "the same interface",
}

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the repository")


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """The nodes of one circle of a graph in order, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(edges):
        if found := walk(node, []):
            return found
    return []


def test_circle() -> None:
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    assert sorted(circle({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]})) == ["b", "c", "d"]


# ---- Python ----------------------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """The path of every module of the package by its dotted name; an __init__ has its folder's name."""
    found = {}
    for path in (PYTHON / "fastllm").rglob("*.py"):
        parts = path.relative_to(PYTHON).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of the package that a file imports anywhere: in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else str(node.module) for name in names}
    return found & known.keys()


def test_python_has_no_circles() -> None:
    """Modules that a table names and import_module loads when they are needed (families, formats, kinds of tokenizers,
    commands) are not edges: a table stands below what it lists."""
    known = modules()
    edges = {name: imported(path, known) - {"fastllm"} for name, path in known.items()}
    del edges["fastllm"]  # it imports LLM and load when they are first used; every module may import it
    assert not circle(edges)


def test_what_lies_in_a_folder_does_not_import_the_folder() -> None:
    """That would be a circle, because the folder's __init__ imports its modules."""
    known = modules()
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        above = {".".join(package.split(".")[:i]) for i in range(2, package.count(".") + 2)} - {name}
        assert not imported(path, known) & above, f"{path} imports from its own folder's __init__"


def test_a_folder_says_what_it_is_and_exports() -> None:
    for name, path in modules().items():
        if path.name != "__init__.py" or name == "fastllm":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        sentence = (ast.get_docstring(tree) or "").split("\n\n")[0]
        assert sentence.endswith("."), f"{path} begins with a sentence that says what the folder is"
        assert not re.search(r"\. [A-Z]", sentence), f"{path} begins with one sentence, not with several"
        for node in tree.body[1:]:
            exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert exports or isinstance(node, (ast.Import, ast.ImportFrom)), f"{path}:{node.lineno} is more"


# ---- C ---------------------------------------------------------------------------------------------------------------

_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
# A function or a table that other files can name.
_DEFINED = re.compile(
    r"^(?!static|extern|typedef)\w[\w *]*?\b(fl_\w+)(?:\([^;{]*\)\s*\{|(?:\[\w*\])? = )", re.MULTILINE
)


def test_c_has_no_circles() -> None:
    """A file's .h and .c count as one. It depends on what it includes, and on the files that define what it calls.

    fastllm.h is left out: it declares what many files define.
    """
    texts: dict[str, str] = defaultdict(str)
    for path in sorted(CSRC.rglob("*.[ch]")):
        texts[str(path.relative_to(CSRC).with_suffix(""))] += re.sub("//.*", "", path.read_text("utf-8"))
    del texts["fastllm"]
    homes = {symbol: name for name, text in texts.items() for symbol in _DEFINED.findall(text)}
    assert homes["fl_forward"] == "model"
    edges: dict[str, set[str]] = {}
    for name, text in texts.items():
        # A path is relative to the file's own folder or to csrc/.
        places = [place for found in _INCLUDE.findall(text) for place in (Path(name).parent / found, Path(found))]
        edges[name] = {str(place.with_suffix("")) for place in places} & texts.keys()
        edges[name] |= {homes[word] for word in re.findall(r"\bfl_\w+", text) if word in homes}
        edges[name].discard(name)
    assert "threads" in edges["model"]
    assert not circle(edges)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_lines_have_120_columns() -> None:
    """Of C and Cython; ruff holds Python to it."""
    for folder, kinds in (("csrc", "*.[ch]"), ("tests/c", "*.[ch]"), ("pyx", "*.p*")):
        for path in (ROOT / folder).rglob(kinds):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                assert len(line) <= 120, f"{path}:{number} has {len(line)} columns"


def test_files_can_be_read_at_a_sitting() -> None:
    kinds = ("*.py", "*.c", "*.h", "*.pyx", "*.pxi", "*.pxd")
    folders = ("python", "csrc", "pyx", "tests", "bench")
    files = {path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)}
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := path.read_text("utf-8").count("\n")) > _MOST_LINES
    }
    assert long.keys() == _LONGER.keys(), {name: lines for name, lines in long.items() if name not in _LONGER}
