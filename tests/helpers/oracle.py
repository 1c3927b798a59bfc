"""What the package must compute, written again in numpy and plain Python: slow, short, and sharing no code with it."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from helpers.writers import rope_freqs

# ---- the transformer -------------------------------------------------------------------------------------------------

ACTS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_erf": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


class Outputs(NamedTuple):
    """What a forward computes.

    logits: (tokens, vocabulary), or None without a head.
    hidden: (tokens, dim) each: the stream before layer 0, after every layer, and after the final norm.
    maps: attention's probabilities, (heads, tokens, tokens) for each layer.
    """

    logits: np.ndarray | None
    hidden: list[np.ndarray]
    maps: list[np.ndarray]


def forward(cfg, weights, tokens, **options):
    return run(cfg, weights, tokens, **options).logits


def run(cfg, weights, tokens, *, activations=lambda x: x, kv=lambda x, what: x):
    """Runs a model over a text in float64.

    activations: a function that rounds the inputs of every matrix. kv: one that rounds a "query", "key" or "value".
    Rotary pairs are channels (2i, 2i + 1) of the first rotary_dim of a head, rotated as complex numbers.
    """
    return _Transformer(cfg, weights, activations, kv).run(np.asarray(tokens))


class _Transformer:
    def __init__(self, cfg, weights, activations, kv):
        self.cfg, self.activations, self.kv = cfg, activations, kv
        self.w = {name: values.astype(np.float64) for name, values in weights.items()}

    def run(self, tokens):
        cfg = self.cfg
        x = self.norm(self.embedded(tokens), "embed_norm")
        hidden, maps = [x], []
        for i in range(cfg.n_layers):
            x, probabilities = self.layer(i, x, tokens)
            hidden.append(x)
            maps.append(probabilities)
        x = self.norm(x, "final_norm")
        return Outputs(self.logits(x) if cfg.head else None, [*hidden, x], maps)

    def layer(self, i, x, tokens):
        cfg, layer = self.cfg, f"layers.{i}"
        before = x if cfg.norm_after else self.norm(x, f"{layer}.attn_norm")
        out, probabilities = self.attention(i, before, tokens)
        out = self.norm(self.product(out, f"{layer}.attn.wo"), f"{layer}.post_attn_norm")
        if cfg.parallel:
            h = self.norm(x, f"{layer}.ffn_norm") if f"{layer}.ffn_norm" in self.w else before
            return x + cfg.residual_scale * (out + self.ffn(h, f"{layer}.ffn")), probabilities
        x = x + cfg.residual_scale * out
        x = self.norm(x, f"{layer}.attn_norm") if cfg.norm_after else x
        h = x if cfg.norm_after else self.norm(x, f"{layer}.ffn_norm")
        out = self.experts(h, layer) if cfg.layer_moe(i) else self.ffn(h, f"{layer}.ffn")
        x = x + cfg.residual_scale * self.norm(out, f"{layer}.post_ffn_norm")
        return self.norm(x, f"{layer}.ffn_norm") if cfg.norm_after else x, probabilities

    def logits(self, x):
        cfg, w = self.cfg, self.w
        if "head.dense" in w:
            x = self.norm(ACTS[cfg.act](self.product(x, "head.dense")), "head.norm")
        logits = self.activations(x) @ w["head" if "head" in w else "embed"].T + w.get("head.bias", 0)
        logits *= cfg.logit_scale
        return cfg.logit_softcap * np.tanh(logits / cfg.logit_softcap) if cfg.logit_softcap else logits

    # ---- parts

    def product(self, x, name, pick=()):
        return self.activations(x) @ self.w[name][pick].T + self.w.get(f"{name}.bias", 0)

    def centered(self, x):
        if self.cfg.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.cfg.norm_eps)

    def norm(self, x, name):
        return self.centered(x) * self.w[name] + self.w.get(f"{name}.bias", 0) if name in self.w else x

    def ffn(self, x, prefix, pick=()):
        hidden = ACTS[self.cfg.act](self.product(x, f"{prefix}.w1", pick))
        if self.cfg.gated:
            hidden = hidden * self.product(x, f"{prefix}.w3", pick)
        return self.product(hidden, f"{prefix}.w2", pick)

    def experts(self, x, layer):
        cfg, w = self.cfg, self.w
        scores = x @ w[f"{layer}.router"].T
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        out = np.zeros_like(x)
        if f"{layer}.ffn.w1" in w:
            out = self.ffn(x, f"{layer}.ffn")
            if f"{layer}.ffn.gate" in w:
                out /= 1 + np.exp(-x @ w[f"{layer}.ffn.gate"].T)
        for row in range(len(x)):
            best = np.argsort(-p[row], kind="stable")[: cfg.n_experts_used]
            share = p[row, best] / (p[row, best].sum() if cfg.moe_renormalize else 1)
            for s, e in zip(share, best, strict=True):
                out[row] += s * self.ffn(x[row : row + 1], f"{layer}.experts", e)[0]
        return out

    def embedded(self, ids):
        cfg = self.cfg
        x = self.w["embed"][ids] * cfg.embed_scale
        if cfg.mask_token >= 0:  # fair-esm: token dropout
            masked = ids == cfg.mask_token
            x[masked] = 0
            x *= (1 - 0.15 * 0.8) / (1 - masked.mean())
        return x + self.w["positions"][: len(ids)] if cfg.positions else x

    def heads(self, x, i, name, n):
        y = self.product(x, f"layers.{i}.attn.w{name}")
        weight = self.w.get(f"layers.{i}.attn.{name}_norm")
        if self.cfg.qk_norm == "row" and weight is not None:
            y = self.centered(y) * weight
        y = y.reshape(len(x), n, self.cfg.head_dim)
        if self.cfg.qk_norm == "head" and weight is not None:
            y = self.centered(y) * weight.reshape(n, self.cfg.head_dim)
        return y

    def rotated(self, y, i):
        r, table = self.cfg.rotary_dim, self.cfg.layer_rope(i)
        if not table:
            return y
        angles = np.outer(np.arange(len(y)), rope_freqs(self.cfg, ("", "rope.freqs", "rope.freqs_local")[table]))
        turns = (self.cfg.rope_scale if table == 1 else 1.0) * np.exp(1j * angles)[:, None, :]
        turned = (y[..., 0:r:2] + 1j * y[..., 1:r:2]) * turns
        out = y.copy()
        out[..., 0:r:2], out[..., 1:r:2] = turned.real, turned.imag
        return out

    def attention(self, i, x, tokens):
        """Attention of layer i: outputs (tokens, heads * head_dim) and probabilities (heads, tokens, tokens)."""
        cfg, at, shared = self.cfg, np.arange(len(x)), self.cfg.n_heads // self.cfg.n_kv_heads
        q = self.rotated(self.heads(x, i, "q", cfg.n_heads), i) * cfg.attn_scale
        k = self.rotated(self.heads(x, i, "k", cfg.n_kv_heads), i)
        v = self.heads(x, i, "v", cfg.n_kv_heads)
        # kv may turn or round channels together, so they must be in the core's order: pairs half a rotary_dim apart.
        half = np.arange(cfg.rotary_dim).reshape(-1, 2).T.reshape(-1)
        order = np.concatenate([half, np.arange(cfg.rotary_dim, cfg.head_dim)])
        q, k = (
            self.kv(x[..., order], what)[..., np.argsort(order)].astype(np.float64)
            for x, what in ((q, "query"), (k, "key"))
        )
        v = self.kv(v, "value").astype(np.float64)
        seen = at <= at[:, None] if cfg.causal else np.ones((len(x), len(x)), bool)
        if window := cfg.layer_window(i):
            seen = seen & (np.abs(at[:, None] - at) < window)
        scores = np.einsum("thc,shc->hts", q, np.repeat(k, shared, axis=1))
        if cfg.attn_softcap:
            scores = cfg.attn_softcap * np.tanh(scores / cfg.attn_softcap)
        scores = np.where(seen, np.where(tokens == cfg.pad_token, -1e30, scores), -np.inf)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        return np.einsum("hts,shc->thc", p, np.repeat(v, shared, axis=1)).reshape(len(x), -1), p


class _Recorder(_Transformer):
    """A transformer that keeps what its matrices are multiplied with."""

    def __init__(self, cfg, weights):
        super().__init__(cfg, weights, lambda x: x, lambda x, what: x)
        self.seen = {}

    def product(self, x, name, pick=()):
        self.seen.setdefault((name, None if isinstance(pick, tuple) else int(pick)), []).append(x)
        return super().product(x, name, pick)


def inputs(cfg, weights, texts):
    """What each matrix is multiplied with over the texts: (name, expert or None) -> (rows, n), in any order."""
    recorder = _Recorder(cfg, weights)
    for tokens in texts:
        recorder.run(np.asarray(tokens))
    return {key: np.concatenate(rows) for key, rows in recorder.seen.items()}


def attend(q, keys, values, seen):
    """Attention in float64: row r of q attends to the first seen[r] keys and values."""
    scores = q.astype(np.float64) @ keys.astype(np.float64).T
    scores = np.where(np.arange(len(keys)) < np.asarray(seen)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ values.astype(np.float64)


# ---- number formats and panels (csrc/fastllm.h) ----------------------------------------------------------------------

GROUP, ROWS = 32, 16


def bf16_bits(x):
    """bf16 as uint16: f32 rounded to nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_round(x):
    return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)


def _padded(w, rows, columns):
    d, n = w.shape
    return np.pad(w, ((0, -d % rows), (0, -n % columns)))


def q8(w):
    """int8 values (d, groups, 32) and f16 scales (d, groups): of nine scales, from max / 127 to 4 % more, the first of
    least squared error, summed up in f32 column after column; values rounded to nearest even.

    If a subnormal scale was rounded down so far that the largest weight would be clipped by more than half a step, the
    next larger f16 is the scale.
    """
    groups = _padded(w, 1, GROUP).reshape(len(w), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    scales, least = None, np.full(largest.shape, np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        for i in range(9):
            factor = (np.float32(1) + np.float32(0.005) * np.float32(i)) / np.float32(127)
            tried = (largest * factor).astype(np.float16)
            step = tried.astype(np.float32)[..., None]
            inverse = np.where(step > 0, np.float32(1) / step, np.float32(0))
            errors = groups - np.clip(np.rint(groups * inverse), -127, 127) * step
            total = np.zeros_like(largest)
            for k in range(GROUP):
                total = errors[..., k] * errors[..., k] + total
            scales = tried if scales is None else np.where(total < least, tried, scales)
            least = np.where(total < least, total, least)
    short = scales.astype(np.float32) * np.float32(127.5) < largest
    scales[short] = np.nextafter(scales[short], np.float16(np.inf))
    steps = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
    return np.clip(np.rint(groups / steps), -127, 127).astype(np.int8), scales


def dequantized(values, scales, n):
    """The weights (d, n) that values (d, groups, 32) and scales (d, groups) stand for."""
    w = values.astype(np.float32) * scales.astype(np.float32)[..., None]
    return w.reshape(len(values), -1)[:, :n]


def rounded(dtype, w):
    """The f32 values of weights that were stored as dtype."""
    if dtype == "q8":
        return dequantized(*q8(w), w.shape[1])
    return {"f32": np.copy, "f16": lambda x: x.astype(np.float16).astype(np.float32)}.get(dtype, bf16_round)(w)


def q8_activations(x):
    """Activations as an int8 product sees them: in groups of 32, a value that exceeds 5 times the root mean square of
    the group, when all are rounded to multiples of it / 127, stays as it is. The others are rounded so by the largest
    of them."""
    groups = _padded(x, 1, GROUP).reshape(-1, GROUP).astype(np.float32)
    sizes = np.abs(groups)
    squares = (_int8(groups)[0].astype(np.float64) ** 2).sum(axis=1)
    outlier = (squares < 20645) & (squares > 0)  # 127^2 * 32 / 5^2
    at, rest = sizes.argmax(axis=1)[outlier], groups.copy()
    rest[outlier, at] = 0
    codes, steps = _int8(rest)
    seen = codes.astype(np.float64) * steps
    seen[outlier, at] = groups[outlier, at]
    return seen.reshape(len(x), -1)[:, : x.shape[1]]


def _int8(groups):
    """Groups [groups, 32] of f32 in steps of each one's largest / 127, and the steps [groups, 1]; f32 throughout."""
    largest = np.abs(groups).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 1e-30)
    return np.rint(groups * inverse), np.where(largest > 1e-30, largest / np.float32(127), 0)


def panels(dtype, w):
    """The bytes of matrix w (d, n), packed in panels of 16 rows."""
    if dtype == "q8":
        values, scales = q8(w)
        return int8_panels(values, scales)
    bits = {"f32": lambda x: x, "f16": lambda x: x.astype(np.float16), "bf16": bf16_bits}[dtype](w)
    tall = _padded(bits, ROWS, GROUP)
    return tall.reshape(-1, ROWS, tall.shape[1]).transpose(0, 2, 1).tobytes()


def int8_panels(values, scales):
    """The bytes of int8 panels: a panel's f16 scales, padded to 64 bytes, then tiles of 16 rows x 4 columns."""
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
    """The ids of run.c's encode(), BOS first.

    A text begins as characters, or as bytes where the vocabulary lacks a character. Then the neighbours whose joined
    text has the best score are merged, the leftmost pair first, until no pair is in the vocabulary.
    """
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


def damped(x):
    """x^T x of inputs x (tokens, n), plus a hundredth of its mean diagonal on the diagonal, as calibration adds."""
    h = x.astype(np.float64).T @ x
    return h + 0.01 * np.trace(h) / len(h) * np.eye(len(h))


def sparsegpt(w, h, share, *, block=128, damping=0.01):
    """w (d, n) pruned by H (n, n) = the sum of x x^T over its inputs, as algorithm 1 of the paper has it, in float64.

    Frantar and Alistarh, 2023, https://arxiv.org/abs/2301.00774: the inverse's Cholesky factor, an update of all later
    columns for each column, inside a block at once, and of the rest of the matrix after the block. share: of each
    block, over all rows; None for two of each four neighbours. Inputs that are always zero have weights of zero.
    """
    w, h, n = w.astype(np.float64), h.copy(), len(h)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * np.diag(h).mean() * np.eye(n)
    r = np.linalg.cholesky(np.linalg.inv(h)).T  # H^-1 = r^T r, r upper triangular
    for begin in range(0, n, block):
        end = min(begin + block, n)
        errors, gone = np.zeros((len(w), end - begin)), np.zeros((len(w), end - begin), bool)
        if share is not None:
            costs = (w[:, begin:end] / np.diag(r)[begin:end]) ** 2
            gone.flat[np.argsort(costs, axis=None, kind="stable")[: round(share * costs.size)]] = True
        for k in range(begin, end):
            if share is None and k % 4 == 0:
                costs = (w[:, k : k + 4] / np.diag(r)[k : k + 4]) ** 2
                np.put_along_axis(gone, np.argsort(costs, axis=1, kind="stable")[:, :2] + k - begin, True, axis=1)
            kept = np.where(gone[:, k - begin], 0, w[:, k])
            errors[:, k - begin] = (w[:, k] - kept) / r[k, k]
            w[:, k:end] -= np.outer(errors[:, k - begin], r[k, k:end])
            w[:, k] = kept
        w[:, end:] -= errors @ r[begin:end, end:]
    return w
