"""GGUF's block types, as ggml's quantization lays them out: values of a few bits that share scales.

A function for each type takes blocks, uint8 [blocks, bytes of one], and gives f32 [blocks, values of one], in the order
of operations of ggml itself. Types of 32 values have one scale d, and some a minimum m; those of 256 have scales of
their own for 16 or 32 values, and d, m of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.tensors import Bytes, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Blocks = NDArray[np.uint8]
    Array = Any  # an array; numpy's own annotations say no more of these

_CHUNK = 1 << 19  # values that are computed at once: what lies between fits the cache
# The uneven steps of IQ4_NL and IQ4_XS.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def tensor(kind: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor of blocks in `data`, read as f32. Its width is a multiple of the type's block."""
    block = BLOCKS[kind]
    blocks_a_row = (shape[-1] if shape else 1) // block.values

    def read(begin: int, end: int) -> Bytes:
        import numpy

        first, count = begin * blocks_a_row, (end - begin) * blocks_a_row
        out = numpy.empty((count, block.values), numpy.float32)
        step = _CHUNK // block.values
        with numpy.errstate(all="ignore"):  # a broken scale may be infinite
            for at in range(0, count, step):
                part = data[(first + at) * block.nbytes : (first + min(at + step, count)) * block.nbytes]
                rows = numpy.frombuffer(part, numpy.uint8).reshape(-1, block.nbytes)
                out[at : at + step] = block.decode(rows).reshape(len(rows), -1)
        return out

    return Tensor("f32", shape, read, stored=kind)


def _f16(blocks: Blocks, at: int) -> Array:
    """The f16 at byte `at` of each block, as [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype("f4")


def _nibbles(data: Blocks, group: int) -> Array:
    """Low halves of `group` bytes, then their high halves, and so on: [blocks, groups, 2 * group]."""
    import numpy

    grouped = data.reshape(len(data), -1, group)
    return numpy.concatenate([grouped & 15, grouped >> 4], axis=2)


def _shifted(data: Blocks, group: int, bits: int) -> Array:
    """All fields of `bits` bits, the lowest of `group` bytes first: [blocks, groups, 8 / bits, group]."""
    import numpy

    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)[:, None]
    return data.reshape(len(data), -1, 1, group) >> shifts & ((1 << bits) - 1)


def _bits(data: Blocks) -> Array:
    """Single bits, the lowest of each byte first: [blocks, 8 * bytes]."""
    import numpy

    return numpy.unpackbits(data, axis=1, bitorder="little")


def _signed(values: Array, less: int) -> Array:
    """Small unsigned numbers minus `less`."""
    return values.astype("i1") - less


def _q4_0(b: Blocks) -> Array:
    return _f16(b, 0) * _signed(_nibbles(b[:, 2:], 16)[:, 0], 8)


def _q4_1(b: Blocks) -> Array:
    return _f16(b, 0) * _nibbles(b[:, 4:], 16)[:, 0] + _f16(b, 2)


def _q5_0(b: Blocks) -> Array:
    return _f16(b, 0) * _signed(_nibbles(b[:, 6:], 16)[:, 0] | _bits(b[:, 2:6]) << 4, 16)


def _q5_1(b: Blocks) -> Array:
    return _f16(b, 0) * (_nibbles(b[:, 8:], 16)[:, 0] | _bits(b[:, 4:8]) << 4) + _f16(b, 2)


def _q8_0(b: Blocks) -> Array:
    return _f16(b, 0) * b[:, 2:].view("i1")


def _q2_k(b: Blocks) -> Array:
    scales = b[:, :16]
    q = _shifted(b[:, 16:80], 32, 2).reshape(-1, 16, 16)
    d, m = _f16(b, 80) * (scales & 15), _f16(b, 82) * (scales >> 4)
    return d[:, :, None] * q - m[:, :, None]


def _q3_k(b: Blocks) -> Array:
    high = _shifted(b[:, :32], 32, 1).reshape(-1, 16, 16)  # whether 4 is not to be subtracted
    q = _shifted(b[:, 32:96], 32, 2).reshape(-1, 16, 16)
    low_scales = _nibbles(b[:, 96:104], 8)[:, 0]
    high_scales = _shifted(b[:, 104:108], 4, 2).reshape(-1, 16)
    d = _f16(b, 108) * _signed(low_scales | high_scales << 4, 32)
    return d[:, :, None] * _signed(q | high << 2, 4)


def _scales_and_minima(b: Blocks) -> tuple[Array, Array]:
    """Of Q4_K and Q5_K: eight of 6 bits each, in 12 bytes, times d and m: [blocks, 8, 1] twice."""
    import numpy

    a, b4, c = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = numpy.concatenate([a & 63, (c & 15) | a >> 6 << 4], axis=1)
    minima = numpy.concatenate([b4 & 63, c >> 4 | b4 >> 6 << 4], axis=1)
    return (_f16(b, 0) * scales)[:, :, None], (_f16(b, 2) * minima)[:, :, None]


def _q4_k(b: Blocks) -> Array:
    d, m = _scales_and_minima(b)
    return d * _nibbles(b[:, 16:], 32).reshape(-1, 8, 32) - m


def _q5_k(b: Blocks) -> Array:
    d, m = _scales_and_minima(b)
    high = _shifted(b[:, 16:48], 32, 1).reshape(-1, 8, 32)
    return d * (_nibbles(b[:, 48:], 32).reshape(-1, 8, 32) | high << 4) - m


def _q6_k(b: Blocks) -> Array:
    low = _nibbles(b[:, :128], 64).reshape(-1, 16, 16)
    high = _shifted(b[:, 128:192], 32, 2).reshape(-1, 16, 16)
    d = _f16(b, 208) * b[:, 192:208].view("i1")
    return d[:, :, None] * _signed(low | high << 4, 32)


def _iq4_nl(b: Blocks) -> Array:
    return _f16(b, 0) * _iq4(_nibbles(b[:, 2:], 16)[:, 0])


def _iq4_xs(b: Blocks) -> Array:
    low = _nibbles(b[:, 4:8], 1).reshape(-1, 8)
    high = _shifted(b[:, 2:4], 1, 2).reshape(-1, 8)
    d = _f16(b, 0) * _signed(low | high << 4, 32)
    return d[:, :, None] * _iq4(_nibbles(b[:, 8:], 16))


def _iq4(q: Array) -> Array:
    import numpy

    return numpy.array(_IQ4, numpy.int8)[q]


class Block(NamedTuple):
    """values, nbytes: of one block."""

    values: int
    nbytes: int
    decode: Callable[[Blocks], Array]


BLOCKS = {
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q8_0": Block(32, 34, _q8_0),
    "Q2_K": Block(256, 84, _q2_k),
    "Q3_K": Block(256, 110, _q3_k),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
    "IQ4_NL": Block(32, 18, _iq4_nl),
    "IQ4_XS": Block(256, 136, _iq4_xs),
}
