"""Rotary frequencies (RoPE, Su et al., 2021, https://arxiv.org/abs/2104.09864) by the configs of transformers.

A head's channels rotate in pairs: pair i of r / 2 by position * freqs[i] radians, freqs[i] = theta^(-2i / r). Models
with longer contexts slow down some of the frequencies; the kinds below are those of transformers' modeling_rope_utils,
computed in the same f32 steps. A config has their parameters in rope_parameters (version 5 of the library), or in
rope_theta and rope_scaling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from fastllm.families.source import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Rotation(NamedTuple):
    """The frequencies of a rotation.

    freqs: rotary_dim / 2 radians per position, as f32 bytes. long: those of contexts longer than `switch` positions;
    switch 0 means never. scale: factor of cosines and sines.
    """

    freqs: bytes
    long: bytes = b""
    switch: int = 0
    scale: float = 1.0


def parameters(
    source: Source,
    *,
    theta: float = 10000.0,
    partial: float | None = None,
    keys: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> Source:
    """The rotary parameters of a config, with keys as in rope_parameters.

    theta: the class's default. partial: the class's default of the share of a head that rotates; None for a class whose
    whole heads rotate. keys: what the config, outside of its rotary parameters, calls theta and that share.
    """
    rope = source.section(
        "rope_scaling" if source.get("rope_scaling") else "rope_parameters",
        rope_theta=source.get(keys[0], theta),
        partial_rotary_factor=source.get(keys[1], partial),
        original_max_position_embeddings=source.get(
            "original_max_position_embeddings", source.get("max_position_embeddings")
        ),
    )
    if any(isinstance(value, dict) for value in rope.header.values()):
        raise source.error("has rotary parameters for each type of layer, which fastllm does not support here")
    if partial is None:
        rope.refuse("partial_rotary_factor", 1)
    return rope


def rotation(rope: Source, rotary_dim: int, max_seq: int) -> Rotation:
    """The frequencies by rotary parameters. max_seq: the model's context.

    Raises CheckpointError for a kind that is not known, and for parameters that give no finite frequencies.
    """
    kind = rope.text("rope_type", rope.text("type", "default"))
    kinds = {"default": _default, "dynamic": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
    if kind not in (*kinds, "longrope"):
        raise rope.error(f"has the rotary scaling {kind!r}; known are {', '.join(kinds)}, longrope")
    import numpy

    if rope.number("rope_theta") <= 0:
        raise rope.error(f"has rope_theta {rope.number('rope_theta')}")
    try:
        with numpy.errstate(all="ignore"):
            result = _longrope(rope, rotary_dim, max_seq) if kind == "longrope" else kinds[kind](rope, rotary_dim)
    except (ArithmeticError, ValueError):
        raise rope.error("has rotary parameters that make no sense") from None
    if not numpy.isfinite(numpy.frombuffer(result.freqs + result.long, numpy.float32)).all():
        raise rope.error("has rotary parameters that give frequencies without end")
    return result


def _periods(rope: Source, dim: int) -> NDArray[np.float32]:
    """1 / freqs: theta^(2i / dim), each step rounded to f32. By Python's pow: numpy's differs between machines."""
    import numpy

    theta = rope.number("rope_theta")
    return numpy.array([theta ** float(numpy.float32(2 * i / dim)) for i in range(dim // 2)], numpy.float32)


def _default(rope: Source, dim: int) -> Rotation:
    """Plain RoPE; also "dynamic", which changes theta beyond max_position_embeddings, where fastllm takes no text."""
    return Rotation((1 / _periods(rope, dim)).tobytes())


def _linear(rope: Source, dim: int) -> Rotation:
    """Position interpolation (Chen et al., 2023, https://arxiv.org/abs/2306.15595): all frequencies / factor."""
    import numpy

    return Rotation((1 / _periods(rope, dim) / numpy.float32(rope.number("factor"))).tobytes())


def _llama3(rope: Source, dim: int) -> Rotation:
    """Llama 3.1 (Grattafiori et al., 2024, https://arxiv.org/abs/2407.21783).

    With old = original_max_position_embeddings, waves longer than old / low_freq_factor positions are slowed down by
    `factor`, those shorter than old / high_freq_factor are kept, and those between are interpolated.
    """
    import numpy

    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = rope.integer("original_max_position_embeddings")
    freqs = 1 / _periods(rope, dim)
    waves = numpy.float32(2 * math.pi) / freqs
    slow = numpy.where(waves > old / low, freqs / numpy.float32(factor), freqs)
    smooth = (numpy.float32(old) / waves - numpy.float32(low)) / numpy.float32(high - low)
    between = (1 - smooth) * slow / numpy.float32(factor) + smooth * slow
    medium = ~(waves < old / high) & ~(waves > old / low)
    return Rotation(numpy.where(medium, between, slow).astype(numpy.float32).tobytes())


def _yarn(rope: Source, dim: int) -> Rotation:
    """YaRN (Peng et al., 2023, https://arxiv.org/abs/2309.00071).

    Frequencies that turn more than beta_fast times within the original context are kept, those that turn less than
    beta_slow times divided by `factor`, with a linear ramp over the channels between.
    """
    import numpy

    theta, factor = rope.number("rope_theta"), rope.number("factor")
    old = rope.integer("original_max_position_embeddings")

    def turns(count: float) -> float:
        """The channel, as a real number, that turns `count` times within the original context."""
        return dim * math.log(old / (count * 2 * math.pi)) / (2 * math.log(theta))

    first = turns(rope.number("beta_fast", 0) or 32)
    last = turns(rope.number("beta_slow", 0) or 1)
    if rope.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = (numpy.arange(dim // 2, dtype=numpy.float32) - numpy.float32(first)) / numpy.float32(last - first)
    kept = 1 - numpy.clip(ramp, 0, 1)
    periods = _periods(rope, dim)
    freqs = 1 / (numpy.float32(factor) * periods) * (1 - kept) + 1 / periods * kept
    return Rotation(freqs.tobytes(), scale=rope.number("attention_factor", _yarn_scale(rope, factor)))


def _yarn_scale(rope: Source, factor: float) -> float:
    """YaRN's factor of cosines and sines, 0.1 ln(factor) + 1, or DeepSeek's quotient of two such (mscale)."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    one, every = rope.number("mscale", 0), rope.number("mscale_all_dim", 0)
    return scale(one) / scale(every) if one and every else scale(1.0)


def _longrope(rope: Source, dim: int, max_seq: int) -> Rotation:
    """LongRoPE (Ding et al., 2024, https://arxiv.org/abs/2402.13753): each frequency is divided by a factor of its own.

    There are two lists of factors, for contexts up to the original length and for longer ones.
    """
    import numpy

    old = rope.integer("original_max_position_embeddings")
    factor = rope.number("factor", max_seq / old)
    scale = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
    periods, tables = _periods(rope, dim), []
    for key in ("short_factor", "long_factor"):
        factors = rope.get(key)
        if (
            not isinstance(factors, list)
            or len(factors) != dim // 2
            or not all(type(f) in (int, float) for f in factors)
        ):
            raise rope.error(f"has no {key} of {dim // 2} numbers in its config")
        tables.append((1 / (numpy.array(factors, numpy.float32) * periods)).tobytes())
    return Rotation(tables[0], tables[1], old, rope.number("attention_factor", scale))
