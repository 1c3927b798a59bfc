"""The numeric contract: one result to the bit, for any instruction set, thread count, batch and chunking.

Every assertion is ==. The reference is the scalar build with one thread and the whole prompt at once.
"""

import numpy as np
import pytest

import fastllm
from fastllm import _core
from fastllm.engine import engine
from helpers import writers
from helpers.architectures import ARCHITECTURES
from helpers.writers import SMALL

ISAS = [name for name, supported in _core.isas() if supported]

# Name -> a config with sizes that no tile divides, and a text's length: more than one or two pages of 64 positions.
MODELS = {
    "odd": (writers.config(40, 57, 4, 2, 27), 70),  # heads of 10
    "one_kv_head": (writers.config(60, 172, 10, 1, 27, n_layers=1), 131),  # heads of 6
    "many_heads": (writers.config(80, 33, 40, 1, 50, n_layers=1), 67),  # more queries per key head than a task has
    "wide_head": (writers.config(70, 172, 1, 1, 100, n_layers=1), 66),
    "whole_groups": (writers.config(64, 96, 4, 2, 27), 131),
}
TYPES = [(name, dtype) for name in MODELS for dtype in _core.TYPES]
# (threads, tokens at once). There are kernels for tiles of 2, 4 and 8 tokens; 3 and 7 tokens take several of them.
WAYS = [(1, None), (1, 1), (1, 3), (2, 7), (3, 64), (8, None)]


def built(name, dtype, kv_dtype, isa, seed=1):
    cfg, length = MODELS[name]
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, length).tolist()
    model = writers.core_model(cfg, writers.random_weights(cfg, seed), dtype, kv_dtype=kv_dtype, isa=isa)
    return model, cfg.vocab_size, tokens


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_instruction_sets_threads_and_chunks(name, dtype, kv_dtype):
    model, size, tokens = built(name, dtype, kv_dtype, "scalar")
    expected = writers.logits(model, tokens, size)
    assert np.isfinite(expected).all()
    for isa in ISAS:
        model, _, _ = built(name, dtype, kv_dtype, isa)
        assert model.isa == isa
        for threads, chunk in WAYS:
            found = writers.logits(model, tokens, size, chunk=chunk, threads=threads)
            assert (found == expected).all(), (isa, threads, chunk)


@pytest.mark.parametrize("dtype", ["f32", "q8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, dtype):
    """Logits, the stream and attention maps of every architecture. Encoders take a text at once."""
    cfg, optional, tied = ARCHITECTURES[name]
    weights = writers.random_weights(cfg, 3, tied=tied, optional=optional)
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, cfg.vocab_size, n).tolist() for n in (131, 1, 18)]
    results = set()
    for isa in ISAS:
        model = writers.core_model(cfg, weights, dtype, kv_dtype="f16", isa=isa)
        for threads, chunk in WAYS if cfg.causal else ((1, None), (3, None)):
            results.add(b"".join(everything(model, cfg, texts, threads, chunk)))
    assert len(results) == 1


def everything(model, cfg, texts, threads, chunk):
    """Last logits, streams and attention maps of texts: each alone, `chunk` tokens at a time, or all in one forward."""
    wanted = int(cfg.head)
    if chunk is None:
        cache, n = _core.KVCache(model), sum(map(len, texts))
        hidden = {i: _core.Buffer(4 * n * cfg.dim) for i in range(cfg.n_layers + 2)}
        sizes = [4 * len(t) ** 2 * cfg.n_heads for t in texts]
        maps = {1: _core.Buffer(sum(sizes))}
        logits = model.logits(len(texts))
        model.forward(
            [(cache.sequence(), t, wanted) for t in texts], logits, threads=threads, hidden=hidden, attention=maps
        )
        streams = [np.frombuffer(b, np.float32).reshape(n, -1) for b in hidden.values()]
        for i, text in enumerate(texts):
            before = sum(map(len, texts[:i]))
            yield from (rows[before : before + len(text)].tobytes() for rows in streams)
            yield bytes(memoryview(maps[1]))[sum(sizes[:i]) : sum(sizes[: i + 1])]
            yield writers.read_logits(model, logits, len(texts), cfg.vocab_size)[i].tobytes() if wanted else b""
        return
    for text in texts:
        sequence, n = _core.KVCache(model).sequence(), len(text)
        streams = [np.empty((0, cfg.dim), np.float32) for _ in range(cfg.n_layers + 2)]
        full = np.zeros((cfg.n_heads, n, n), np.float32)
        logits = model.logits()
        for at in range(0, n, chunk):
            part = text[at : at + chunk]
            hidden = {i: _core.Buffer(4 * len(part) * cfg.dim) for i in range(cfg.n_layers + 2)}
            end = at + len(part)
            maps = {1: _core.Buffer(4 * cfg.n_heads * len(part) * end)}
            model.forward([(sequence, part, wanted)], logits, threads=threads, hidden=hidden, attention=maps)
            for i, buffer in hidden.items():
                streams[i] = np.concatenate([streams[i], np.frombuffer(buffer, np.float32).reshape(-1, cfg.dim)])
            full[:, at:end, :end] = np.frombuffer(maps[1], np.float32).reshape(cfg.n_heads, len(part), end)
        yield from (rows.tobytes() for rows in streams)
        yield full.tobytes()
        yield writers.read_logits(model, logits, 1, cfg.vocab_size).tobytes() if wanted else b""


@pytest.mark.parametrize("isa", ISAS)
def test_every_thread_count(isa):
    model, size, tokens = built("odd", "q8", "f16", isa)
    expected = writers.logits(model, tokens, size)
    for threads in range(2, 9):
        assert (writers.logits(model, tokens, size, threads=threads) == expected).all()
        found = writers.logits(model, tokens[:9], size, chunk=1, threads=threads)
        assert (found == expected[:9]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "dtype"), [("odd", "q8"), ("many_heads", "f32"), ("whole_groups", "bf16")])
def test_ragged_batches(name, dtype, isa):
    """Several texts in one forward, some of them with tokens in the cache already, give what each gives alone."""
    model, size, _ = built(name, dtype, "f16", isa)
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, size, n).tolist() for n in (1, 130, 63, 2, 65, 17)]
    expected = [writers.logits(model, text, size) for text in texts]
    cache = _core.KVCache(model)
    sequences = [cache.sequence() for _ in texts]
    found = [np.empty((0, size), np.float32) for _ in texts]
    # Each forward takes the next few tokens of every unfinished text; how many changes from step to step.
    step = 0
    while any(len(rows) < len(text) for rows, text in zip(found, texts, strict=True)):
        spans, takers = [], []
        for i, text in enumerate(texts):
            part = text[len(found[i]) :][: 1 + (7 * i + 13 * step) % 40]
            if part:
                spans.append((sequences[i], part, len(part)))
                takers.append(i)
        total = sum(len(part) for _, part, _ in spans)
        buffer = model.logits(total)
        model.forward(spans, buffer, threads=1 + step % 4)
        rows = writers.read_logits(model, buffer, total, size)
        for i, (_, part, _) in zip(takers, spans, strict=True):
            found[i] = np.concatenate([found[i], rows[: len(part)]])
            rows = rows[len(part) :]
        step += 1
    for a, b in zip(found, expected, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "window"), [(9, 3, 8, 0), (4, 4, 10, 0), (7, 1, 18, 530)])
def test_past_runs(heads, kv_heads, head_dim, window, kv_dtype):
    """Contexts of several runs of 512 positions: one text, a few tokens at a time, several texts at once.

    Depending on these, threads share the runs of a text or each thread takes all runs of some heads.
    """
    cfg = writers.config(heads * head_dim, 32, heads, kv_heads, 27, n_layers=2, max_seq=1300, windows=(window, 0))
    weights = writers.random_weights(cfg, 8)
    rng = np.random.default_rng(9)
    texts = [rng.integers(0, 27, n).tolist() for n in (1100, 600, 70)]
    results = set()
    for isa, threads in [(isa, 2) for isa in ISAS] + [(ISAS[-1], 1), (ISAS[-1], 5)]:
        model = writers.core_model(cfg, weights, "f32", kv_dtype=kv_dtype, isa=isa)
        cache = _core.KVCache(model)
        sequences = [cache.sequence() for _ in texts]
        model.forward([(s, t[:-8], 0) for s, t in zip(sequences, texts, strict=True)], threads=threads)
        alone = writers.append(model, sequences[0], texts[0][-8:-7], 27, threads=threads)
        few = writers.append(model, sequences[0], texts[0][-7:-4], 27, threads=threads)
        logits = model.logits(3)
        spans = [(s, t[s.length :][:1], 1) for s, t in zip(sequences, texts, strict=True)]
        model.forward(spans, logits, threads=threads)
        rows = writers.read_logits(model, logits, 3, 27)
        results.add(b"".join(x.tobytes() for x in (alone, few, rows)))
    whole = writers.logits(model, texts[0][:-3], 27)
    assert (np.concatenate([alone, few, rows[:1]]) == whole[-5:]).all()
    assert len(results) == 1


def test_only_the_wanted_logits():
    """A row of logits does not depend on which other rows are asked for."""
    model, size, tokens = built("odd", "f32", "f32", None)
    expected = writers.logits(model, tokens, size)
    cache = _core.KVCache(model)
    texts, wanted = [tokens, tokens[:5], tokens[:33]], [3, 0, 33]
    buffer = model.logits(sum(wanted))
    model.forward([(cache.sequence(), *part) for part in zip(texts, wanted, strict=True)], buffer)
    rows = writers.read_logits(model, buffer, sum(wanted), size)
    assert (rows == np.concatenate([expected[-3:], expected[:33]])).all()
    sequence = cache.sequence()
    model.forward([(sequence, tokens[:-1], 0)])
    assert (writers.append(model, sequence, tokens[-1:], size) == expected[-1:]).all()


def test_a_failed_forward_leaves_the_sequence_as_it_was():
    model, size, tokens = built("odd", "q8", "f16", None)
    expected = writers.logits(model, tokens, size)
    sequence = _core.KVCache(model).sequence()
    writers.append(model, sequence, tokens[:20], size)
    for broken, error in (([5, size], fastllm.OptionError), ([1] * 1000, fastllm.ContextError)):
        with pytest.raises(error):
            model.forward([(sequence, broken, 0)])
    assert sequence.length == 20
    assert (writers.append(model, sequence, tokens[20:], size) == expected[20:]).all()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8", "q4"])
def test_truncated_and_continued(kv_dtype):
    """A page still holds keys and values of the text that had it before; no other text may read them."""
    model, size, _ = built("one_kv_head", "f32", kv_dtype, None)
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, size, 140).tolist() for _ in range(3)]
    sequence = _core.KVCache(model).sequence()
    writers.append(model, sequence, texts[0], size)
    for keep in (139, 128, 127, 65, 64, 63, 1, 0):
        sequence.truncate(keep)
        text = texts[0][:keep] + texts[1 + keep % 2][keep:]
        expected = writers.logits(model, text, size)
        assert (writers.append(model, sequence, text[keep:], size, chunk=50) == expected[keep:]).all()
        sequence.truncate(keep)
        writers.append(model, sequence, texts[0][keep:], size)


def test_keys_and_values_beyond_f16():
    """f16 keys and values saturate: an infinity at a masked position would be multiplied by 0 and give NaN."""
    cfg, length = MODELS["odd"]
    weights = writers.random_weights(cfg, 1)
    for name in ("layers.0.attn.wk", "layers.0.attn.wv"):
        weights[name] = weights[name] * np.float32(1e6)
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, length).tolist()
    results = set()
    for isa in ISAS:
        model = writers.core_model(cfg, weights, "f32", kv_dtype="f16", isa=isa)
        for threads, chunk in WAYS:
            found = writers.logits(model, tokens, cfg.vocab_size, chunk=chunk, threads=threads)
            assert np.isfinite(found).all()
            results.add(found.tobytes())
    assert len(results) == 1


def test_no_threads_is_one():
    model, size, tokens = built("odd", "q8", "f16", None)
    assert (writers.logits(model, tokens, size, threads=0) == writers.logits(model, tokens, size)).all()


# ---- the same through fastllm.load -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8"])
def test_texts_and_logits(write_model, monkeypatch, dtype):
    path = write_model()
    prompt = "the ocean once" * 8
    results = set()
    for isa in ISAS:
        monkeypatch.setenv("FASTLLM_ISA", isa)
        for threads, chunk in ((1, 256), (2, 1), (4, 7)):
            monkeypatch.setattr(engine, "CHUNK", chunk)
            llm = fastllm.load(path, dtype=dtype, threads=threads)
            assert llm.isa == isa
            text = llm.generate(prompt, max_tokens=20, seed=3)
            results.add((text, llm.logits(llm.tokenize(prompt)).tobytes()))
    assert len(results) == 1


def test_version_2(write_model, monkeypatch):
    path = write_model(writers.config(64, 96, 4, 2, 300), version=2)
    tokens = list(range(1, 140))
    results = set()
    for isa in ISAS:
        monkeypatch.setenv("FASTLLM_ISA", isa)
        for threads in (1, 3):
            results.add(fastllm.load(path, threads=threads).logits(tokens).tobytes())
    assert len(results) == 1


def test_what_is_cached_changes_nothing(write_model):
    path = write_model()
    reusing = fastllm.load(path, threads=1)
    begin = list(range(40, 130))
    # Prompts share all, the middle of a page, or none of what earlier ones began with; some are shorter, some longer.
    prompts = [begin, begin[:50], [*begin[:70], 7, 8], begin, [9, *begin], [*begin, 3], begin[:1]]
    hits = []
    for prompt in prompts:
        options = {"max_tokens": 12, "temperature": 0.8, "seed": 5}
        stream = reusing.generate(prompt, stream=True, **options)
        text = "".join(stream)
        hits.append(stream.generation.cached)
        assert text == fastllm.load(path, threads=1).generate(prompt, **options)
    # All that is shared is reused, but for the last token of a prompt, whose logits are needed.
    assert hits == [0, 49, 70, 89, 0, 90, 0]


def test_multiply_on_extremes():
    """int8 products at the ends of their range. -128 is among them: packing never writes it, but files may hold it."""
    rng = np.random.default_rng(7)
    values = rng.choice(np.array([-128, -127, 0, 127], np.int8), (48, 64))
    scales = rng.standard_normal(48 * 2).astype("<f2")
    blocks = np.concatenate([scales[:, None].view(np.uint8), values.reshape(-1, 32).view(np.uint8)], axis=1)
    matrix = _core.pack("q8", 48, 64, "Q8_0", blocks.tobytes())
    x = rng.choice(np.array([-1, 1, 0.5], np.float32), (9, 64))
    x[3] = 0
    x[4, :32] = 1e-38
    x[5] *= 1e30
    results = set()
    for isa in ISAS:
        for threads in (1, 3):
            out = np.empty((9, 48), np.float32)
            matrix.multiply(x, out, threads=threads, isa=isa)
            results.add(out.tobytes())
    assert len(results) == 1
    # Values and scales have few bits, apart from the division by 127, so float64 gives the exact result.
    weights = (values.reshape(-1, 32) * scales.astype(np.float64)[:, None]).reshape(48, 64)
    assert np.allclose(out[:3], x[:3] @ weights.T, rtol=1e-2, atol=1e-2 * np.abs(weights).sum(1).max())
    assert (out[3] == 0).all()


def test_config_of_the_fixture_is_odd():
    """The sizes of SMALL, which tests above write to files, are no multiples of a tile's either."""
    assert SMALL.dim % 16
    assert SMALL.hidden_dim % 16
    assert SMALL.head_dim % 16
