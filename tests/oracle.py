"""What the package should compute, written once more in numpy and plain Python: slow, short, independent of it."""

from itertools import pairwise

import numpy as np

# ---- Llama -----------------------------------------------------------------------------------------------------------


def forward(cfg, weights, tokens, *, activations=lambda x: x, kv=np.float64):
    """Logits (tokens, vocabulary) in float64.

    activations: what rounds the inputs of every matrix; kv: the type of keys and values. Rotary pairs
    are (2i, 2i + 1) of the first rotary_dim channels of a head, as complex numbers.
    """
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    t, r, heads = len(tokens), cfg.rotary_dim, cfg.n_heads
    angles = np.outer(np.arange(t), 10000.0 ** (-np.arange(0, r, 2) / max(r, 1)))
    turns = np.exp(1j * angles)[:, None, :]

    def product(x, name):
        return activations(x) @ w[name].T

    def norm(x, name):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + cfg.norm_eps) * w[name]

    def rotated(x):
        turned = (x[..., 0:r:2] + 1j * x[..., 1:r:2]) * turns
        out = x.copy()
        out[..., 0:r:2], out[..., 1:r:2] = turned.real, turned.imag
        return out

    def split(x, n):
        return x.reshape(t, n, cfg.head_dim)

    x = w["embed"][np.asarray(tokens)]
    for i in range(cfg.n_layers):
        layer = f"layers.{i}"
        h = norm(x, f"{layer}.attn_norm")
        q = rotated(split(product(h, f"{layer}.attn.wq"), heads)) * cfg.attn_scale
        k = rotated(split(product(h, f"{layer}.attn.wk"), cfg.n_kv_heads)).astype(kv)
        v = split(product(h, f"{layer}.attn.wv"), cfg.n_kv_heads).astype(kv)
        shared = heads // cfg.n_kv_heads
        out = [attend(q[:, j], k[:, j // shared], v[:, j // shared], np.arange(1, t + 1)) for j in range(heads)]
        x = x + product(np.stack(out, axis=1).reshape(t, -1), f"{layer}.attn.wo")
        h = norm(x, f"{layer}.ffn_norm")
        gate, up = product(h, f"{layer}.ffn.w1"), product(h, f"{layer}.ffn.w3")
        x = x + product(gate / (1 + np.exp(-gate)) * up, f"{layer}.ffn.w2")
    return product(norm(x, "final_norm"), "head" if "head" in w else "embed")


def attend(q, keys, values, seen):
    """Row r of q over the first seen[r] keys and values, in float64."""
    scores = q.astype(np.float64) @ keys.astype(np.float64).T
    scores = np.where(np.arange(len(keys)) < np.asarray(seen)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ values.astype(np.float64)


# ---- number formats and panels (csrc/fastllm.h) ----------------------------------------------------------------------

GROUP, ROWS = 32, 16


def bf16_bits(x):
    """Round to nearest even, as 16 bits."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_round(x):
    return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)


def _padded(w, rows, columns):
    d, n = w.shape
    return np.pad(w, ((0, -d % rows), (0, -n % columns)))


def q8(w):
    """int8 values (d, groups, 32) and f16 scales (d, groups): max / 127 rounded to nearest even.

    Where the scale is subnormal that rounding may lose more than half a step at the top: then the next one up.
    """
    groups = _padded(w, 1, GROUP).reshape(len(w), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    scales = (largest / np.float32(127)).astype(np.float16)
    short = scales.astype(np.float32) * np.float32(127.5) < largest
    scales[short] = np.nextafter(scales[short], np.float16(np.inf))
    steps = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
    return np.clip(np.rint(groups / steps), -127, 127).astype(np.int8), scales


def dequantized(values, scales, n):
    """Weights (d, n) of values (d, groups, 32) and scales (d, groups)."""
    w = values.astype(np.float32) * scales.astype(np.float32)[..., None]
    return w.reshape(len(values), -1)[:, :n]


def rounded(dtype, w):
    """What the weights are once they are stored as dtype."""
    if dtype == "q8":
        return dequantized(*q8(w), w.shape[1])
    return {"f32": np.copy, "f16": lambda x: x.astype(np.float16).astype(np.float32)}.get(dtype, bf16_round)(w)


def q8_activations(x):
    """Every group of 32 as the int8 products see it: rounded to max / 127."""
    groups = _padded(x, 1, GROUP).reshape(len(x), -1, GROUP)
    steps = np.abs(groups).max(axis=2, keepdims=True) / 127
    steps[steps == 0] = 1
    return (np.rint(groups / steps) * steps).reshape(len(x), -1)[:, : x.shape[1]]


def panels(dtype, w):
    """The bytes of matrix w (d, n) in panels of 16 rows."""
    if dtype == "q8":
        values, scales = q8(w)
        return int8_panels(values, scales)
    bits = {"f32": lambda x: x, "f16": lambda x: x.astype(np.float16), "bf16": bf16_bits}[dtype](w)
    tall = _padded(bits, ROWS, GROUP)
    return tall.reshape(-1, ROWS, tall.shape[1]).transpose(0, 2, 1).tobytes()


def int8_panels(values, scales):
    """A panel: the scales of each group's 16 rows, padded to 64 bytes; then tiles of 16 rows x 4 columns."""
    d, groups, _ = values.shape
    up = ((0, -d % ROWS), (0, 0))
    out = b""
    tall = np.pad(values, (*up, (0, 0))).reshape(-1, ROWS, groups, GROUP // 4, 4)
    for p, s in enumerate(np.pad(scales, up).reshape(-1, ROWS, groups)):
        head = s.T.tobytes()
        out += head + bytes(-len(head) % 64) + tall[p].transpose(1, 2, 0, 3).tobytes()
    return out


# ---- run.c's tokenizer -----------------------------------------------------------------------------------------------


def runc_encode(words, text):
    """run.c's encode, BOS first: characters or else bytes; then the pair of best score, the leftmost, is merged."""
    vocabulary = {}
    for i, (word, _) in enumerate(words):
        vocabulary.setdefault(word, i)
    ids = [1] + ([vocabulary[b" "]] if text else [])
    for character in text:
        blob = character.encode()
        ids += [vocabulary[blob]] if blob in vocabulary else [byte + 3 for byte in blob]
    while True:
        pairs = [vocabulary.get(words[a][0] + words[b][0]) for a, b in pairwise(ids)]
        scored = [(words[pair][1], -i) for i, pair in enumerate(pairs) if pair is not None]
        if not scored:
            return ids
        at = -max(scored)[1]
        ids[at : at + 2] = [pairs[at]]
