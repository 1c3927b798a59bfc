"""Fixtures of the tests of weights."""

import pytest

from helpers.pruned import TEXT


@pytest.fixture
def base(tmp_path):
    """Where a test writes a model."""
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    """Where a test writes a LoRA adapter of the model."""
    return tmp_path / "adapter"


@pytest.fixture
def text(tmp_path):
    """A text to prune by."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    """Where a test writes a converted file."""
    return tmp_path / "out.safetensors"
