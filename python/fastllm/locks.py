"""Locks on open files: they show other processes that a file's owner lives, and let in one at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL = 0.05  # seconds between two tries to get a lock
_PATIENCE = 60.0  # seconds without a sign of life after which the holder of a lock is not waited for


def lock(file: int, *, wait: bool) -> bool | None:
    """Locks an open file until it is closed.

    False where another has locked it, unless `wait`; None where the system or file system has no locks.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def is_at(file: int, path: Path) -> bool:
    """Whether `path` is the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """A block that one process or thread at a time is in, by a lock on the file `path`, which is made and removed.

    Yields a function by which the block says that it goes on: others do not wait for a holder that says nothing for a
    minute. waiting: called once where there is something to wait for. Where the file system has no locks, nothing
    waits. The lock of a process that was killed is free. Raises OSError where the file cannot be made.
    """
    file, mine = _get_lock(path, waiting)

    def alive() -> None:
        with suppress(OSError):
            os.utime(path)

    try:
        alive()
        yield alive
    finally:
        if mine:
            with suppress(OSError):
                os.unlink(path)  # before it is closed: then whoever waits for it finds that it is not at its path
        os.close(file)


def _get_lock(path: Path, waiting: Callable[[], None]) -> tuple[int, bool]:
    """A descriptor of the file `path`, and whether it is to be removed: it is not where its holder seems stuck."""
    seen, since, told = 0, 0.0, False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            mine = lock(file, wait=False)
            if (mine and is_at(file, path)) or mine is None:
                return file, True
            changed = os.fstat(file).st_mtime_ns
            if changed != seen:
                seen, since = changed, time.monotonic()
            if mine is False and time.monotonic() - since > _PATIENCE:
                return file, False
            if mine is False and not told:
                told = True
                waiting()
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0 if mine else _POLL)
