"""numpy's .npz: a zip archive of .npy files, versions 1 to 3, one for each array.

    "\\x93NUMPY", major u8, minor u8, length of the header u16 (u32 since version 2)
    header      a Python dict as text: descr (numpy's name of the type), fortran_order, shape
    values

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import struct
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.formats import _arrays, _zips
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import with_config_beside
from fastllm.tensors import Tensor

_MOST_HEADER = 10000  # numpy's own limit


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens a file, with the config.json beside it. Raises CheckpointError."""
    return with_config_beside(path, "npz", tensors(path, data))


def tensors(path: Path, data: memoryview) -> dict[str, Tensor]:
    """The arrays of a mapped file by name. Raises CheckpointError if it is broken or has Python objects."""
    files = _zips.entries(path, data)
    return {name.removesuffix(".npy"): _tensor(path, name.removesuffix(".npy"), file) for name, file in files.items()}


def _tensor(path: Path, name: str, file: _zips.Entry) -> Tensor:
    start, header = _header(path, name, file)
    try:
        values = ast.literal_eval(header)
        kind, in_columns, shape = values["descr"], values["fortran_order"], tuple(values["shape"])
        kind = str(kind).replace("|", "<")
        size = _arrays.size(kind) if all(type(n) is int for n in shape) else 0
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        size = 0
    if not size:
        raise CheckpointError(f"{path} has no numbers in {name!r}: Python objects are not read")
    content = file.reader(path)
    return _arrays.tensor(
        kind,
        shape,
        lambda begin, end: content(start + begin, start + end),
        f"tensor {name!r} of {path}",
        strides=_arrays.column_major(shape) if in_columns else _arrays.row_major(shape),
        count=(file.size - start) // size,
    )


def _header(path: Path, name: str, file: _zips.Entry) -> tuple[int, str]:
    """The offset of the values, and the header's text."""
    first = file.reader(path)(0, min(file.size, 12))
    broken = CheckpointError(f"{path} is broken: {name!r} is not an array as numpy writes it")
    if len(first) < 12 or bytes(first[:6]) != b"\x93NUMPY" or first[6] not in (1, 2, 3):
        raise broken
    start = 10 if first[6] == 1 else 12
    (length,) = struct.unpack_from("<H" if first[6] == 1 else "<I", first, 8)
    if length > min(_MOST_HEADER, file.size - start):
        raise broken
    return start + length, str(file.reader(path)(start, start + length), "utf-8", "replace")
