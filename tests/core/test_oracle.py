"""The core computes what numpy computes in double precision, up to rounding."""

import numpy as np
import pytest

from fastllm import _core
from helpers import oracle, writers
from helpers.architectures import ARCHITECTURES

CONFIGS = {
    "odd": writers.config(40, 57, 4, 2, 27),
    "one_kv_head": writers.config(60, 172, 10, 1, 27),
    "many_heads": writers.config(80, 33, 40, 1, 50),
    "wide_head": writers.config(70, 40, 1, 1, 100, n_layers=1),
    "half_rotates": writers.config(64, 96, 4, 4, 27, rotary_dim=8),
    "none_rotates": writers.config(64, 96, 4, 2, 27, rotary_dim=0),
}


def case(name, seed=11, length=140):
    cfg = CONFIGS[name]
    rng = np.random.default_rng(seed)
    weights = writers.random_weights(cfg, seed, tied=name == "odd")
    return cfg, weights, rng.integers(0, cfg.vocab_size, length).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_f32(name):
    cfg, weights, tokens = case(name)
    model = writers.core_model(cfg, weights, "f32")
    found = writers.logits(model, tokens, cfg.vocab_size)
    assert np.abs(found - oracle.forward(cfg, weights, tokens)).max() < 1e-4


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["odd", "one_kv_head"])
def test_halves(name, dtype):
    """f16 and bf16 weights: the error is that of f32 sums over the rounded weights, no more."""
    cfg, weights, tokens = case(name)
    stored = {k: oracle.rounded(dtype, w) if w.ndim == 2 else w for k, w in weights.items()}
    model = writers.core_model(cfg, weights, dtype)
    found = writers.logits(model, tokens, cfg.vocab_size)
    assert np.abs(found - oracle.forward(cfg, stored, tokens)).max() < 1e-4
    # Against the unrounded weights the difference is larger, so the check above would notice a wrong dtype.
    assert np.abs(found - oracle.forward(cfg, weights, tokens)).max() > 1e-3


def test_f16_keys_and_values():
    cfg, weights, tokens = case("one_kv_head")
    model = writers.core_model(cfg, weights, "f32", kv_dtype="f16")
    found = writers.logits(model, tokens, cfg.vocab_size)
    exact = oracle.forward(cfg, weights, tokens)
    rounded = oracle.forward(cfg, weights, tokens, kv=lambda x, what: x if what == "query" else x.astype(np.float16))
    # Some keys round to the other f16 neighbour in f32 than in float64: an error of 2^-11 each, but they are few.
    assert np.abs(found - rounded).max() < 0.5 * np.abs(found - exact).max() < 0.01


def turned(x, most):
    """x (.., channels) times Walsh-Hadamard matrices of unit length, each as large as `most` and what is left allow."""
    blocks, at = [], 0
    while at < x.shape[-1]:
        h = np.ones((1, 1))
        while 2 * len(h) <= min(most, x.shape[-1] - at):
            h = np.kron([[1, 1], [1, -1]], h)
        blocks.append(x[..., at : at + len(h)] @ h / np.sqrt(len(h)))
        at += len(h)
    return np.concatenate(blocks, axis=-1)


def rounded_groups(x, most, widest):
    """x (.., channels) in integers of -most to most, by groups of 32 channels, the largest in up to `widest` steps."""
    padded = np.pad(x, [*((0, 0),) * (x.ndim - 1), (0, -x.shape[-1] % 32)])
    groups = padded.reshape(*x.shape[:-1], -1, 32)
    largest = np.maximum(np.abs(groups).max(axis=-1, keepdims=True), 1e-30)
    near = [np.clip(np.rint(groups / largest * s), -most, most) * largest / s for s in range(most, widest + 1)]
    return nearest(near, groups).reshape(padded.shape)[..., : x.shape[-1]]


def nearest(candidates, x):
    """Of each row of x (.., channels) the candidate with the least squared error, the first of equals."""
    errors = np.stack([((y - x) ** 2).sum(axis=-1) for y in candidates])
    chosen = errors.argmin(axis=0)
    return np.take_along_axis(np.stack(candidates), chosen[None, ..., None], axis=0)[0]


def rounded_value(x, bits):
    """x (.., channels) in int8 with one scale, or in 16 levels with a scale for each group of 32 channels."""
    if bits == 4 and x.shape[-1] > 32:
        return np.concatenate([rounded_value(x[..., :32], bits), rounded_value(x[..., 32:], bits)], axis=-1)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    if bits == 8:
        return np.rint(x / largest * 127) * largest / 127
    levels = np.array([6, 17, 29, 42, 56, 72, 92, 121], float)
    levels = np.concatenate([-levels[::-1], levels])
    steps = np.arange(88, 150, 8)[:, None, None, None, None]
    near = levels[np.abs(x[..., None] / largest[..., None] * steps - levels).argmin(axis=-1)] * largest / steps[..., 0]
    return nearest(near, x)


def as_stored(bits):
    """What a cache of q8 or q4 makes of queries, keys and values."""

    def kv(x, what):
        wide = 32 if what != "value" else x.shape[-1]
        y = turned(x, wide)
        if what == "value":
            y = rounded_value(y, bits)
        else:
            y = rounded_groups(y, *((31, 36) if bits == 4 and what == "key" else (127, 127)))
        return turned(y, wide)  # turned back: the matrices are symmetric, and of unit length

    return kv


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("heads", [(4, 2, 16), (10, 1, 6), (3, 3, 70), (2, 1, 96)])
def test_rounded_keys_and_values(heads, bits):
    n_heads, n_kv_heads, head_dim = heads
    cfg = writers.config(n_heads * head_dim, 172, n_heads, n_kv_heads, 27)
    weights = writers.random_weights(cfg, 5)
    tokens = np.random.default_rng(6).integers(0, cfg.vocab_size, 100).tolist()
    model = writers.core_model(cfg, weights, "f32", kv_dtype=f"q{bits}")
    found = writers.logits(model, tokens, cfg.vocab_size)
    exact = oracle.forward(cfg, weights, tokens)
    rounded = oracle.forward(cfg, weights, tokens, kv=as_stored(bits))

    def rms(x):
        return np.sqrt(np.mean(x**2))

    # Some numbers round to the other neighbour in f32 than in float64, but they are few.
    assert rms(found - rounded) < 0.25 * rms(found - exact)
    assert rms(found - exact) < (0.03 if bits == 8 else 0.3) * rms(exact)


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
@pytest.mark.parametrize("name", ["odd", "half_rotates"])
def test_int8(name, dtype):
    cfg, weights, tokens = case(name)
    stored = {key: writers.rows(writers.pack(dtype, w)) if w.ndim == 2 else w for key, w in weights.items()}
    found = writers.logits(writers.core_model(cfg, weights, dtype), tokens, cfg.vocab_size)
    exact = oracle.forward(cfg, stored, tokens)
    rounded = oracle.forward(cfg, stored, tokens, activations=oracle.q8_activations)
    spread = exact.std()
    # Rounding activations to int8 costs some percent. When the oracle rounds them too, nearly all of that is gone: what
    # is left comes from values that f32 and float64 round to different sides, a step of 1/127 each.
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.05 * spread
    assert np.sqrt(np.mean((found - rounded) ** 2)) < 0.01 * spread
    assert np.median(np.abs(found - rounded)) < 1e-4


# ---- every architecture ----------------------------------------------------------------------------------------------


def architecture(name, length=140):
    """A config, random weights and tokens, with mask and pad tokens where the config gives them a meaning."""
    cfg, optional, tied = ARCHITECTURES[name]
    rng = np.random.default_rng(len(name))
    tokens = rng.integers(0, cfg.vocab_size, length)
    tokens[[1, 40, 41, 100]] = max(cfg.mask_token, cfg.pad_token, 0)
    return cfg, writers.random_weights(cfg, 5, tied=tied, optional=optional), tokens.tolist()


def floats(buffer, *shape):
    return np.frombuffer(buffer, np.float32).reshape(shape)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """Logits, the stream after every layer, and attention maps equal the oracle's."""
    cfg, weights, tokens = architecture(name)
    model = writers.core_model(cfg, weights, "f32")
    expected = oracle.run(cfg, weights, tokens)
    n = len(tokens)
    hidden = {i: _core.Buffer(4 * n * cfg.dim) for i in range(cfg.n_layers + 2)}
    maps = {i: _core.Buffer(4 * n * n * cfg.n_heads) for i in range(cfg.n_layers)}
    logits = model.logits(n)
    sequence = _core.KVCache(model).sequence()
    model.forward([(sequence, tokens, n if cfg.head else 0)], logits, threads=2, hidden=hidden, attention=maps)
    for i, rows in enumerate(expected.hidden):
        assert np.abs(floats(hidden[i], n, cfg.dim) - rows).max() < 1e-4 * max(1, rows.std()), i
    for i, probabilities in enumerate(expected.maps):
        assert np.abs(floats(maps[i], cfg.n_heads, n, n) - probabilities).max() < 1e-4, i
    if cfg.head:
        found = writers.read_logits(model, logits, n, cfg.vocab_size)
        assert np.abs(found - expected.logits).max() < 1e-4 * max(1, expected.logits.std())


# What each architecture has beyond a plain Llama, with another value: the result must change.
SHOWS = {
    "gpt_neo": {"windows": (0, 0)},
    "neox": {"parallel": False},
    "gemma": {"attn_softcap": 0.0},
    "embedding_gemma": {"windows": (8, 0, 70)},
    "cohere": {"ropes": (1, 1)},
    "granite": {"residual_scale": 1.0},
    "longrope": {"rope_scale": 1.0},
    "bert": {"causal": True},
    "esm": {"mask_token": -1},
    "grok": {"pad_token": -1},
    "mixtral": {"moe_renormalize": False},
    "olmo2": {"qk_norm": "head"},
    "clip": {"act": "gelu_erf"},
}


@pytest.mark.parametrize("name", SHOWS)
def test_what_an_architecture_adds_shows(name):
    """Each of these settings changes the result, so the tests above would notice a core that ignored it."""
    cfg, weights, tokens = architecture(name)
    exact, other = (oracle.run(c, weights, tokens).hidden[-1] for c in (cfg, cfg._replace(**SHOWS[name])))
    assert np.abs(exact - other).max() > 1e-2 * exact.std()


def test_experts_that_are_all_the_same():
    """A mixture of experts that are all copies of one feed-forward computes that feed-forward."""
    cfg, weights, tokens = architecture("mixtral")
    dense = dict(weights)
    for i in range(cfg.n_layers):
        for name in ("w1", "w3", "w2"):
            key = f"layers.{i}.experts.{name}"
            weights[key] = np.repeat(weights[key][:1], cfg.n_experts, axis=0)
            dense[f"layers.{i}.ffn.{name}"] = weights[key][0]
            del dense[key]
        del dense[f"layers.{i}.router"]
    plain = writers.config(40, cfg.expert_dim, 4, 2, cfg.vocab_size)
    for dtype in ("f32", "q8"):
        found = writers.logits(writers.core_model(cfg, weights, dtype), tokens, cfg.vocab_size)
        expected = writers.logits(writers.core_model(plain, dense, dtype), tokens, cfg.vocab_size)
        # The experts' shares do not add up to exactly 1, so an int8 rounding may fall to another step.
        assert np.abs(found - expected).max() < (1e-4 if dtype == "f32" else 0.02)


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", [name for name, supported in _core.isas() if supported])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8"])
@pytest.mark.parametrize(("d", "n", "t"), [(1, 1, 1), (17, 33, 5), (16, 32, 12), (100, 57, 1), (130, 172, 23)])
def test_multiply(dtype, d, n, t, isa):
    rng = np.random.default_rng(d + n + t)
    w = rng.standard_normal((d, n)).astype(np.float32)
    x = rng.standard_normal((t, n)).astype(np.float32)
    out = np.full((t, -(-d // 16) * 16), np.nan, np.float32)
    writers.pack(dtype, w).multiply(x, out, isa=isa)
    stored = oracle.rounded(dtype, w).astype(np.float64)
    inputs = oracle.q8_activations(x) if dtype == "q8" else x.astype(np.float64)
    # The error bound of an f32 sum of n products: each addition rounds by at most 2^-24 of the sum so far.
    bound = (n + 4) * 2.0**-23 * (np.abs(inputs) @ np.abs(stored).T)
    if dtype == "q8":
        # 127 / max and max / 127 are rounded to f32, so a value midway between two steps may round to either.
        bound = bound + np.abs(x).max(axis=1, keepdims=True) / 127 * np.abs(stored).max(axis=1)
    assert (np.abs(out[:, :d] - inputs @ stored.T) <= bound).all()
    assert (out[:, d:] == 0).all()


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", [name for name, supported in _core.isas() if supported])
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize(("n", "head_dim", "rows"), [(1, 2, 1), (64, 6, 5), (65, 70, 3), (200, 64, 9)])
def test_attention(n, head_dim, rows, kv_dtype, isa):
    rng = np.random.default_rng(n)
    q = rng.standard_normal((rows, head_dim)).astype(np.float32)
    keys, values = rng.standard_normal((2, n, head_dim)).astype(np.float32)
    # Later keys point more and more along the queries, so that the running maximum of the online softmax keeps rising.
    keys += np.linspace(0, 1, n, dtype=np.float32)[:, None] * q[0]
    seen = [int(s) for s in np.linspace(1, n, rows)]
    out = np.empty_like(q)
    _core.attend(q, keys, values, seen, out, kv_dtype=kv_dtype, isa=isa)
    if kv_dtype == "f16":
        keys, values = (x.astype(np.float16).astype(np.float32) for x in (keys, values))
    assert np.abs(out - oracle.attend(q, keys, values, seen)).max() < 1e-5


@pytest.mark.parametrize("isa", [name for name, supported in _core.isas() if supported])
def test_attention_of_extreme_scores(isa):
    """Scores that are far apart and far from 0: one key takes all the weight, and nothing overflows or divides by 0."""
    keys = np.zeros((130, 2), np.float32)
    keys[:, 0] = np.linspace(-3e4, 3e4, 130)
    values = np.arange(260, dtype=np.float32).reshape(130, 2)
    q = np.array([[1, 0], [-1, 0], [1e-3, 0], [0, 0]], np.float32)
    out = np.empty_like(q)
    _core.attend(q, keys, values, [130] * 4, out, isa=isa)
    assert (out[:2] == values[[129, 0]]).all()
    assert np.allclose(out, oracle.attend(q, keys, values, [130] * 4), rtol=1e-5)


def test_attention_says_what_does_not_fit():
    q = np.zeros((2, 4), np.float32)
    for seen, said in (
        ([1], "shapes do not fit"),
        ([0, 1], "row 0 cannot see 0 of 3"),
        ([1, 4], "row 1 cannot see 4 of 3"),
    ):
        with pytest.raises(ValueError, match=said):
            _core.attend(q, np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32), seen, q)
