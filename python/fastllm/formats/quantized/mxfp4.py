"""MXFP4 as gpt-oss has it in Hugging Face's form: E2M1 values with a power of two for each 32 inputs.

    NAME_blocks   uint8 (..., outputs, groups, 16)   a byte: two neighbouring inputs, the lower four bits first
    NAME_scales   uint8 (..., outputs, groups)       exponents, less 127

It becomes GGUF's type MXFP4, which has the same values in another order, and so is packed without rounding.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from fastllm.formats.quantized._matrix import Matrix
from fastllm.tensors import Bytes, Tensor, raw_values


def read(m: Matrix) -> Tensor:
    """The matrix (outputs, inputs), or a stack of them. Raises CheckpointError."""
    blocks = m.tensor("_blocks", kinds=("uint8",))
    if len(blocks.shape) < 3 or blocks.shape[-1] != 16:
        raise m.error("_blocks", f"has the shape {blocks.shape}, not that of blocks of 16 bytes")
    *rows, groups, _ = blocks.shape
    scales = m.sized("_scales", (*rows, groups), kinds=("uint8",))

    def read(begin: int, end: int) -> Bytes:
        import numpy

        pairs = raw_values(blocks, begin * groups, end * groups)
        codes = numpy.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, 2, 16)  # the inputs of a group, in halves
        out = numpy.empty((len(pairs), 17), numpy.uint8)
        out[:, 0] = raw_values(scales, begin, end).reshape(-1)
        out[:, 1:] = codes[:, 0] | codes[:, 1] << 4
        return out

    return Tensor("MXFP4", (*rows, groups * 32), read, stored="MXFP4")
