"""Locks on open files: they show other processes that a file's owner lives, and let in one at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL = 0.05  # seconds between two tries to get a lock
_PATIENCE = 60.0  # seconds without a sign of life after which the holder of a lock is not waited for
_SIGN = 10.0  # seconds between two signs of life
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


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
    """Whether `path` is the open file, and no link to it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.lstat(path))
    return False


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """A block that one process or thread at a time is in, by a lock on the file `path`, which is made and removed.

    waiting: called once where there is something to wait for. A process that was killed gives up its lock. One that was
    stopped is not waited for after a minute: until then it shows every ten seconds, by the time of modification of the
    file, that it goes on, whatever the block does and however long the disk takes. Where the file system has no locks,
    nothing waits. Raises OSError where the file cannot be made.
    """
    file, held = _get_lock(path, waiting)
    try:
        with _signs_of_life(file):
            yield
    finally:
        with suppress(OSError):
            if held:
                os.unlink(path)  # before it is closed: then whoever waits for it finds that it is not at its path
        os.close(file)
        with suppress(OSError):
            if held is None:
                os.unlink(path)  # after it is closed: Windows removes no open file


@contextmanager
def _signs_of_life(file: int) -> Iterator[None]:
    """A block during which a thread sets an open file's time of modification every _SIGN seconds."""
    if os.utime not in os.supports_fd:  # Windows, which has no locks here either
        yield
        return
    ended = threading.Event()

    def signs() -> None:
        while True:
            with suppress(OSError):
                os.utime(file)
            if ended.wait(_SIGN):
                return

    thread = threading.Thread(target=signs, name="fastllm-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _get_lock(path: Path, waiting: Callable[[], None]) -> tuple[int, bool | None]:
    """A descriptor of the file `path`, and whether it is locked: not where its holder was stopped, None where there are
    no locks."""
    seen, since, told = 0, 0.0, False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
        try:
            mine = lock(file, wait=False)
            if (mine and is_at(file, path)) or mine is None:
                return file, mine
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
