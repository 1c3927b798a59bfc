"""GGUF's block types decoded by numpy, which the core's decoding must equal bit for bit.

There is a function for each type. It takes uint8 [blocks, bytes of a block], returns f32 [blocks, values of a block],
and rounds in the same order as ggml does. A block is GGUF's: the values that share a scale.
"""

import numpy

# The 16 values that the codes of IQ4_NL and IQ4_XS stand for.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# Those of MXFP4: E2M1, doubled.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _f16(blocks, at):
    """The f16 at byte `at` of each block, as f32 [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype("f4")


def _nibbles(data, group):
    """The low halves of each `group` bytes, then their high halves: [blocks, groups, 2 * group]."""
    grouped = data.reshape(len(data), -1, group)
    return numpy.concatenate([grouped & 15, grouped >> 4], axis=2)


def _shifted(data, group, bits):
    """The fields of `bits` bits of each `group` bytes, lowest first: [blocks, groups, 8 / bits, group]."""
    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)[:, None]
    return data.reshape(len(data), -1, 1, group) >> shifts & ((1 << bits) - 1)


def _bits(data):
    """Single bits, the lowest of each byte first: [blocks, 8 * bytes]."""
    return numpy.unpackbits(data, axis=1, bitorder="little")


def _signed(values, less):
    """Unsigned numbers minus `less`, as int8."""
    return values.astype("i1") - less


def _q4_0(b):
    return _f16(b, 0) * _signed(_nibbles(b[:, 2:], 16)[:, 0], 8)


def _q4_1(b):
    return _f16(b, 0) * _nibbles(b[:, 4:], 16)[:, 0] + _f16(b, 2)


def _q5_0(b):
    return _f16(b, 0) * _signed(_nibbles(b[:, 6:], 16)[:, 0] | _bits(b[:, 2:6]) << 4, 16)


def _q5_1(b):
    return _f16(b, 0) * (_nibbles(b[:, 8:], 16)[:, 0] | _bits(b[:, 4:8]) << 4) + _f16(b, 2)


def _q8_0(b):
    return _f16(b, 0) * b[:, 2:].view("i1")


def _q2_k(b):
    scales = b[:, :16]
    q = _shifted(b[:, 16:80], 32, 2).reshape(-1, 16, 16)
    d, m = _f16(b, 80) * (scales & 15), _f16(b, 82) * (scales >> 4)
    return d[:, :, None] * q - m[:, :, None]


def _q3_k(b):
    high = _shifted(b[:, :32], 32, 1).reshape(-1, 16, 16)  # the bit that saves a value from having 4 subtracted
    q = _shifted(b[:, 32:96], 32, 2).reshape(-1, 16, 16)
    low_scales = _nibbles(b[:, 96:104], 8)[:, 0]
    high_scales = _shifted(b[:, 104:108], 4, 2).reshape(-1, 16)
    d = _f16(b, 108) * _signed(low_scales | high_scales << 4, 32)
    return d[:, :, None] * _signed(q | high << 2, 4)


def scales_and_minima(b):
    """Scales and minima of Q4_K and Q5_K, [blocks, 8, 1] each: 16 numbers of 6 bits in 12 bytes, times d and m."""
    a, b4, c = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = numpy.concatenate([a & 63, (c & 15) | a >> 6 << 4], axis=1)
    minima = numpy.concatenate([b4 & 63, c >> 4 | b4 >> 6 << 4], axis=1)
    return (_f16(b, 0) * scales)[:, :, None], (_f16(b, 2) * minima)[:, :, None]


def _q4_k(b):
    d, m = scales_and_minima(b)
    return d * _nibbles(b[:, 16:], 32).reshape(-1, 8, 32) - m


def _q5_k(b):
    d, m = scales_and_minima(b)
    high = _shifted(b[:, 16:48], 32, 1).reshape(-1, 8, 32)
    return d * (_nibbles(b[:, 48:], 32).reshape(-1, 8, 32) | high << 4) - m


def _q6_k(b):
    low = _nibbles(b[:, :128], 64).reshape(-1, 16, 16)
    high = _shifted(b[:, 128:192], 32, 2).reshape(-1, 16, 16)
    d = _f16(b, 208) * b[:, 192:208].view("i1")
    return d[:, :, None] * _signed(low | high << 4, 32)


def _iq4_nl(b):
    return _f16(b, 0) * _iq4(_nibbles(b[:, 2:], 16)[:, 0])


def _iq4_xs(b):
    low = _nibbles(b[:, 4:8], 1).reshape(-1, 8)
    high = _shifted(b[:, 2:4], 1, 2).reshape(-1, 8)
    d = _f16(b, 0) * _signed(low | high << 4, 32)
    return d[:, :, None] * _iq4(_nibbles(b[:, 8:], 16))


def _mxfp4(b):
    return (
        numpy.ldexp(numpy.float32(1), b[:, :1].astype("i4") - 128)
        * numpy.array(_E2M1, "i1")[_nibbles(b[:, 1:], 16)[:, 0]]
    )


def _iq4(q):
    return numpy.array(_IQ4, numpy.int8)[q]


DECODE = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}


# ---- what the core stores of a block -------------------------------------------------------------------------------


def _rounded(scales):
    return scales.astype("f2").astype("f4")


def _kept_q4_k(b):
    d, m = scales_and_minima(b)
    return _rounded(d) * _nibbles(b[:, 16:], 32).reshape(-1, 8, 32) + _rounded(-m)


def _kept_iq4_xs(b):
    low = _nibbles(b[:, 4:8], 1).reshape(-1, 8)
    high = _shifted(b[:, 2:4], 1, 2).reshape(-1, 8)
    d = _f16(b, 0) * _signed(low | high << 4, 32)
    return _rounded(d)[:, :, None] * _iq4(_nibbles(b[:, 8:], 16))


def _kept_q6_k(b):
    """int8: the half of a group that has the larger weights keeps its values, times a whole number."""
    low = _nibbles(b[:, :128], 64).reshape(-1, 8, 2, 16)
    high = _shifted(b[:, 128:192], 32, 2).reshape(-1, 8, 2, 16)
    q = _signed(low | high << 4, 32)
    s = _f16(b, 208)[:, :, None] * b[:, 192:208].view("i1").reshape(-1, 8, 2)
    most = abs(q.astype("f4")).max(axis=3)
    larger = (abs(s[..., 1]) * most[..., 1] > abs(s[..., 0]) * most[..., 0]).astype(int)[..., None]
    scale = numpy.take_along_axis(s, larger, 2)[..., 0]
    limit = numpy.take_along_axis(most, larger, 2)[..., 0]
    times = numpy.where(limit > 0, 127 // numpy.maximum(limit, 1), 1).astype("f4")
    step = (scale / times).astype("f2")
    short = abs(step.astype("f4")) * numpy.float32(127.5) < abs(scale) * limit
    step = numpy.where(short, (step.view("u2") + 1).astype("u2").view("f2"), step).astype("f4")[..., None]
    factor = numpy.where(step != 0, s / numpy.where(step != 0, step, 1), 0).astype("f4")
    values = numpy.clip(numpy.rint(q * factor[..., None]), -127, 127)
    return values * step[..., None]


# Where that is not DECODE's, by type: f32 [blocks, values]. Q4_K and IQ4_XS: scales and minima are rounded to f16.
KEPT = {"Q4_K": _kept_q4_k, "IQ4_XS": _kept_iq4_xs, "Q6_K": _kept_q6_k}
