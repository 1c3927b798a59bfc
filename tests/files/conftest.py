"""Fixtures of the tests of files."""

import shutil

import pytest

from helpers.data import BUILT_IN


@pytest.fixture
def stored(tmp_path):
    """The path of a converted model: its weights are mapped, and read from the file while it runs."""
    return shutil.copy(BUILT_IN, tmp_path / "model.safetensors")
