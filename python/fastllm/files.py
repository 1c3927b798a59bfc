"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastllm.errors import CheckpointError


@contextmanager
def replacing(path: Path, nbytes: int) -> Iterator[BinaryIO]:
    """A new file that takes `path`'s place, synced, when the block ends well. Otherwise nothing changes there.

    Room for nbytes is reserved first, so that a disk too small says so at once. Raises CheckpointError.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} cannot be written: it is a folder")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                _reserve(file, nbytes)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}, it takes {nbytes:,} bytes") from None
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def _reserve(file: BinaryIO, nbytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # not every file system can
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
