"""A bounded folder of small files that several processes share: each file is there whole and unchanged, or is absent.

A file is a header of 128 bytes and a body. The header has the file's own name, the body's size, and a CRC-32 of both,
so a file that was cut short, damaged or renamed is recognized, removed, and treated as absent.

    16 bytes    magic and version          8   size of the body, little-endian
    64          name, ASCII, zeros         36  zeros              4   CRC-32 of the 124 bytes before it and the body

Files appear by renaming, so a process that is killed leaves whole files and at most one temporary file, which a later
process removes. Nothing waits for the disk (fsync): what a power failure leaves half written, the checksum finds. A
file's time of modification says when it was last used; the least recently used files go first.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm.errors import OptionError
from fastllm.files import room

if TYPE_CHECKING:
    from fastllm.tensors import Bytes

_MAGIC = b"fastllm cache 1\n"
_HEADER = struct.Struct("<16s64sQ36x")
_HEADER_BYTES = _HEADER.size + 4
_NAME = re.compile(r"[0-9a-f]{40}-[0-9a-z]{1,20}\.cached")  # others' files in the folder are left alone
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")
_ABANDONED = 3600 * 10**9  # nanoseconds after which a temporary file's owner must have died: it takes far less
_MOST = 8 << 30
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def file_name(digest: bytes, kind: str) -> str:
    """The name of a file. digest: 20 bytes that tell its content; kind: lower-case letters and digits."""
    return f"{digest.hex()}-{kind}.cached"


class CacheFolder:
    """A folder of files under names of file_name. Several threads and processes may use it at once."""

    def __init__(self, path: Path, *, most_bytes: int | None = None) -> None:
        """most_bytes: of all files together, at least 1; None: 8 GiB, or a tenth of the disk's free space if that is
        less, where the space that the files take counts as free.

        A folder that does not exist is made, and only its owner can enter it. Raises OptionError for a path that is no
        folder, or cannot be listed.
        """
        right = isinstance(most_bytes, int) and not isinstance(most_bytes, bool) and most_bytes > 0
        if most_bytes is not None and not right:
            raise OptionError(f"most_bytes must be 1 or more, not {most_bytes!r}")
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = self._files()
        except (OSError, ValueError) as error:  # ValueError: a null character
            why = "it is not a folder" if isinstance(error, FileExistsError) else getattr(error, "strerror", error)
            raise OptionError(f"the folder {path} cannot be used: {why}") from None
        self.most_bytes = most_bytes or room(path, sum(nbytes for _, nbytes, _ in files), _MOST)

    def has(self, name: str, nbytes: int) -> bool:
        """Whether there is a file `name` with a body of nbytes. It may still turn out damaged."""
        try:
            about = os.stat(self.path / name, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(about.st_mode) and about.st_size == file_bytes(nbytes)

    def read(self, name: str, room: bytearray) -> memoryview | None:
        """The body of file `name`, which must fill `room`, bytes of file_bytes; the result lies in it.

        None where there is no such file, or it is damaged: then it is removed.
        """
        data = memoryview(room)
        body = data[_HEADER_BYTES:]
        if not self.has(name, len(body)):  # also a folder, or a pipe, which would block
            return None
        at = 0
        with suppress(OSError):  # another process has removed it; or the disk cannot read it
            with open(os.open(self.path / name, os.O_RDONLY | _FLAGS), "rb", buffering=0) as file:
                while at < len(data) and (count := file.readinto(data[at:])):
                    at += count
            if at == len(data) and data[:_HEADER_BYTES] == _header(name, body):
                return body
            os.unlink(self.path / name)
        return None

    def write(self, name: str, body: Bytes) -> None:
        """Writes a file, in place of one of the same name. Raises OSError; then the folder is as it was."""
        body = memoryview(body)
        temporary = self.path / f".{os.urandom(8).hex()}.part"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
            with open(os.open(temporary, flags, 0o600), "wb", buffering=0) as file:
                for data in (memoryview(_header(name, body)), body):
                    at = 0
                    while at < len(data):
                        at += file.write(data[at:])
            os.replace(temporary, self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def touch(self, name: str, at: int) -> None:
        """Says that a file was used at the time `at`, nanoseconds since 1970."""
        with suppress(OSError):
            os.utime(self.path / name, ns=(at, at))

    def make_room(self, nbytes: int) -> None:
        """Removes least recently used files until nbytes more are within most_bytes, and abandoned temporary files.

        Raises OSError where the folder cannot be listed.
        """
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) + nbytes - self.most_bytes
        now = time.time_ns()
        for used, size, path in files:
            temporary = path.suffix == ".part"
            if now - used > _ABANDONED if temporary else over > 0:
                with suppress(OSError):
                    path.unlink()
                    over -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each of its files was last used, in nanoseconds since 1970, its bytes and its path."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name):
                    with suppress(OSError):  # another process has removed it
                        about = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(about.st_mode):
                            found.append((about.st_mtime_ns, about.st_size, Path(entry.path)))
        return found


def file_bytes(nbytes: int) -> int:
    """Bytes of a file with a body of nbytes."""
    return _HEADER_BYTES + nbytes


def _header(name: str, body: memoryview) -> bytes:
    start = _HEADER.pack(_MAGIC, name.encode(), len(body))
    return start + zlib.crc32(body, zlib.crc32(start)).to_bytes(4, "little")
