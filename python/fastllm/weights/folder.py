"""The folder of the packed cache: where it is, which files it holds, and how many bytes they may take.

A file's name is NAME.DIGEST.packed: the model's, for people, and the beginning of the digest that packed.py makes of
what was asked for. Its time of access says when it was last used. Nothing else can: the time of modification must stay
(packed.py), a file system may record no reads, and a copy that another program makes once a day does not matter.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fastllm.errors import CheckpointError
from fastllm.files import TargetError, room
from fastllm.locks import locked

VARIABLE = "FASTLLM_CACHE"
_OFF = ("", "0", "off")
_NAME = re.compile(r".+\.([0-9a-f]{16})\.packed")
_MOST = 20 << 30
_LONGEST = 80  # bytes of a model's name in a file's


class Packed(NamedTuple):
    """A file of the packed cache.

    path: its own. model: the path of the checkpoint; "" for a damaged file. dtypes: as LLM.dtypes. nbytes: on disk.
    used: when it was last used, in seconds since 1970.
    """

    path: Path
    model: str
    dtypes: list[str]
    nbytes: int
    used: float


def cache_folder() -> Path | None:
    """The folder, which may not exist yet; None where FASTLLM_CACHE is "0", "off" or empty: then nothing is cached.

    FASTLLM_CACHE names it, else it is fastllm in the folder that the system has for what can be made again:
    XDG_CACHE_HOME, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows, ~/.cache elsewhere. Raises TargetError where
    the user has no home.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        return None if named.strip().lower() in _OFF else Path(os.path.abspath(os.path.expanduser(named)))
    # https://specifications.freedesktop.org/basedir/latest: a relative path is to be ignored
    if os.path.isabs(caches := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(caches, "fastllm")
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local, "fastllm", "cache")
    home = "" if os.environ.get("HOME") == "" else os.path.expanduser("~")
    if not os.path.isabs(home) or not os.path.isdir(home):
        raise TargetError(f"there is no home folder for a packed cache ({VARIABLE} can name another folder)")
    return Path(home, "Library/Caches" if sys.platform == "darwin" else ".cache", "fastllm")


def file_name(model: Path, digest: str) -> str:
    """The name of a model's file. digest: hexadecimal."""
    name = re.sub(r"[^\w.-]", "_", model.name, flags=re.ASCII)[:_LONGEST] or "model"
    return f"{name}.{digest[:16]}.packed"


def touch(path: Path, about: os.stat_result) -> None:
    """Says that a file is used now. about: of the file; its time of modification stays."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), about.st_mtime_ns))


def packed_files(folder: Path) -> list[Packed]:
    """The files, the last used first."""
    from fastllm.weights import store

    found = []
    for path, about in _files(folder):
        model, dtypes = "", list[str]()
        with suppress(CheckpointError):
            stored = store.open_file(path)
            if stored is not None and stored.packed is not None:
                model, dtypes = str(stored.packed.get("model")), stored.dtypes
        with suppress(OSError):  # looking at it is no use of it
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        found.append(Packed(path, model, dtypes, about.st_size, about.st_atime))
    return sorted(found, key=lambda file: (-file.used, file.path))


def used_bytes(folder: Path) -> int:
    """Bytes of all files together."""
    return sum(about.st_size for _, about in _files(folder))


def most_bytes(folder: Path) -> int:
    """Bytes that all files together may have: 20 GB, or a tenth of the disk's free space if that is less.

    The space that the files take counts as free. Raises TargetError where the disk does not say.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path) or path == path.parent)
    try:
        return room(there, used_bytes(folder), _MOST)
    except OSError as error:
        raise TargetError(f"{folder} cannot be used: {error.strerror}") from None


def check(folder: Path) -> None:
    """Raises TargetError for a folder in which others could put files that this user would run: see is_trusted."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # those who make it say so
        about = os.stat(folder)
        if not (_is_owned(about) and _is_owned(os.lstat(folder))):
            raise TargetError(f"{folder} belongs to another user")
        if not is_trusted(about):
            raise TargetError(f"{folder} can be written by other users (chmod go-w would end that)")


@contextmanager
def alone(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """A block in which no other process or thread makes the file `path`; see locks.locked.

    The folder is made, and only its owner can enter it. Raises TargetError where files cannot be made in it, and as
    check does.
    """
    folder = path.parent
    with ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check(folder)
            # The name of a temporary file: files.replacing removes it where its owner was killed.
            lock = folder / f".fastllm-{path.name.split('.')[-2]}.part"
            stack.enter_context(locked(lock, waiting))
        except (OSError, ValueError) as error:  # ValueError: a null character
            why = "it is not a folder" if isinstance(error, FileExistsError) else getattr(error, "strerror", error)
            raise TargetError(f"{folder} cannot be written: {why}") from None
        yield


def is_trusted(about: os.stat_result) -> bool:
    """Whether only this user, or root, can have written a file or folder: another's may hold anything."""
    return _is_owned(about) and (os.name == "nt" or not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_owned(about: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, or to root."""
    return not hasattr(os, "geteuid") or about.st_uid in (0, os.geteuid())


def make_room(folder: Path, nbytes: int) -> None:
    """Removes the files that were not used for longest, until nbytes more are within most_bytes.

    A process that has mapped one keeps it. Raises TargetError where nbytes alone are more.
    """
    most = most_bytes(folder)
    if nbytes > most:
        raise TargetError(f"its {nbytes:,} bytes are more than the {most:,} that {folder} may take")
    files = sorted(_files(folder), key=lambda file: file[1].st_atime_ns)
    over = sum(about.st_size for _, about in files) + nbytes - most
    for path, about in files:
        if over <= 0:
            break
        with suppress(OSError):
            path.unlink()
            over -= about.st_size


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with suppress(OSError):  # another process has removed it
                    about = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode):
                        found.append((Path(entry.path), about))
    return found
