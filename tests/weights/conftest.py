"""Fixtures of the tests of weights."""

import pytest


@pytest.fixture
def base(tmp_path):
    """Where a test writes a model."""
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    """Where a test writes a LoRA adapter of the model."""
    return tmp_path / "adapter"
