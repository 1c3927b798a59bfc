"""The format pack-quantized of compressed-tensors: weights are scale * (q - zero).

    weight_packed      int32 (outputs, inputs * bits / 32)    a word: consecutive inputs, lowest bits first
    weight_shape       int (2): outputs, inputs
    weight_scale       float (outputs or 1, groups)
    weight_zero_point  int32 (outputs * bits / 32, groups)    a word: consecutive outputs; if missing, 1 << bits - 1
    weight_g_idx       int (inputs): each input's group; if missing, consecutive inputs share one

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from fastllm.formats.quantized._bits import unpacked
from fastllm.formats.quantized._groups import affine, groups_of
from fastllm.formats.quantized._matrix import FLOATS, Matrix
from fastllm.tensors import Bytes, Tensor, floats, raw_values


def read(m: Matrix) -> Tensor:
    """The matrix (outputs, inputs), of 4 or 8 bits. Raises CheckpointError."""
    packed = m.tensor("weight_packed", axes=2, kinds=("int32",))
    shape = m.sized("weight_shape", (2,), kinds=("int64", "int32"))
    outputs, inputs = (int(n) for n in raw_values(shape)[0])
    fitting = [bits for bits in (4, 8) if -(-inputs * bits // 32) == packed.shape[1]]
    if packed.shape[0] != outputs or not fitting:
        raise m.error("weight_packed", f"of {packed.shape} cannot hold {outputs} x {inputs} values of 4 or 8 bits")
    bits = fitting[0]
    scales = m.tensor("weight_scale", kinds=FLOATS)
    scales = scales._replace(shape=(1, 1)) if scales.shape == (1,) else scales
    if len(scales.shape) != 2 or scales.shape[0] not in (1, outputs):
        raise m.error("weight_scale", f"has the shape {scales.shape}, which does not fit {outputs} rows")
    groups = scales.shape[1]
    if not m.has("weight_g_idx") and inputs % groups:
        raise m.error("weight_scale", f"has {groups} groups, which do not divide {inputs} inputs")
    group_of = groups_of(m, "weight_g_idx", inputs, groups)
    middle = 1 << bits - 1
    zeros = m.get("weight_zero_point")
    if zeros is not None and zeros.shape != (-(-outputs * bits // 32), groups):
        raise m.error(
            "weight_zero_point", f"has the shape {zeros.shape}, which does not fit {outputs} x {groups} zeros"
        )
    if zeros is not None and m.kind("weight_zero_point") != "int32":
        raise m.error("weight_zero_point", f"is of the type {m.kind('weight_zero_point')}, not int32")

    def read(begin: int, end: int) -> Bytes:
        import numpy

        q = unpacked(raw_values(packed, begin, end), bits)[:, :inputs]
        s = floats(scales, begin, end) if scales.shape[0] == outputs else floats(scales)
        if zeros is None:
            z = numpy.full((end - begin, groups), middle, numpy.uint8)
        else:
            z = unpacked(raw_values(zeros).T, bits)[:, begin:end].T
        return affine(q, numpy.broadcast_to(s, z.shape), z, group_of())

    return Tensor("f32", (outputs, inputs), read, stored=f"compressed-tensors, {bits} bits")
