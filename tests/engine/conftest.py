"""Fixtures of the engine's tests."""

import threading

import pytest


@pytest.fixture
def slow(monkeypatch):
    """Holds the writer of a PromptCache up until it is called."""
    go = threading.Event()

    def hold_up(disk):
        real = disk._folder.write
        monkeypatch.setattr(disk._folder, "write", lambda *args: go.wait(60) and real(*args))
        return go.set

    return hold_up
