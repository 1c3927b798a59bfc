"""Fixtures of the tests of files."""

import shutil

import pytest

from helpers.data import BUILT_IN


@pytest.fixture
def stored(tmp_path):
    """A converted model, which lies in its file as long as it is used."""
    return shutil.copy(BUILT_IN, tmp_path / "model.safetensors")
