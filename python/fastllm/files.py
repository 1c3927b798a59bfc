"""Reading and writing files safely: a file that changes while it is read is an error, a new one appears whole or not.

Reading maps a file (map_file) or copies a small one (read_file); a `reading` block checks at its end that all files it
mapped are unchanged. It also records what was asked of the file system (exists, is_folder, matching, current_folder,
and which version of a file was opened): as long as the answers stay the same, reading again would give the same.
Writing goes to a temporary file in the target's folder, which then takes the target's name (replacing).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from fastllm import _core
from fastllm.errors import CheckpointError
from fastllm.locks import is_at, lock

_TEMPORARY = ".fastllm-{}.part"  # not made from the target's name, which may have all 255 bytes that a name may have
_BINARY = getattr(os, "O_BINARY", 0)  # without it Windows translates line ends
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_ABANDONED = 3600  # seconds since the last change after which, where there are no locks, a file's owner must have died

# ---- reading ---------------------------------------------------------------------------------------------------------


class Reading:
    """The files that were opened in a `reading` block, and what else it asked of the file system.

    answers: question -> answer, in JSON's types. A question is a key of _QUESTIONS and its arguments.
    """

    def __init__(self) -> None:
        self.maps: list[_core.MappedFile] = []
        self.identities: set[tuple[int, int]] = set()  # device and inode
        self.answers: dict[tuple[str, ...], Any] = {}

    def check(self) -> None:
        """Raises CheckpointError when one of them has changed since it was opened."""
        for file in self.maps:
            file.check()

    def watched(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """A progress callback that checks the files, then calls `progress`."""

        def watch(done: int, total: int) -> None:
            self.check()
            if progress:
                progress(done, total)

        return watch


_reading: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reading() -> Iterator[Reading]:
    """Records the files that are opened in a with block; they must not change before its end.

    Otherwise a model could be a mixture of two. Raises CheckpointError when one has changed, also in place of another
    error in the block, which the change caused.
    """
    read = Reading()
    before = _reading.set(read)
    try:
        yield read
    except Exception:
        _check_first(read)
        raise
    finally:
        _reading.reset(before)
    read.check()


def _check_first(read: Reading) -> None:
    """Like read.check(), in place of the exception that is being handled."""
    try:
        read.check()
    except CheckpointError as cause:
        raise cause from None


# ---- what was asked of the file system -------------------------------------------------------------------------------


def exists(path: Path) -> bool:
    """Whether there is a file or folder."""
    return bool(_ask("exists", os.path.abspath(path)))


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    return bool(_ask("folder", os.path.abspath(path)))


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files and folders in a folder whose names match a pattern of fnmatch, sorted; none where it is no folder."""
    return [folder / name for name in _ask("names", os.path.abspath(folder), pattern)]


def current_folder() -> Path:
    """The process's current folder."""
    return Path(_ask("current folder"))


def unchanged(answers: Sequence[Sequence[Any]]) -> bool:
    """Whether all questions, each with its answer behind it, would be answered the same now. False for nonsense."""
    try:
        return all(_QUESTIONS[kind](*arguments) == answer for (kind, *arguments), answer in answers)
    except (KeyError, TypeError, ValueError, OSError):
        return False


def _ask(*question: str) -> Any:
    answer = _QUESTIONS[question[0]](*question[1:])
    if (read := _reading.get()) is not None:
        read.answers.setdefault(question, answer)
    return answer


def _names(folder: str, pattern: str) -> list[str]:
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if fnmatch(name, pattern))
    return []


def _version(about: os.stat_result) -> list[int]:
    """What is another number for another content: the time of the last change (ctime) too, which no program can set."""
    return [about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _version_at(path: str) -> list[int] | None:
    with suppress(OSError):
        return _version(os.stat(path))
    return None


_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "exists": os.path.exists,
    "folder": os.path.isdir,
    "names": _names,
    "current folder": os.getcwd,
    "file": _version_at,  # asked by opening it
}


# ---- opening ---------------------------------------------------------------------------------------------------------


def map_file(path: Path, *, follow: bool = True) -> memoryview:
    """The bytes of a file, mapped read-only. Raises CheckpointError when it cannot be read, or is empty.

    follow: whether a symbolic link at `path` is followed, or refused.
    """
    file, about = _open(path, follow=follow)
    try:
        if about.st_size == 0:
            raise CheckpointError(f"{path} is empty")
        mapped = _core.MappedFile(file, str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(file)
    data = memoryview(mapped)
    _check_head(path, bytes(data[:_HEAD]))
    if (read := _reading.get()) is not None:
        read.maps.append(mapped)
    return data


def read_file(path: Path) -> bytes:
    """The bytes of a small file. Raises CheckpointError when it cannot be read, or changes while it is."""
    file, about = _open(path)
    try:
        with open(file, "rb") as opened:
            blob = opened.read()
            now = os.fstat(file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if (now.st_size, now.st_mtime_ns) != (about.st_size, about.st_mtime_ns):
        raise CheckpointError(f"{path} was changed while it was read")
    _check_head(path, blob[:_HEAD])
    return blob


_HEAD = 64  # bytes that tell a stand-in from a file
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; hawser was its first name
_LFS_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_XET_POINTER = b"# xet version "
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
# How downloaders name a file that is not complete; aria2 keeps a list of the missing pieces beside the file instead.
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")


class StandInError(CheckpointError):
    """The file is a stand-in, such as a Git LFS pointer or a web page, left by a clone or download of nothing more."""


def _check_head(path: Path, head: bytes) -> None:
    """Raises StandInError where a file's first bytes are those of a stand-in."""
    if head.startswith(_LFS_POINTERS):
        raise StandInError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its folder")
    if head.startswith(_XET_POINTER):
        raise StandInError(f"{path} is a pointer of git-xet, not the file itself: run git xet checkout in its folder")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES) and path.suffix not in (".html", ".htm", ".xml"):
        raise StandInError(f"{path} is a web page, such as for logging in or of an error, not the file itself")


def unfinished(path: Path) -> Path | None:
    """The file beside `path` that shows that its download has not ended; None if there is none."""
    beside = (f"{path}{suffix}" for suffix in _UNFINISHED if path.suffix not in _UNFINISHED)
    return next((Path(part) for part in beside if os.path.exists(part)), None)


def _open(path: Path, *, follow: bool = True) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and its os.fstat. Raises CheckpointError for anything else."""
    try:
        about = os.stat(path, follow_symlinks=follow)
        if stat.S_ISDIR(about.st_mode):
            raise CheckpointError(f"{path} is a folder, not a file")
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path} is no regular file")  # opening a pipe would wait for a writer
        file = os.open(path, os.O_RDONLY | _BINARY | (0 if follow else _NO_LINK))
        about = os.fstat(file)
    except FileNotFoundError:
        part = unfinished(path)
        only = f", only {part.name}: its download has not ended" if part else ""
        raise CheckpointError(f"{path} does not exist{only}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if exists(Path(f"{path}.aria2")):
        os.close(file)
        raise CheckpointError(
            f"{path} is not complete: {path.name}.aria2 beside it says that its download has not ended"
        )
    if (read := _reading.get()) is not None:
        read.identities.add((about.st_dev, about.st_ino))
        read.answers.setdefault(("file", os.path.abspath(path)), _version(about))
    return file, about


# ---- writing ---------------------------------------------------------------------------------------------------------


class TargetError(CheckpointError):
    """A file cannot be written."""


def check_target(path: Path) -> None:
    """Raises TargetError unless a file may be written at `path`, where nothing or a regular file must be.

    Symbolic links are followed. A file that the present `reading` block has opened, under any name, is refused.
    """
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} cannot be written: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(about.st_mode):
        raise TargetError(f"{path} cannot be written: it is a folder")
    if not stat.S_ISREG(about.st_mode):
        raise TargetError(f"{path} cannot be written: it is no regular file")
    if (read := _reading.get()) is not None and (about.st_dev, about.st_ino) in read.identities:
        raise TargetError(f"{path} cannot be written: it is what would be converted, or a part of it")


@contextmanager
def replacing(path: Path, nbytes: int, *, private: bool = False, modified: int | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, synced to disk, when the with block ends without an error.

    After an error, `path` is as it was. A symbolic link stays, and its target is replaced. The new file gets the old
    one's permissions. private: a link itself is replaced, and only the user may read and write the new file. Space for
    nbytes is reserved first, so that a full disk is noticed at once. Temporary files that a killed process left in the
    folder are removed. modified: the time of modification that it gets, in nanoseconds. Raises TargetError.
    """
    if not private:
        check_target(path)
    target = path if private else Path(os.path.realpath(path))
    temporary = target.parent / _TEMPORARY.format(os.urandom(8).hex())
    try:
        remove_abandoned(target.parent)
        try:
            with open(_create(temporary, 0o600 if private else _permissions(target)), "wb") as file:
                _reserve(file, nbytes)
                yield file
                file.flush()
                os.fsync(file.fileno())
                if modified is not None:
                    os.utime(temporary, ns=(modified, modified))
                if (read := _reading.get()) is not None:
                    read.check()  # a source that changed makes what was written worthless
                if os.name != "nt":
                    os.replace(temporary, target)  # before the file is closed, which gives up its lock
            if os.name == "nt":  # an open file cannot be renamed
                os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))
        takes = f", it takes {nbytes:,} bytes" if full else ""
        raise TargetError(f"{path} cannot be written: {error.strerror or error}{takes}") from None


def _permissions(target: Path) -> int | None:
    """The permissions of the file that will be replaced; None if there is none."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(os.stat(target).st_mode)
    return None


def _create(path: Path, permissions: int | None) -> int:
    """A descriptor of a new file. It is locked while it is open: a lock shows other processes that its owner lives."""
    mode = 0o666 if permissions is None else permissions & 0o777
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, mode)
        try:
            if permissions is not None and hasattr(os, "fchmod"):
                os.fchmod(file, permissions)
            # Until it was locked, another process may have taken the file for an abandoned one and removed it.
            if not lock(file, wait=True) or is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def remove_abandoned(folder: Path) -> None:
    """Removes fastllm's temporary files whose owner was killed: no process has locked them, or, where there are no
    locks, they have not changed for an hour."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not fnmatchcase(entry.name, _TEMPORARY.format("[0-9a-f]" * 16)) or not entry.is_file(
                follow_symlinks=False
            ):
                continue
            with suppress(OSError):  # a file of another user cannot be opened
                file = os.open(entry.path, os.O_RDWR | _BINARY | _NO_LINK)
                try:
                    free, changed = lock(file, wait=False), os.fstat(file).st_mtime
                    if free:
                        os.unlink(entry.path)  # while it is locked, so that its owner cannot take it for its own
                finally:
                    os.close(file)
                if free is None and time.time() - changed > _ABANDONED:
                    os.unlink(entry.path)  # after it is closed: Windows removes no open file


def _reserve(file: BinaryIO, nbytes: int) -> None:
    """Takes disk space for nbytes, where the system can."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # the file system cannot
            raise


def room(folder: Path, used: int, most: int) -> int:
    """Bytes that a cache may take in a folder: `most`, or a tenth of the disk's free space if that is less.

    used: bytes that it has there now, which count as free. Raises OSError where the disk does not say.
    """
    import shutil

    return max(1, min(most, (shutil.disk_usage(folder).free + used) // 10))
