"""Reads zip archives in mapped files: a stored entry is a view of the file, a deflated one is inflated as it is read.

    local header, data        of the first entry; an entry's local header repeats its name
    ...
    central directory         for each entry: flags, method, sizes, name, offset of its local header
    zip64 end, its locator    optional: sizes and offsets of 64 bits
    end of central directory  count of entries; size and offset of the central directory

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError

_END, _END64, _PLACE64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_MOST_ENTRIES = 1 << 17
# An entry of `packed` bytes may inflate to _MOST_RATIO * packed + _FREE: weights deflate to nine tenths, a zip bomb to
# less than a hundredth, and a megabyte is harmless whatever it takes.
_MOST_RATIO, _FREE = 100, 1 << 20
_STEP = 1 << 20  # bytes that are inflated, or skipped, at once


class Entry(NamedTuple):
    """A file of an archive. size: bytes of its content. data: its bytes in the archive, deflated or not."""

    size: int
    data: memoryview
    deflated: bool

    def reader(self, path: Path) -> Callable[[int, int], memoryview]:
        """A function that reads bytes begin .. end of the content. path: the archive, for errors.

        A deflated entry is best read front to back: reading an earlier place inflates it from the start again.
        """
        if not self.deflated:
            return lambda begin, end: self.data[begin:end]
        return _Inflater(path, self).read


def entries(path: Path, data: memoryview) -> dict[str, Entry]:
    """The archive's files by name. Raises CheckpointError for a broken one."""
    try:
        return _entries(path, data)
    except (struct.error, ValueError):
        raise CheckpointError(f"{path} is truncated or broken: its directory of a zip archive cannot be read") from None


def _entries(path: Path, data: memoryview) -> dict[str, Entry]:
    count, size, start = _directory(path, data)
    if count > _MOST_ENTRIES or start + size > len(data):
        raise CheckpointError(f"{path} is broken: its zip archive would have a directory of {count:,} entries")
    directory, at = data[start : start + size], 0
    found: dict[str, Entry] = {}
    for _ in range(count):
        magic, flags, method = struct.unpack_from("<4s4xHH", directory, at)
        packed, full, name_size, extra_size, comment_size = struct.unpack_from("<IIHHH", directory, at + 20)
        (header,) = struct.unpack_from("<I", directory, at + 42)
        name = str(directory[at + 46 : at + 46 + name_size], "utf-8", "replace")
        extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
        at += 46 + name_size + extra_size + comment_size
        if magic != _CENTRAL:
            raise ValueError
        full, packed, header = _long_sizes(extra, full, packed, header)
        if flags & 1 or method not in (0, 8):
            raise CheckpointError(f"{path} has {name!r} encrypted or packed in a way that fastllm cannot read")
        if name in found:
            raise CheckpointError(f"{path} is broken: it has {name!r} twice")
        magic, local_name, local_extra = struct.unpack_from("<4s22xHH", data, header)
        begin = header + 30 + local_name + local_extra
        if magic != _LOCAL or begin + packed > len(data):
            raise CheckpointError(f"{path} is truncated or broken: {name!r} is not where its directory says")
        if full != packed if method == 0 else full > _MOST_RATIO * packed + _FREE:
            raise CheckpointError(f"{path} is broken: {name!r} would have {full:,} bytes, packed into {packed:,}")
        found[name] = Entry(full, data[begin : begin + packed], method == 8)
    return found


def _directory(path: Path, data: memoryview) -> tuple[int, int, int]:
    """The number of entries, and the size and offset of the central directory."""
    tail = max(0, len(data) - 22 - 0xFFFF)  # a comment may follow
    found = bytes(data[tail:]).rfind(_END)
    if found < 0:
        raise CheckpointError(f"{path} is truncated: its zip archive has no end")
    count, size, start = struct.unpack_from("<10xHII2x", data, tail + found)
    place = tail + found - 20
    if place >= 0 and data[place : place + 4] == _PLACE64:
        (end,) = struct.unpack_from("<8xQ", data, place)
        if end + 56 > len(data) or data[end : end + 4] != _END64:
            raise ValueError
        count, size, start = struct.unpack_from("<32xQQQ", data, end)
    return count, size, start


def _long_sizes(extra: memoryview, *sizes: int) -> tuple[int, ...]:
    """Replaces sizes of 0xFFFFFFFF by those in the zip64 extra field (kind 1), which has them in the same order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return tuple(next(values, size) if size == 0xFFFFFFFF else size for size in sizes)
        extra = extra[4 + length :]
    return sizes


class _Inflater:
    """Inflates an entry as it is read, and never holds more of it than was asked for."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.path, self.entry = path, entry
        self.machine: Any = None  # zlib's state of some 40 KB, freed at the entry's end
        self.at = 0

    def read(self, begin: int, end: int) -> memoryview:
        if self.machine is None or begin < self.at:
            self.machine, self.rest, self.at = zlib.decompressobj(-15), self.entry.data, 0
        while self.at < begin:
            self._next(min(begin - self.at, _STEP))
        out = bytearray()
        while len(out) < end - begin:
            out += self._next(end - begin - len(out))
        if self.at == self.entry.size:
            self.machine = None
        return memoryview(out)

    def _next(self, most: int) -> bytes:
        """The next bytes of the content: at least one, at most `most`."""
        part: bytes = b""
        try:
            while not part and not self.machine.eof and (self.rest or self.machine.unconsumed_tail):
                packed = self.machine.unconsumed_tail
                if not packed:
                    packed, self.rest = self.rest[:_STEP], self.rest[_STEP:]
                part = self.machine.decompress(packed, most)
            part = part or self.machine.decompress(b"", most)
        except zlib.error:
            part = b""
        if not part:
            raise CheckpointError(f"{self.path} is broken: a deflated entry ends before its {self.entry.size:,} bytes")
        self.at += len(part)
        return part
