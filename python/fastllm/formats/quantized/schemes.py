"""The schemes that can be read, each as what its tensors hold and how a matrix comes of them.

Matrices are (outputs, inputs); a weight is scale * (q - zero), or scale * q + bias, where scales, zeros and biases
belong to a row, to a group of a row's inputs, or to a block of rows and inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fastllm.formats.quantized.modules import Module, column_floats, column_words, unpacked
from fastllm.tensors import Bytes, Tensor, floats, raw_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOAT8 = ("float8_e4m3", "float8_e5m2")
_SCALES = ("f32", "f16", "bf16")
_BLOCK = (128, 128)  # of DeepSeek-V3 and all that followed it, where the config does not say
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word's eight values of 4 bits each of eight neighbours lies


class Scheme(NamedTuple):
    """part, kinds: the name and types of the tensor it is recognized by; beside: whether others of its are there.

    matrix: the matrix, read as f32. Raises CheckpointError where tensors do not fit each other.
    """

    part: str
    kinds: tuple[str, ...]
    beside: Callable[[Module], bool]
    matrix: Callable[[Module], Tensor]


# ---- GPTQ and AWQ ----------------------------------------------------------------------------------------------------


def _gptq_or_awq(m: Module) -> Tensor:
    """qweight, qzeros and scales; both lay a matrix out as (inputs, outputs), and pack it along different axes."""
    told = (m.option(key) for key in ("checkpoint_format", "packing_format", "format", "version"))
    packing = next((value for value in told if isinstance(value, str)), "")
    packing = packing.lower().removeprefix("auto_round:").removeprefix("auto_")
    if packing in ("marlin", "gemv", "gemv_fast", "bitblas", "llm-awq") or m.option("is_marlin_format") is True:
        raise m.refusal(
            f"quantized and packed as {packing or 'marlin'}, which fastllm cannot read: use a GPTQ or AWQ file"
        )
    qweight = m.tensor("qweight", axes=2, kinds=("int32",))
    scales = m.tensor("scales", axes=2, kinds=_SCALES)
    if qweight.shape[1] * 8 == scales.shape[1]:
        return _awq(m, qweight, scales)
    if qweight.shape[1] != scales.shape[1]:
        raise m.error("qweight", f"has the shape {qweight.shape}, which its scales {scales.shape} do not fit")
    if packing not in ("", "gptq", "gptq_v2"):
        raise m.refusal(f"quantized and packed as {packing}, which fastllm cannot read: use a GPTQ or AWQ file")
    return _gptq(m, qweight, scales, packing)


def _gptq(m: Module, qweight: Tensor, scales: Tensor, packing: str) -> Tensor:
    """GPTQ (Frantar et al., 2022) as AutoGPTQ and GPTQModel save it.

    qweight: words of the values of consecutive inputs; qzeros: of consecutive outputs, for each group of inputs. g_idx:
    each input's group, consecutive inputs where it is missing. packing: the version of the format: gptq, which stores
    zeros less 1, or gptq_v2; where it is not said, zeros that are all in the middle are symmetric ones of gptq_v2.
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
        inputs = index.width  # the last word need not be full
    group_of = _group_of(m, "g_idx", inputs, groups)
    less_one = packing != "gptq_v2"
    if not packing:
        less_one = bool((unpacked(raw_values(qzeros, 0, 1), bits)[0, :outputs] != 1 << bits - 1).any())

    def read(begin: int, end: int) -> Bytes:
        import numpy

        q = unpacked(column_words(qweight, begin, end), bits)[:, :inputs]
        per_word = 32 // bits if 32 % bits == 0 else 32  # 32 values of 3 bits fill 3 words
        first, last = begin // per_word, -(-end // per_word)
        step = per_word * bits // 32
        packed = raw_values(qzeros)[:, first * step : last * step].astype(numpy.uint32)
        if less_one and 32 % bits == 0:
            packed += numpy.uint32(sum(1 << shift for shift in range(0, 32, bits)))  # with carries, as it was taken off
        zeros = unpacked(packed, bits)[:, begin - first * per_word : end - first * per_word].T
        if less_one and 32 % bits:
            zeros = zeros + numpy.uint8(1) & numpy.uint8((1 << bits) - 1)
        return _affine(q, column_floats(scales, begin, end), zeros, group_of())

    return Tensor("f32", (outputs, inputs), read, stored=f"GPTQ, {bits} bits")


def _awq(m: Module, qweight: Tensor, scales: Tensor) -> Tensor:
    """AWQ (Lin et al., 2023) as AutoAWQ's "gemm" version saves it.

    qweight: words of eight neighbouring outputs in an order of their own; qzeros: so, for each group of inputs.
    """
    inputs, (groups, outputs) = qweight.shape[0], scales.shape
    if m.option("bits", m.option("w_bit", 4)) != 4:
        raise m.refusal(f"in AWQ of {m.option('bits', m.option('w_bit'))} bits; fastllm reads 4")
    qzeros = m.sized("qzeros", (groups, outputs // 8), kinds=("int32",))
    group_of = _group_of(m, "g_idx", inputs, groups)

    def values(tensor: Tensor, begin: int, end: int) -> NDArray[np.uint8]:
        """Outputs begin .. end as rows."""
        import numpy

        first, last = begin // 8, -(-end // 8)
        words = column_words(tensor, first, last)[..., None]  # [words, inputs, 1]
        found = unpacked(words, 4)[:, :, _AWQ_ORDER]
        return numpy.moveaxis(found, 2, 1).reshape(-1, tensor.shape[0])[begin - first * 8 : end - first * 8]

    def read(begin: int, end: int) -> Bytes:
        return _affine(
            values(qweight, begin, end), column_floats(scales, begin, end), values(qzeros, begin, end), group_of()
        )

    return Tensor("f32", (outputs, inputs), read, stored="AWQ, 4 bits")


# ---- MLX -------------------------------------------------------------------------------------------------------------


def _mlx(m: Module) -> Tensor:
    """MLX's affine quantization: weight in words along a row, scales and biases for each group of a row.

    How many bits and how wide a group the config says, for all or for this matrix.
    """
    own = m.option(m.base)
    about = {**m.about, **(own if isinstance(own, dict) else {})}
    weight = m.tensor("weight", kinds=("uint32",))
    bias = "qbiases" if m.has("qbiases") else "biases"
    if str(about.get("mode") or "affine") != "affine" or not m.has(bias):
        raise m.refusal(f"quantized by MLX as {about.get('mode') or 'mxfp4'}; fastllm reads its affine form")
    scales = m.tensor("scales", kinds=_SCALES)
    biases = m.sized(bias, scales.shape, kinds=_SCALES)
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


# ---- compressed-tensors ----------------------------------------------------------------------------------------------


def _pack_quantized(m: Module) -> Tensor:
    """compressed-tensors' pack-quantized: words along a row, of values that are stored plus half their range."""
    packed = m.tensor("weight_packed", axes=2, kinds=("int32",))
    shape = m.sized("weight_shape", (2,), kinds=("int64", "int32"))
    outputs, inputs = (int(n) for n in raw_values(shape)[0])
    fitting = [bits for bits in (4, 8) if -(-inputs * bits // 32) == packed.shape[1]]
    if packed.shape[0] != outputs or not fitting:
        raise m.error("weight_packed", f"of {packed.shape} cannot hold {outputs} x {inputs} values of 4 or 8 bits")
    bits = fitting[0]
    scales = m.tensor("weight_scale", kinds=_SCALES)
    scales = scales._replace(shape=(1, 1)) if scales.shape == (1,) else scales
    if len(scales.shape) != 2 or scales.shape[0] not in (1, outputs):
        raise m.error("weight_scale", f"has the shape {scales.shape}, which does not fit {outputs} rows")
    groups = scales.shape[1]
    if not m.has("weight_g_idx") and inputs % groups:
        raise m.error("weight_scale", f"has {groups} groups, which do not divide {inputs} inputs")
    group_of = _group_of(m, "weight_g_idx", inputs, groups)
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
        return _affine(q, numpy.broadcast_to(s, z.shape), z, group_of())

    return Tensor("f32", (outputs, inputs), read, stored=f"compressed-tensors, {bits} bits")


# ---- 8 bits ----------------------------------------------------------------------------------------------------------


def _scaled(m: Module) -> Tensor:
    """FP8 or int8 values and their scales: one for all, for each row, for groups of each row, or for blocks.

    weight_scale_inv, in spite of its name, is multiplied with, too. Int8 may have zeros. SCB: bitsandbytes' largest
    magnitudes of rows, which are 127.
    """
    weight = m.tensor("weight", axes=2, kinds=(*_FLOAT8, "int8"))
    is_int8 = m.kind("weight") == "int8"
    outputs, inputs = weight.shape
    if m.has("SCB"):
        import numpy

        order = m.get("weight_format")  # 0, also where it is missing, is row by row
        if order is not None and (order.raw is None or raw_values(order).any()):
            raise m.refusal("in bitsandbytes' layout for one kind of GPU, which fastllm cannot read")
        largest = m.sized("SCB", (outputs,), kinds=_SCALES)
        return _by_blocks(weight, (1, inputs), lambda: floats(largest) * numpy.float32(1 / 127), "bitsandbytes, int8")
    part = "weight_scale" if m.has("weight_scale") else "weight_scale_inv"
    scales = m.tensor(part, kinds=(*_SCALES, "uint8", "float8_e8m0"))
    if is_int8 and part == "weight_scale_inv":
        raise m.refusal("in FP4, two values a byte, which fastllm cannot read")
    block = _block(m, part, scales, outputs, inputs)
    zeros = m.get("weight_zero_point")
    if zeros is not None and (not is_int8 or zeros.shape != scales.shape):
        raise m.error("weight_zero_point", f"has the shape {zeros.shape}, its scales {scales.shape}")
    label = "int8" if is_int8 else "FP8"
    return _by_blocks(weight, block, lambda: _scale_values(scales), label, zeros)


def _scale_values(scales: Tensor) -> NDArray[np.float32]:
    import numpy

    if scales.raw is not None and scales.raw.kind == "uint8":  # the bits of float8_e8m0
        return numpy.ldexp(1.0, raw_values(scales).astype(numpy.int32) - 127).astype(numpy.float32)
    return floats(scales)


def _block(m: Module, part: str, scales: Tensor, outputs: int, inputs: int) -> tuple[int, int]:
    """Rows and inputs that share a scale."""
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
    """Values times the scale of their block; scales: of all blocks, row after row."""
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


# ---- groups ----------------------------------------------------------------------------------------------------------


class _Groups(NamedTuple):
    """of_input: each input's group. size: of groups of neighbours that are all full, else 0."""

    of_input: NDArray[np.intp]
    size: int


def _group_of(m: Module, part: str, inputs: int, groups: int) -> Callable[[], _Groups]:
    """Each input's group, by a tensor if there is one, else consecutive inputs; read when it is first asked for."""
    if m.has(part):
        told = m.sized(part, (inputs,), kinds=("int32", "int64"))
    else:
        told, size = None, m.option("group_size", m.option("q_group_size"))
        if type(size) is not int or size < 1 or -(-inputs // size) != groups:
            size, rest = divmod(inputs, groups)
            if rest:
                raise m.error("scales", f"has {groups} groups, which do not divide {inputs} inputs")
    found: list[_Groups] = []

    def group_of() -> _Groups:
        import numpy

        if not found:
            index = numpy.arange(inputs) // size if told is None else raw_values(told)[0].astype(numpy.intp)
            if index.min() < 0 or index.max() >= groups:
                raise m.error(part, f"names group {int(index.max())} of {groups}")
            width, rest = divmod(inputs, groups)
            full = not rest and numpy.array_equal(index, numpy.arange(inputs) // width)
            found.append(_Groups(index, width if full else 0))
        return found[0]

    return group_of


def _affine(
    q: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8], groups: _Groups
) -> NDArray[np.float32]:
    """scale * (q - zero): q [rows, inputs]; scales, zeros [rows, groups]."""
    import numpy

    w = q.astype(numpy.float32)
    if groups.size:
        parts = w.reshape(len(w), -1, groups.size)
        parts -= zeros[:, :, None]
        parts *= scales[:, :, None]
        return w
    w -= numpy.take(zeros, groups.of_input, axis=1)
    w *= numpy.take(scales, groups.of_input, axis=1)
    return w


SCHEMES = (
    Scheme("qweight", ("int32",), lambda _: True, _gptq_or_awq),
    Scheme("weight", ("uint32",), lambda m: m.has("scales"), _mlx),
    Scheme("weight_packed", ("int32",), lambda _: True, _pack_quantized),
    Scheme("weight", _FLOAT8, lambda m: m.has("weight_scale") or m.has("weight_scale_inv"), _scaled),
    Scheme("weight", ("int8",), lambda m: m.has("weight_scale") or m.has("SCB"), _scaled),
)
