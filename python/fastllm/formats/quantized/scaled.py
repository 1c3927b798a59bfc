"""8-bit weights: FP8, int8 and bitsandbytes' LLM.int8(). Weights are q * scale, or (q - zero) * scale.

    weight             float8 or int8 (outputs, inputs)
    weight_scale       one for all, or (outputs, 1), (outputs, groups), or one for each block of rows and inputs
    weight_scale_inv   the same under DeepSeek-V3's name: in spite of it, weights are multiplied by it
    weight_zero_point  int8 only, of the scales' shape; optional
    SCB                bitsandbytes: float (outputs), the largest magnitude of each row, which int8 127 stands for

DeepSeek-V3: https://arxiv.org/abs/2412.19437. LLM.int8(): Dettmers et al., 2022, https://arxiv.org/abs/2208.07339.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastllm.formats.quantized._matrix import FLOAT8, FLOATS, Matrix
from fastllm.tensors import Bytes, Tensor, floats, raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = (128, 128)  # DeepSeek-V3's, if the config does not say


def read(m: Matrix) -> Tensor:
    """The matrix (outputs, inputs). Raises CheckpointError."""
    weight = m.tensor("weight", axes=2, kinds=(*FLOAT8, "int8"))
    is_int8 = m.kind("weight") == "int8"
    outputs, inputs = weight.shape
    if m.has("SCB"):
        import numpy

        order = m.get("weight_format")  # 0 is row-major, and the default
        if order is not None and (order.raw is None or raw_values(order).any()):
            raise m.refusal("in bitsandbytes' layout for one kind of GPU, which fastllm cannot read")
        largest = m.sized("SCB", (outputs,), kinds=FLOATS)
        return _by_blocks(weight, (1, inputs), lambda: floats(largest) * numpy.float32(1 / 127), "bitsandbytes, int8")
    part = "weight_scale" if m.has("weight_scale") else "weight_scale_inv"
    scales = m.tensor(part, kinds=(*FLOATS, "uint8", "float8_e8m0"))
    if is_int8 and part == "weight_scale_inv":
        raise m.refusal("in FP4, two values a byte, which fastllm cannot read")
    block = _block(m, part, scales, outputs, inputs)
    zeros = m.get("weight_zero_point")
    if zeros is not None and (not is_int8 or zeros.shape != scales.shape):
        raise m.error("weight_zero_point", f"has the shape {zeros.shape}, its scales {scales.shape}")
    label = "int8" if is_int8 else "FP8"
    return _by_blocks(weight, block, lambda: _scale_values(scales), label, zeros)


def _scale_values(scales: Tensor) -> NDArray[np.float32]:
    """Scales as floats; uint8 are the exponents of powers of two, the bits of float8_e8m0."""
    import numpy

    if scales.raw is not None and scales.raw.kind == "uint8":
        return numpy.ldexp(1.0, raw_values(scales).astype(numpy.int32) - 127).astype(numpy.float32)
    return floats(scales)


def _block(m: Matrix, part: str, scales: Tensor, outputs: int, inputs: int) -> tuple[int, int]:
    """The height and width of the blocks that share a scale, found by the shape of the scales."""
    shape = scales.shape
    if shape in ((), (1,), (1, 1)):
        return outputs, inputs
    if shape in ((outputs,), (outputs, 1)):
        return 1, inputs
    configured = m.option("weight_block_size", _BLOCK)
    if not isinstance(configured, (list, tuple)) or len(configured) != 2:
        raise m.refusal(f"and weight_block_size {configured!r}, not two sizes")
    if all(type(n) is int and n > 0 for n in configured):
        h, w = configured
        if shape == (-(-outputs // h), -(-inputs // w)):
            return h, w
    if len(shape) == 2 and outputs % shape[0] == 0 and inputs % shape[1] == 0:
        return outputs // shape[0], inputs // shape[1]
    raise m.error(part, f"has the shape {shape}, which does not fit a weight of {(outputs, inputs)}")


def _by_blocks(
    weight: Tensor,
    block: tuple[int, int],
    scales: Callable[[], NDArray[np.float32]],
    label: str,
    zeros: Tensor | None = None,
) -> Tensor:
    """(q - zero) * scale for blocks of (height, width); scales: those of all blocks, row-major. label: the scheme."""
    outputs, inputs = weight.shape
    height, width = block
    grid = (-(-outputs // height), -(-inputs // width))

    def read(begin: int, end: int) -> Bytes:
        import numpy

        rows, inner = numpy.arange(begin, end) // height, numpy.arange(inputs) // width
        values = floats(weight, begin, end)
        if zeros is not None:
            values = values - floats(zeros).reshape(grid)[rows][:, inner]
        s = scales().reshape(grid)[rows]
        return values * (s if grid[1] == 1 else s[:, inner])

    return Tensor("f32", weight.shape, read, stored=label)
