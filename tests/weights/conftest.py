"""Fixtures of the tests of weights."""

import pytest


@pytest.fixture
def base(tmp_path):
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    return tmp_path / "adapter"
