"""Tensors of GGUF's quantized types: blocks of 32 or 256 values of a few bits that share scales.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h has the layouts; the core dequantizes them.
"""

from __future__ import annotations

from functools import cache

from fastllm import _core
from fastllm.machine import thread_count
from fastllm.tensors import Bytes, Tensor

BLOCKS = _core.block_types()  # a type's name -> (values, bytes) of a block


def tensor(kind: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor of the type `kind` in `data`, read as f32. Its width is a multiple of the values of a block."""
    values, nbytes = BLOCKS[kind]
    blocks_a_row = (shape[-1] if shape else 1) // values

    def read(begin: int, end: int) -> Bytes:
        first, last = begin * blocks_a_row, end * blocks_a_row
        out = _core.Buffer(max(1, (last - first) * values * 4))
        if last > first:
            floats = memoryview(out).cast("f")
            _core.dequantize(kind, data[first * nbytes : last * nbytes], floats, threads=_threads())
        return memoryview(out)[: (last - first) * values * 4]

    return Tensor("f32", shape, read, stored=kind)


@cache
def _threads() -> int:
    return thread_count()[0]
