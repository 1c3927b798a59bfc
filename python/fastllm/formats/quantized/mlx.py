"""MLX's affine quantization: weights are scale * q + bias.

    weight            uint32 (..., outputs, inputs * bits / 32)   a word: consecutive inputs, lowest bits first
    scales            float (..., outputs, groups)
    biases (qbiases)  float (..., outputs, groups)

https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from __future__ import annotations

from fastllm.formats.quantized._bits import unpacked
from fastllm.formats.quantized._matrix import FLOATS, Matrix
from fastllm.tensors import Bytes, Tensor, floats, raw_values


def read(m: Matrix) -> Tensor:
    """The matrix (outputs, inputs), or a stack of them. Raises CheckpointError.

    The config says how many bits and how many inputs a group has, for all matrices or by a matrix's name for that one.
    """
    own = m.option(m.base)
    about = {**m.about, **(own if isinstance(own, dict) else {})}
    weight = m.tensor("weight", kinds=("uint32",))
    bias = "qbiases" if m.has("qbiases") else "biases"
    if str(about.get("mode") or "affine") != "affine" or not m.has(bias):
        raise m.refusal(f"quantized by MLX as {about.get('mode') or 'mxfp4'}; fastllm reads its affine form")
    scales = m.tensor("scales", kinds=FLOATS)
    biases = m.sized(bias, scales.shape, kinds=FLOATS)
    bits, size = about.get("bits"), about.get("group_size")
    if type(bits) is not int or type(size) is not int:
        raise m.refusal("quantized by MLX, and no quantization in its config.json says with how many bits")
    inputs = scales.shape[-1] * size
    if (
        bits not in (2, 3, 4, 5, 6, 8)
        or size < 1
        or weight.shape[:-1] != scales.shape[:-1]
        or inputs * bits != weight.shape[-1] * 32
    ):
        raise m.error(
            "weight", f"of {weight.shape} does not fit scales of {scales.shape}, {bits} bits, groups of {size}"
        )

    def read(begin: int, end: int) -> Bytes:
        q = unpacked(raw_values(weight, begin, end), bits).reshape(end - begin, -1, size)
        w = q * floats(scales, begin, end)[:, :, None]
        w += floats(biases, begin, end)[:, :, None]
        return w.reshape(end - begin, inputs)

    return Tensor("f32", (*weight.shape[:-1], inputs), read, stored=f"MLX, {bits} bits")
