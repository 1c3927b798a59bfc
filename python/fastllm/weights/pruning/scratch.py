"""Where pruned matrices lie until they are packed: a file without a name, which goes with the process, however it ends.

A converted file begins with what pruning has cost, so all of a model is pruned before any of it is packed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fastllm.errors import CheckpointError
from fastllm.tensors import SIZES, Bytes, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Scratch:
    """A file of tensors in `folder`, where there must be room for them, for as long as a with block lasts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._end = folder, 0
        self._file: IO[bytes] | None = None  # made when it is first needed

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, like: Tensor, parts: Iterable[NDArray[np.float32]]) -> Tensor:
        """A tensor with the values of `parts`, its rows in order, in the type of `like`; f32 for int8 with scales.

        Raises CheckpointError where they cannot be written.
        """
        import tempfile

        dtype = like.dtype if like.dtype in ("f16", "bf16") else "f32"
        start, width = self._end, like.width * SIZES[dtype]
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # for __exit__
            file = self._file
            file.seek(self._end)
            for part in parts:
                data = _rounded(part, dtype)
                while data:
                    count = file.write(data) or 0
                    data, self._end = data[count:], self._end + count
        except OSError as error:
            raise self._error(error) from None

        def read(begin: int, end: int) -> Bytes:
            data = bytearray((end - begin) * width)
            view, at = memoryview(data), start + begin * width
            while view:
                file.seek(at)
                found = file.read(len(view))
                if not found:
                    raise CheckpointError(f"a temporary file in {self._folder} was cut short")
                view[: len(found)] = found
                view, at = view[len(found) :], at + len(found)
            return data

        return Tensor(dtype, like.shape, read, stored=like.stored)

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self._folder} cannot hold the pruned weights for a while: {error.strerror or error}")


def _rounded(values: NDArray[np.float32], dtype: str) -> memoryview:
    """The values as bytes of a type, rounded to nearest even."""
    import numpy

    if dtype == "f32":
        found: Bytes = values
    elif dtype == "f16":
        with numpy.errstate(over="ignore"):  # packing refuses values that are not finite
            found = values.astype(numpy.float16)
    else:
        bits = values.view(numpy.uint32)
        found = ((bits + numpy.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)
    data: Bytes = numpy.ascontiguousarray(found)
    return memoryview(data).cast("B")
