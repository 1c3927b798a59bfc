"""Matrices as others quantize and save them: written from the formats' descriptions, not by the package.

Each function takes a float matrix w [outputs, inputs] and returns its tensors by the last part of their names, as numpy
arrays (uint8 for FP8), and the matrix that they stand for.
"""

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours lies in each of a word's places, the lowest first


def words(values, bits):
    """Integers [rows, count] as uint32 words along rows, each value in the next bits of the row."""
    rows = []
    for row in values:
        number = sum(int(v) << bits * i for i, v in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> 32 * i & 0xFFFFFFFF for i in range(count)])
    return np.array(rows, np.uint32)


def levels(w, bits, group_of, groups, symmetric):
    """Integers [outputs, inputs], scales and zeros [outputs, groups], scales in f16."""
    scales, zeros = np.zeros((len(w), groups), np.float16), np.zeros((len(w), groups), np.int64)
    q = np.zeros(w.shape, np.int64)
    top = (1 << bits) - 1
    for g in range(groups):
        part = w[:, group_of == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, g] = (high - low) / top + 1e-4
        zeros[:, g] = (top + 1) // 2 if symmetric else np.clip(np.round(-low / scales[:, g]), 1, top)
        q[:, group_of == g] = np.clip(
            np.round(part / scales[:, g, None].astype(np.float32)) + zeros[:, g, None], 0, top
        )
    return q, scales, zeros


def spread(q, scales, zeros, group_of):
    return scales[:, group_of].astype(np.float32) * (q - zeros[:, group_of]).astype(np.float32)


def groups_of(inputs, size, order=None):
    """Each input's group: consecutive ones, or by the order in which act-order quantizes them."""
    size = inputs if size == -1 else size
    index = np.arange(inputs) // size
    if order is not None:
        index = index[np.argsort(order)]
    return index, -(-inputs // size)


def gptq(w, *, bits=4, group_size=32, desc_act=False, symmetric=False, v2=False, seed=0):
    order = np.random.default_rng(seed).permutation(w.shape[1]) if desc_act else None
    group_of, groups = groups_of(w.shape[1], group_size, order)
    q, scales, zeros = levels(w, bits, group_of, groups, symmetric)
    tensors = {
        "qweight": words(q, bits).T.astype(np.uint32).view(np.int32),
        "qzeros": words(zeros.T - (0 if v2 else 1), bits).view(np.int32),
        "scales": scales.T,
        "g_idx": group_of.astype(np.int32),
    }
    return tensors, spread(q, scales, zeros, group_of)


def awq(w, *, group_size=32):
    group_of, groups = groups_of(w.shape[1], group_size)
    q, scales, zeros = levels(w, 4, group_of, groups, False)

    def packed(values):
        """[rows, outputs]: eight outputs a word, in AWQ's order."""
        return words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), 4).view(np.int32)

    return {"qweight": packed(q.T), "qzeros": packed(zeros.T), "scales": scales.T}, spread(q, scales, zeros, group_of)


def mlx(w, *, bits=4, group_size=32):
    parts = w.reshape(len(w), -1, group_size)
    low = parts.min(-1).astype(np.float16)
    scales = ((parts.max(-1) - low) / ((1 << bits) - 1) + 1e-4).astype(np.float16)
    q = np.round((parts - low[..., None].astype(np.float32)) / scales[..., None].astype(np.float32))
    q = np.clip(q, 0, (1 << bits) - 1).astype(np.int64)
    exact = q * scales[..., None].astype(np.float32) + low[..., None].astype(np.float32)
    return {"weight": words(q.reshape(w.shape), bits), "scales": scales, "biases": low}, exact.reshape(w.shape)


def packed_int(w, *, bits=4, group_size=32, symmetric=True, desc_act=False):
    """compressed-tensors' pack-quantized."""
    order = np.random.default_rng(1).permutation(w.shape[1]) if desc_act else None
    group_of, groups = groups_of(w.shape[1], group_size, order)
    q, scales, zeros = levels(w, bits, group_of, groups, symmetric)
    tensors = {
        "weight_packed": words(q, bits).view(np.int32),
        "weight_scale": scales,
        "weight_shape": np.array(w.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T).view(np.int32)
    if desc_act:
        tensors["weight_g_idx"] = group_of.astype(np.int32)
    return tensors, spread(q, scales, zeros, group_of)


def int8(w, *, asymmetric=False):
    """compressed-tensors' int-quantized: a scale for each row."""
    zeros = np.full((len(w), 1), 3 if asymmetric else 0, np.int8)
    scales = (np.abs(w).max(1, keepdims=True) / 120).astype(np.float32)
    q = np.clip(np.round(w / scales) + zeros, -128, 127).astype(np.int8)
    tensors = {"weight": q, "weight_scale": scales} | ({"weight_zero_point": zeros} if asymmetric else {})
    return tensors, (q.astype(np.float32) - zeros) * scales
