"""GPTQ and AWQ: weights are scale * (q - zero), with a scale and a zero for each output and group of inputs.

GPTQ (Frantar et al., 2022, https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel save it, drawn for 4 bits (2, 3
and 8 likewise); AWQ (Lin et al., 2023, https://arxiv.org/abs/2306.00978) as AutoAWQ's version "gemm" does. Words are
filled from their lowest bits.

             GPTQ                                      AWQ
    qweight  int32 (inputs / 8, outputs)               int32 (inputs, outputs / 8)
             a word: 8 consecutive inputs              a word: 8 consecutive outputs, in the order _AWQ_ORDER
    qzeros   int32 (groups, outputs / 8)               int32 (groups, outputs / 8)
             a word: 8 consecutive outputs             a word: as in qweight
    scales   float (groups, outputs)                   float (groups, outputs)
    g_idx    int32 (inputs): each input's group; if missing, consecutive inputs share one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastllm.formats.quantized._bits import column_floats, column_words, unpacked
from fastllm.formats.quantized._groups import affine, groups_of
from fastllm.formats.quantized._matrix import FLOATS, Matrix
from fastllm.tensors import Bytes, Tensor, raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # output i of a word is its value number _AWQ_ORDER[i], the lowest bits being 0


def read(m: Matrix) -> Tensor:
    """The matrix (outputs, inputs). The shapes of qweight and scales tell GPTQ from AWQ. Raises CheckpointError."""
    told = (m.option(key) for key in ("checkpoint_format", "packing_format", "format", "version"))
    packing = next((value for value in told if isinstance(value, str)), "")
    packing = packing.lower().removeprefix("auto_round:").removeprefix("auto_")
    if packing in ("marlin", "gemv", "gemv_fast", "bitblas", "llm-awq") or m.option("is_marlin_format") is True:
        raise m.refusal(
            f"quantized and packed as {packing or 'marlin'}, which fastllm cannot read: use a GPTQ or AWQ file"
        )
    qweight = m.tensor("qweight", axes=2, kinds=("int32",))
    scales = m.tensor("scales", axes=2, kinds=FLOATS)
    if qweight.shape[1] * 8 == scales.shape[1]:
        return _awq(m, qweight, scales)
    if qweight.shape[1] != scales.shape[1]:
        raise m.error("qweight", f"has the shape {qweight.shape}, which its scales {scales.shape} do not fit")
    if packing not in ("", "gptq", "gptq_v2"):
        raise m.refusal(f"quantized and packed as {packing}, which fastllm cannot read: use a GPTQ or AWQ file")
    return _gptq(m, qweight, scales, packing)


def _gptq(m: Matrix, qweight: Tensor, scales: Tensor, packing: str) -> Tensor:
    """packing: the format's version, gptq (zeros are stored less 1) or gptq_v2 (as they are); "" if not known.

    If not known, zeros that all lie in the middle of the range are taken for those of a symmetric gptq_v2.
    """
    words, (groups, outputs) = qweight.shape[0], scales.shape
    qzeros = m.tensor("qzeros", axes=2, kinds=("int32",))
    index = m.get("g_idx")
    fitting = [b for b in (4, 8, 3, 2) if -(-outputs * b // 32) == qzeros.shape[1]]
    if index is not None:
        fitting = [b for b in fitting if -(-index.width * b // 32) == words] or fitting
    bits = m.option("bits") if m.option("bits") in fitting else fitting[0] if fitting else 0
    if not bits or qzeros.shape[0] != groups:
        raise m.error("qzeros", f"has the shape {qzeros.shape}, which fits no scales of {scales.shape}")
    inputs = words * 32 // bits
    if index is not None and -(-index.width * bits // 32) == words:
        inputs = index.width  # the last word may be partly empty
    group_of = groups_of(m, "g_idx", inputs, groups)
    less_one = packing != "gptq_v2"
    if not packing:
        less_one = bool((unpacked(raw_values(qzeros, 0, 1), bits)[0, :outputs] != 1 << bits - 1).any())

    def read(begin: int, end: int) -> Bytes:
        import numpy

        q = unpacked(column_words(qweight, begin, end), bits)[:, :inputs]
        unit = 32 // bits if 32 % bits == 0 else 32  # zeros that fill whole words: a word, or 3 words of 3 bits each
        first, last = begin // unit, -(-end // unit)
        step = unit * bits // 32  # words
        packed = raw_values(qzeros)[:, first * step : last * step].astype(numpy.uint32)
        if less_one and 32 % bits == 0:
            # Whole words, so that carries undo the borrows of the subtraction, which was of whole words too.
            packed += numpy.uint32(sum(1 << shift for shift in range(0, 32, bits)))
        zeros = unpacked(packed, bits)[:, begin - first * unit : end - first * unit].T
        if less_one and 32 % bits:
            zeros = zeros + numpy.uint8(1) & numpy.uint8((1 << bits) - 1)
        return affine(q, column_floats(scales, begin, end), zeros, group_of())

    return Tensor("f32", (outputs, inputs), read, stored=f"GPTQ, {bits} bits")


def _awq(m: Matrix, qweight: Tensor, scales: Tensor) -> Tensor:
    inputs, (groups, outputs) = qweight.shape[0], scales.shape
    if m.option("bits", m.option("w_bit", 4)) != 4:
        raise m.refusal(f"in AWQ of {m.option('bits', m.option('w_bit'))} bits; fastllm reads 4")
    qzeros = m.sized("qzeros", (groups, outputs // 8), kinds=("int32",))
    group_of = groups_of(m, "g_idx", inputs, groups)

    def values(tensor: Tensor, begin: int, end: int) -> NDArray[np.uint8]:
        """Outputs begin .. end as rows."""
        import numpy

        first, last = begin // 8, -(-end // 8)
        words = column_words(tensor, first, last)[..., None]  # [words, inputs, 1]
        found = unpacked(words, 4)[:, :, _AWQ_ORDER]
        return numpy.moveaxis(found, 2, 1).reshape(-1, tensor.shape[0])[begin - first * 8 : end - first * 8]

    def read(begin: int, end: int) -> Bytes:
        return affine(
            values(qweight, begin, end), column_floats(scales, begin, end), values(qzeros, begin, end), group_of()
        )

    return Tensor("f32", (outputs, inputs), read, stored="AWQ, 4 bits")
