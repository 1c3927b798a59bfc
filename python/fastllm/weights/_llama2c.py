"""Writes llama2.c's checkpoints, as its export.py does: versions 0 and 1 in f32, version 2 in int8 (q8_0).

https://github.com/karpathy/llama2.c/blob/master/export.py. The order of tensors, each written for all layers:

    version 0   header of 28 bytes, embed, attn_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, final_norm,
                cosines and sines, [head]
    version 1   header of 256 bytes, attn_norm, ffn_norm, final_norm, embed, wq, wk, wv, wo, w1, w2, w3, [head]
    version 2   as version 1, each matrix as int8 values followed by an f32 scale for every `group` of them
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import isclose, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm import _core
from fastllm.config import Config, rope_freqs
from fastllm.errors import CheckpointError, OptionError
from fastllm.families import Recipe, Weight, half_split
from fastllm.files import replacing
from fastllm.formats.llama2c import HEADER_BYTES, MAGIC
from fastllm.tensors import floats
from fastllm.weights.packing import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSIONS = (0, 1, 2)
_GROUP = 64  # of int8, or the largest power of two below it that divides the width
_ATTENTION = ("attn.wq", "attn.wk", "attn.wv", "attn.wo")
_FFN = ("ffn.w1", "ffn.w2", "ffn.w3")


def write(path: Path, recipe: Recipe, version: int, *, progress: Progress | None = None) -> None:
    """Writes a plain Llama.

    Raises OptionError for a version that is not known, and CheckpointError for a model that llama2.c cannot hold, or
    where the file cannot be written.
    """
    if version not in VERSIONS:
        raise OptionError(f"llama2.c's versions are {', '.join(map(str, VERSIONS))}, not {version!r}")
    problem = next(_not_llama(recipe), None)
    if problem:
        raise CheckpointError(f"llama2.c cannot hold this model: {problem}")
    config, shapes = recipe.config, {name: shape for name, shape, _ in recipe.config.matrices()}
    tail = ["head"] if "head" in recipe.matrices else []
    order, group = [*_order(config.n_layers, version), *tail], 0
    if version == 2:
        group = _GROUP
        while config.dim % group:  # every matrix has rows or columns of that many
            group //= 2

    def size(name: str) -> int:
        if name == "rotations":
            return config.max_seq * config.head_dim * 4
        if name not in shapes:
            return config.dim * 4
        count = prod(shapes[name])
        return count + count // group * 4 if group else count * 4

    header = _header(config, version, tied=not tail, group=group)
    total, done = len(header) + sum(map(size, order)), len(header)
    with replacing(path, total) as file:
        file.write(header)
        for name in order:
            for piece in _pieces(recipe, name, group):
                file.write(piece)
            done += size(name)
            if progress:
                progress(done, total)


def _order(n_layers: int, version: int) -> list[str]:
    """The canonical names of the tensors before the head, and "rotations", as a file has them."""

    def of_layers(*names: str) -> list[str]:
        return [f"layers.{i}.{name}" for name in names for i in range(n_layers)]

    if version == 0:
        layers = of_layers("attn_norm", *_ATTENTION, "ffn_norm", *_FFN)
        return ["embed", *layers, "final_norm", "rotations"]
    return [*of_layers("attn_norm", "ffn_norm"), "final_norm", "embed", *of_layers(*_ATTENTION, *_FFN)]


def _not_llama(recipe: Recipe) -> Iterator[str]:
    """What a model has that llama2.c does not compute, each as part of a message."""
    config = recipe.config
    head_dim = config.dim // config.n_heads
    theirs = {"head_dim": head_dim, "rotary_dim": head_dim, "norm_eps": 1e-5, "attn_scale": head_dim**-0.5}
    for name, expected in (Config._field_defaults | theirs).items():
        value = getattr(config, name)
        if name == "precise":  # says how it is run, not what it computes
            continue
        if name == "windows":
            same = not any(value)
        elif name == "ropes":
            same = all(rope == 1 for rope in value)
        else:
            same = isclose(value, expected, rel_tol=1e-6) if isinstance(expected, float) else value == expected
        if not same:
            yield f"its {name} is {value}, llama2.c's {expected}"
    after = [f"layers after the stream ({chain})" for chain in recipe.dense]
    after += ["a way of its own to make vectors"] if recipe.embedding.to_json() else []
    yield from (f"it has {what}" for what in after)
    known = {f"layers.{i}.{norm}" for i in range(config.n_layers) for norm in ("attn_norm", "ffn_norm")}
    for name in known | {"final_norm"}:
        if name not in recipe.vectors:
            yield f"it has no {name}"
    for name, values in recipe.vectors.items():
        if name == "rope.freqs":
            half = config.rotary_dim // 2
            plain, found = (struct.unpack(f"<{half}f", v) for v in (rope_freqs(10000.0, config.rotary_dim), values))
            if not all(isclose(a, b, rel_tol=1e-6) for a, b in zip(plain, found, strict=True)):
                yield "its rotary frequencies are not those of theta 10,000"
        elif name not in known and name != "final_norm":
            yield f"it has {name}"


def _header(config: Config, version: int, *, tied: bool, group: int) -> bytes:
    """The header. Version 0 says that there is a head by a negative vocabulary size."""
    vocab = config.vocab_size if version or tied else -config.vocab_size
    heads = (config.n_heads, config.n_kv_heads)
    fields = struct.pack("<7i", config.dim, config.hidden_dim, config.n_layers, *heads, vocab, config.max_seq)
    if version == 0:
        return fields
    fields = struct.pack("<Ii", MAGIC, version) + fields + struct.pack("<Bi", tied, group)
    return fields.ljust(HEADER_BYTES, b"\0")


def _pieces(recipe: Recipe, name: str, group: int) -> Iterator[Any]:
    """The bytes of a tensor in pieces; group: of int8, 0 for f32. Raises CheckpointError for non-finite values."""
    import numpy

    if name == "rotations":
        yield from _rotations(recipe.config)
    elif name in recipe.vectors:
        yield _core.Vector(recipe.vectors[name], name=name).data
    else:
        values = _interleaved(recipe.matrices[name], recipe.config, name)
        if not numpy.isfinite(values).all():
            raise CheckpointError(f"{name} has a value that is not finite")
        yield from _q80(values, group) if group else (values,)


def _rotations(config: Config) -> Iterator[NDArray[np.float32]]:
    """Cosines, then sines [max_seq, head_dim / 2], which llama2.c's programs skip: they compute their own."""
    import numpy

    freqs = numpy.frombuffer(rope_freqs(10000.0, config.head_dim), numpy.float32)
    angles = numpy.outer(numpy.arange(config.max_seq, dtype=numpy.float32), freqs).astype(numpy.float64)
    yield numpy.cos(angles).astype(numpy.float32)
    yield numpy.sin(angles).astype(numpy.float32)


def _interleaved(weight: Weight, config: Config, name: str) -> NDArray[np.float32]:
    """A matrix in f32 [d, n]; the rows of wq and wk go back from rotary pairs (i, i + head_dim / 2) to (2i, 2i + 1)."""
    import numpy

    values = floats(weight.tensor)
    if weight.rows is not None:
        values = values[numpy.asarray(weight.rows)]
    if name.endswith((".wq", ".wk")):
        heads = config.n_heads if name.endswith(".wq") else config.n_kv_heads
        turned = numpy.empty_like(values)
        turned[numpy.asarray(half_split(heads, config.head_dim))] = values
        values = turned
    return values


def _q80(values: NDArray[np.float32], group: int) -> Iterator[Any]:
    """int8 values, then an f32 scale, max|w| / 127, for each `group` of them."""
    import numpy

    runs = values.reshape(-1, group)
    scales = numpy.abs(runs).max(axis=1) / numpy.float32(127)
    steps = numpy.where(scales > 0, scales, numpy.float32(1))
    yield numpy.round(runs / steps[:, None]).astype(numpy.int8)
    yield scales
