"""_core.pyi, by which mypy checks the callers of the C core, has the names and parameters of the module itself."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from fastllm import _core, config
from helpers.data import ROOT

STUB = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
CONSTANTS = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
METHODS = [
    (name, node)
    for name, kind in CLASSES.items()
    for node in kind.body
    if isinstance(node, ast.FunctionDef) and node.name != "__buffer__"  # an attribute only from Python 3.12 on
]
SOURCES = sorted((ROOT / "pyx").glob("*.pxi"))


def public(names):
    return {name for name in names if not name.startswith("_")}


def in_stub(node):
    """A function's parameters: (name, whether it is given by keyword only, whether it has a default)."""
    positional = [*node.args.posonlyargs, *node.args.args]
    required = len(positional) - len(node.args.defaults)
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [(arg.arg, False, i >= required) for i, arg in enumerate(positional)] + [
        (arg.arg, True, default is not None) for arg, default in keywords
    ]


def in_module(function):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind is p.KEYWORD_ONLY, p.default is not p.empty) for p in parameters]


def in_source(parameters):
    """The parameters that Cython's text declares. A constructor has no signature that Python could see."""
    found, keyword = [], False
    for parameter in re.sub(r"\[.*?\]", "", parameters).split(","):
        if parameter.strip() == "*":
            keyword = True
            continue
        name, default = re.fullmatch(r".*?(\w+)(?: not None)?(=.*)?", parameter.strip()).groups()
        found.append((name, keyword, default is not None))
    return found


def test_names():
    imported = {name for name, value in vars(_core).items() if getattr(config, name, None) is value}
    own = {name for name, value in vars(_core).items() if getattr(value, "__module__", None) == _core.__name__}
    constants = {name for name in vars(_core) if name.isupper()} - imported
    assert public(own) == FUNCTIONS.keys() | CLASSES.keys()
    assert constants == CONSTANTS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert in_stub(FUNCTIONS[name]) == in_module(getattr(_core, name))


@pytest.mark.parametrize("name", CLASSES)
def test_members(name):
    members = {method.name for kind, method in METHODS if kind == name}
    assert public(members) == public(vars(getattr(_core, name)))


@pytest.mark.parametrize(("kind", "method"), [pytest.param(k, m, id=f"{k}.{m.name}") for k, m in METHODS])
def test_methods(kind, method):
    member = getattr(getattr(_core, kind), method.name)
    if method.decorator_list:  # a property, or its setter
        assert inspect.isdatadescriptor(member)
    elif method.name == "__init__":
        text = "".join(path.read_text() for path in SOURCES)
        constructor = re.search(rf"cdef class {kind}:.*?def __cinit__\((.*?)\):\n", text, re.DOTALL)
        assert in_stub(method) == in_source(constructor[1])
    else:
        assert in_stub(method) == in_module(member)
