"""Hidden states, attention maps and embeddings equal those of a numpy transformer in float64."""

import io
import json

import numpy as np
import pytest

import fastllm
from fastllm import ContextError, OptionError, _core, cli
from fastllm.engine.engine import _BATCH
from fastllm.heads import POOLINGS, Embedding
from fastllm.weights import store
from helpers import oracle, writers

DECODER = writers.config(32, 48, 4, 2, 300, max_seq=3000)
ENCODER = writers.config(
    32, 48, 4, 4, 261, rotary_dim=0, positions=2000, max_seq=2000, causal=False, gated=False, norm="layer",
    norm_after=True, act="gelu_erf",
)  # fmt: skip
BERT = ("attn_norm", "ffn_norm", "embed_norm", "bias", "head.bias")


def saved(path, cfg, weights, **more):
    words = ("llama2.c", writers.tokenizer_bin(writers.tokenizer_words(cfg.vocab_size)))
    fields = {"bos": 1, "stop": (1,), "chat_stop": (1,), "tokenizer": words, **more}
    tensors = writers.core_tensors(cfg, weights, "f32")
    keep = {name for name, *_ in (*cfg.matrices(), *cfg.vectors())}
    store.save(path, store.Stored(cfg, {n: t for n, t in tensors.items() if n in keep}, **fields))
    return fastllm.load(path, threads=1)


@pytest.fixture(params=["decoder", "encoder"])
def model(request, tmp_path):
    cfg, optional = (DECODER, writers.LLAMA) if request.param == "decoder" else (ENCODER, BERT)
    weights = writers.random_weights(cfg, optional=optional)
    return saved(tmp_path / "model.safetensors", cfg, weights), weights


def texts(count, longest, *, vocab_size=261, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, rng.integers(1, longest)).tolist() for _ in range(count)]


def test_hidden_states_logits_and_maps(model):
    llm, weights = model
    cfg, tokens = llm.config, texts(1, 90, seed=3)[0]
    expected = oracle.run(cfg, weights, tokens)
    for layer in range(cfg.n_layers + 2):
        found = llm.hidden_states(tokens, layer)
        assert found.dtype == np.float32
        assert np.abs(found - expected.hidden[layer]).max() < 1e-4
    assert (llm.hidden_states(tokens) == llm.hidden_states(tokens, cfg.n_layers + 1)).all()
    assert np.abs(llm.logits(tokens) - expected.logits).max() < 1e-4
    for layer in range(cfg.n_layers):
        maps = llm.attentions(tokens, layer)
        assert maps.shape == (cfg.n_heads, len(tokens), len(tokens))
        assert np.abs(maps - expected.maps[layer]).max() < 1e-5


def pooled(rows, pooling):
    at = np.arange(1, len(rows) + 1)[:, None]
    ways = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1], "max": rows.max(axis=0)}
    ways |= {"weighted_mean": (rows * at).sum(axis=0) / at.sum(), "mean_sqrt_len": rows.sum(axis=0) / len(rows) ** 0.5}
    return ways[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings(model, pooling):
    llm, weights = model
    batch = texts(6, 40)
    for layer in (None, 1):
        found = llm.embed(batch, pooling=pooling, layer=layer)
        at = llm.config.n_layers + 1 if layer is None else layer
        expected = np.array([pooled(oracle.run(llm.config, weights, t).hidden[at], pooling) for t in batch])
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4
    lengths = np.linalg.norm(llm.embed(batch, pooling=pooling).astype(np.float64), axis=1, keepdims=True)
    unit = llm.embed(batch, pooling=pooling, normalize=True)
    assert np.abs(unit * lengths - llm.embed(batch, pooling=pooling)).max() < 1e-5


def test_a_batch_is_its_texts(model):
    """A text's vector has the same bits in any batch, also one that takes several forwards."""
    llm, _ = model
    batch = [*texts(30, 100, seed=1), *texts(3, _BATCH, seed=2), [5], list(range(200)) * 9]
    assert max(map(len, batch)) > _BATCH
    assert sum(map(len, batch)) > 4 * _BATCH
    together = llm.embed(batch)
    assert (together == np.concatenate([llm.embed([text]) for text in batch])).all()
    assert (llm.hidden_states(batch[-1]).astype(np.float64).mean(axis=0).astype(np.float32) == together[-1]).all()
    assert llm.embed([]).shape == (0, llm.config.dim)


def test_an_encoder_sees_all_of_a_long_text(model):
    """An encoder takes a long text in one forward: the last token changes the first's state, unlike in a decoder."""
    llm, _ = model
    one, other = [7] * 1500, [7] * 1499 + [8]
    first = [llm.hidden_states(text)[0] for text in (one, other)]
    assert (first[0] == first[1]).all() == llm.config.causal
    logits = [llm.logits(text)[0] for text in (one, other)]
    assert (logits[0] == logits[1]).all() == llm.config.causal


def test_strings(model):
    llm, _ = model
    assert llm.tokenize("the ocean")[0] == 1
    assert (llm.embed(["the ocean", "once"]) == llm.embed([llm.tokenize("the ocean"), llm.tokenize("once")])).all()


# ---- what a checkpoint says of vectors (see heads/test_sentence_transformers.py) -------------------------------------


def with_embedding(path, **values):
    weights = writers.random_weights(ENCODER, optional=BERT)
    return saved(path, ENCODER, weights, embedding=Embedding(**values)), weights


def test_poolings_one_after_the_other(tmp_path):
    llm, weights = with_embedding(tmp_path / "model", pooling=("last", "max", "cls"), steps=("pool", "normalize"))
    tokens = texts(1, 30)[0]
    rows = oracle.run(ENCODER, weights, tokens).hidden[-1]
    expected = np.concatenate([pooled(rows, how) for how in ("last", "max", "cls")])
    assert llm.embed([]).shape == (0, 96)
    assert np.abs(llm.embed([tokens])[0] - expected / np.linalg.norm(expected)).max() < 1e-5
    assert np.abs(llm.embed([tokens], normalize=False)[0] - expected).max() < 1e-4
    assert np.abs(llm.embed([tokens], pooling="cls", normalize=False)[0] - rows[0]).max() < 1e-4


def test_prompts_and_what_they_are_left_out_of(tmp_path):
    prompts = {"ask": "the ocean ", "say": ""}
    llm, weights = with_embedding(tmp_path / "a", prompts=prompts, default_prompt="ask", include_prompt=False)
    tokens, prompt = llm.tokenize("the ocean once upon"), llm.tokenize("the ocean ")
    assert tokens[: len(prompt)] == prompt
    rows = oracle.run(ENCODER, weights, tokens).hidden[-1]
    for options in ({}, {"prompt_name": "ask"}, {"prompt": "the ocean "}):
        assert np.abs(llm.embed(["once upon"], **options)[0] - rows[len(prompt) :].mean(axis=0)).max() < 1e-4
    plain = llm.embed([llm.tokenize("once upon")])
    for options in ({"prompt_name": "say"}, {"prompt": ""}):
        assert (llm.embed(["once upon"], **options) == plain).all()


@pytest.mark.parametrize("left", [False, True])
def test_long_texts(tmp_path, capsys, monkeypatch, left):
    """Long texts are an error that names them, unless truncate is given; then special tokens around a text are kept."""
    llm, _ = with_embedding(tmp_path / "model", max_tokens=9, truncate_left=left)
    long = "the ocean once upon a time the ocean once upon a time"
    bos, *ids = llm.tokenize(long)
    cut = [bos, *(ids[-8:] if left else ids[:8])]
    assert (llm.embed(["the", long], truncate=True) == llm.embed(["the", cut])).all()
    with pytest.raises(ContextError, match=r"text 1 has \d+ tokens, the model takes 9: truncate=True cuts") as error:
        llm.embed(["the", long, long])
    assert error.value.text == 1
    lines = ["the", "", *["once"] * 300, long, "a"]
    for options, code, count in (((), 2, 302), (("--truncate",), 0, 304)):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert cli.main(["embed", str(tmp_path / "model"), *options]) == code
        out, said = capsys.readouterr()
        found = np.array([json.loads(line) for line in out.splitlines()], np.float32)
        assert (found == llm.embed(lines[:count], truncate=True)).all()
        assert said.startswith("fastllm: line 303 has ") == (code == 2)
        assert ("the model takes 9: --truncate cuts\n" in said) == (code == 2)


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("pooling must be one of", lambda llm: llm.embed([[1]], pooling="median")),
        ("layer must be between 0 and 3", lambda llm: llm.embed([[1]], layer=4)),
        ("layer must be between 0 and 3", lambda llm: llm.hidden_states([1], -1)),
        ("layer must be between 0 and 1", lambda llm: llm.attentions([1], 2)),
        ("layer must be between 0 and 1", lambda llm: llm.attentions([1], True)),
        ("text 1 is empty", lambda llm: llm.embed([[1], []])),
        ("list of texts", lambda llm: llm.embed("a text")),
        ("no token id", lambda llm: llm.embed([[1], [300]])),
        ("tokens is empty", lambda llm: llm.hidden_states([])),
    ],
)
def test_mistakes(model, said, call):
    with pytest.raises(OptionError, match=said) as error:
        call(model[0])
    assert "\n" not in str(error.value)


def test_longer_than_the_context(model):
    llm, _ = model
    long = [5] * (llm.context + 1)
    for call in (lambda: llm.embed([[1], long]), lambda: llm.hidden_states(long), lambda: llm.attentions(long, 0)):
        with pytest.raises(ContextError, match=r"3,001|2,001"):
            call()


def test_encoders_do_not_write_and_headless_models_have_no_logits(tmp_path):
    encoder = saved(tmp_path / "a", ENCODER, writers.random_weights(ENCODER, optional=BERT))
    for call in (lambda: encoder.generate("the"), lambda: encoder.generate([1], stream=True)):
        with pytest.raises(OptionError, match="is an encoder"):
            call()
    cfg = ENCODER._replace(head=False)
    headless = saved(tmp_path / "b", cfg, writers.random_weights(cfg, optional=BERT))
    assert headless.embed([[1, 2]]).shape == (1, cfg.dim)
    for call in (lambda: headless.logits([1]), lambda: headless.generate([1])):
        with pytest.raises(OptionError, match="has no head"):
            call()


# ---- what LLM makes of other configs ---------------------------------------------------------------------------------


def test_a_context_chooses_the_rotary_frequencies(tmp_path):
    """LongRoPE has two sets of frequencies; a context beyond rope_switch has the second one at every position."""
    cfg = DECODER._replace(rope_switch=100, max_seq=400)
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg), "f32")
    del tensors["rope.freqs_local"]
    slow = _core.Vector((writers.rope_freqs(cfg) / 7).astype(np.float32).tobytes())

    def load(cfg, context=None, **changed):
        store.save(tmp_path / "model", store.Stored(cfg, tensors | changed, bos=1, stop=(), chat_stop=()))
        return fastllm.load(tmp_path / "model", context=context)

    tokens = texts(1, 90, seed=4)[0]
    short = load(DECODER).logits(tokens)
    long = load(DECODER, **{"rope.freqs": slow}).logits(tokens)
    assert np.abs(short - long).max() > 0.1
    both = {"rope.freqs_long": slow}
    assert load(cfg, **both).context == 100
    for context in (None, 99, 100):
        assert (load(cfg, context, **both).logits(tokens) == short).all()
    for context in (101, 400):
        assert (load(cfg, context, **both).logits(tokens) == long).all()


def test_routers_and_positions_are_not_the_weights_type(tmp_path):
    cfg = writers.config(32, 0, 4, 2, 261, n_experts=4, n_experts_used=2, expert_dim=64)
    weights = writers.random_weights(cfg)
    path = tmp_path / "model"
    tensors = writers.core_tensors(cfg, weights, "q8")
    store.save(path, store.Stored(cfg, {n: t for n, t in tensors.items() if "local" not in n}, 1, (), ()))
    llm = fastllm.load(path, dtype="q8", threads=1)
    assert llm.dtypes == ["q8"]
    assert llm._model.kv_dtype == "f16"
    experts = sum(t.nbytes for n, t in tensors.items() if ".experts." in n)
    embedding = tensors["embed"].nbytes
    assert llm.bytes_per_token == llm.file_bytes - embedding - experts // 2


def test_a_second_text():
    """The second text of a pair takes the second half of the table of positions, in any batch."""
    weights = writers.random_weights(ENCODER, optional=BERT)
    first, second = weights["positions"], writers.random_weights(ENCODER, 8, optional=BERT)["positions"]
    pairs = ENCODER._replace(second_segment=True)

    def hidden(config, table, *parts):
        model = _core.Model(config, writers.core_tensors(config, weights | {"positions": table}, "f32"), kv_dtype="f32")
        cache, count = _core.KVCache(model), sum(len(ids) for ids, _ in parts)
        out = _core.Buffer(count * config.dim * 4)
        model.forward(
            [(cache.sequence(), ids, 0) for ids, _ in parts],
            hidden={config.n_layers + 1: out},
            segments={i: second for i, (_, second) in enumerate(parts) if second is not None},
        )
        return np.frombuffer(memoryview(out), np.float32).reshape(count, -1)

    ids, both = texts(1, 60)[0], np.concatenate([first, second])
    assert (hidden(pairs, both, (ids, None)) == hidden(ENCODER, first, (ids, None))).all()
    assert (hidden(pairs, both, (ids, 0)) == hidden(ENCODER, second, (ids, None))).all()
    mixed = np.concatenate([first[:5], second[5:]])
    expected = hidden(ENCODER, mixed, (ids, None))
    found = hidden(pairs, both, ([7, 8], 1), (ids, 5), ([9], None))
    assert (found[2:-1] == expected).all()
    for config, table, at in ((ENCODER, first, 5), (pairs, both, len(ids) + 1)):
        with pytest.raises(ContextError):
            hidden(config, table, (ids, at))
