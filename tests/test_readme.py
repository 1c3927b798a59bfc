"""The examples of the documentation that run on the built-in model."""

import re
import shlex

import pytest

import fastllm
from fastllm import cli
from helpers.data import ROOT

TEXT = (ROOT / "python" / "fastllm" / "decoding" / "README.md").read_text("utf-8")
NEEDS = ("llguidance", "jinja2", "regex")


def test_python_of_the_page_on_steering(capsys):
    for library in NEEDS:
        pytest.importorskip(library)
    blocks = [code for code in re.findall("```python\n(.*?)```", TEXT, re.DOTALL) if "Qwen" not in code]
    found = {"fastllm": fastllm}
    for block in blocks:
        exec(block, found)
    assert len(blocks) > 5
    assert {"llm", "mark", "parser"} <= found.keys()
    assert capsys.readouterr().out


LINES = re.findall(r"^    (fastllm run .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in LINES if " MODEL " not in line])
def test_commands_of_the_page_on_steering(line, capsys):
    for library in NEEDS:
        pytest.importorskip(library)
    assert cli.main([*shlex.split(line)[1:], "-n", "30"]) == 0
    assert capsys.readouterr().out
