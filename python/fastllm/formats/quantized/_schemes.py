"""The schemes that are read: how each is recognized, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastllm.formats.quantized import compressed_tensors, gptq_awq, mlx, mxfp4, scaled
from fastllm.formats.quantized._matrix import FLOAT8, Matrix
from fastllm.tensors import Tensor


class Scheme(NamedTuple):
    """part, kinds: the rest of the name and the types of the tensor that a matrix of this scheme is recognized by.

    matches: whether the matrix has the other tensors of the scheme. read: the plain matrix, (outputs, inputs), read as
    f32 or as blocks, with the scheme's name as `stored`. Raises CheckpointError for tensors that do not fit each other.
    """

    part: str
    kinds: tuple[str, ...]
    matches: Callable[[Matrix], bool]
    read: Callable[[Matrix], Tensor]


# To add a scheme: write a module with read(m: Matrix) -> Tensor, and add a line here; the first that matches reads the
# matrix. A scheme that is only to be refused by its name goes into _refused.py.
SCHEMES = (
    Scheme("qweight", ("int32",), lambda m: True, gptq_awq.read),
    Scheme("weight", ("uint32",), lambda m: m.has("scales"), mlx.read),
    Scheme("_blocks", ("uint8",), lambda m: m.has("_scales") and not m.base.endswith(".weight"), mxfp4.read),
    Scheme("weight_packed", ("int32",), lambda m: True, compressed_tensors.read),
    Scheme("weight", FLOAT8, lambda m: m.has("weight_scale") or m.has("weight_scale_inv"), scaled.read),
    Scheme("weight", ("int8",), lambda m: m.has("weight_scale") or m.has("SCB"), scaled.read),
)
