"""NaN and infinity: memory stays safe, the text that has them ends in an error, and other texts stay as they are."""

import json
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, NumericError, TokenizerError, _core
from fastllm.decoding import Sampling
from fastllm.llm import LLM
from fastllm.weights import store
from fastllm.weights.convert import convert
from fastllm.weights.store import Stored
from helpers import writers
from helpers.calls import run

BROKEN = 7  # the token whose embedding is infinite, or becomes so when it is scaled
GREEDY = Sampling(temperature=0)


def built(cfg, weights, dtype="f32", **options):
    """An LLM without a tokenizer from weights that load() would refuse, because they are not finite."""
    stored = Stored(cfg, writers.core_tensors(cfg, weights, dtype), bos=1, stop=(), chat_stop=())
    return LLM(stored, TokenizerError("none"), threads=1, context=None, path=Path("here.bin"), **options)


def broken(dtype="f32", **options):
    """An LLM with one broken token: its embedding overflows when it is scaled, or when its norm squares it."""
    cfg = writers.config(64, 96, 4, 2, 61, embed_scale=10.0 if dtype == "f32" else 1e15)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][BROKEN, :] = 3e38 if dtype == "f32" else 60000
    return built(cfg, weights, dtype, **options)


@pytest.mark.parametrize("count", [1, 12, 200])
@pytest.mark.parametrize("used", [1, 3, 8])
def test_experts_of_scores_that_are_no_numbers(used, count):
    """With NaN scores a token must still choose different experts.

    If each token chose one expert `used` times, that expert's rows would not fit the worker's scratch.
    """
    cfg = writers.config(64, 0, 4, 2, 61, n_experts=16, n_experts_used=used, expert_dim=256, embed_scale=10.0)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][BROKEN, :] = 3e38
    llm = built(cfg, weights)
    before = llm.logits([1, 2, 3] * 20)
    assert np.isnan(llm.logits([BROKEN] * count)).all()
    assert (llm.logits([1, 2, 3] * 20) == before).all()


@pytest.mark.parametrize("kv", ["f32", "f16", "q8", "q4"])
def test_a_token_does_not_change_rows_before_it(kv):
    """The broken token's values are infinite. Earlier rows must skip them: even a weight of 0 would give NaN."""
    cfg = writers.config(64, 96, 4, 2, 61, n_layers=1)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][:, 0] = 0
    weights["embed"][BROKEN, :] = np.eye(64)[0] * 8
    weights["layers.0.attn_norm"][:] = 1
    weights["layers.0.attn.wv"][0, 0] = 3e38
    llm = built(cfg, weights, kv=kv)
    together, alone = llm.logits([1, 2, 3, BROKEN]), llm.logits([1, 2, 3])
    assert np.isfinite(alone).all()
    assert (together[:3] == alone).all()
    assert not np.isfinite(together[3]).any()


@pytest.mark.parametrize("window", [3, 64, 70])
def test_a_window_leaves_it_behind(window):
    """Rows whose window no longer reaches the broken token are finite again, in chunks of any size."""
    cfg = writers.config(64, 96, 4, 2, 61, n_layers=1, windows=(window,), embed_scale=10.0)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][BROKEN, 5] = 3e38
    model = writers.core_model(cfg, weights, "f32")
    tokens = [1 + i % 5 for i in range(150)]
    tokens[20] = BROKEN
    whole = writers.logits(model, tokens, 61)
    finite = np.isfinite(whole).all(axis=1)
    assert finite[:20].all()
    assert not finite[20 : 20 + window].any()
    assert finite[20 + window :].all()
    for threads, chunk in ((1, 1), (1, 7), (3, 64), (2, 33)):
        found = writers.logits(model, tokens, 61, chunk=chunk, threads=threads)
        assert np.array_equal(found, whole, equal_nan=True), (threads, chunk)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
def test_a_text_ends_in_an_error(dtype):
    llm = broken(dtype)
    with pytest.raises(
        NumericError, match=r"here\.bin computes numbers that are not finite.* position 2 .*layer"
    ) as caught:
        llm.generate([1, 2, BROKEN], temperature=0)
    assert ("layer 0 (0 is the embedding)" in str(caught.value)) == (dtype == "f32")
    assert not isinstance(caught.value, CheckpointError)
    generation = llm.start([BROKEN], GREEDY, max_tokens=5, seed=1)
    with pytest.raises(NumericError):
        list(generation)
    assert (generation.finish_reason, generation.tokens) == ("error", [])
    assert list(generation) == []
    assert llm.generate([1, 2], max_tokens=3, temperature=0) == broken(dtype).generate(
        [1, 2], max_tokens=3, temperature=0
    )


def test_the_others_of_a_batch_go_on():
    llm = broken()
    prompts = [[1, 2], [BROKEN], [3], [4, BROKEN, 5], [6]]
    alone = [llm.generate(p, max_tokens=8, seed=3) if BROKEN not in p else None for p in prompts]
    with pytest.raises(NumericError, match=r"prompt 1 \(and 1 more\): here\.bin") as caught:
        llm.generate_batch(prompts, max_tokens=8, seed=3)
    assert caught.value.texts == alone
    texts = [llm.start(p, GREEDY, max_tokens=4, seed=1) for p in prompts]
    llm._scheduler.run(texts)
    assert [g.finish_reason for g in texts] == ["length", "error", "length", "error", "length"]
    assert [type(g.error) for g in texts] == [type(None), NumericError, type(None), NumericError, type(None)]


def test_a_text_that_comes_upon_it():
    """A model that writes the broken token itself: the tokens before it are given to the caller."""
    llm = broken()
    first = llm.generate([1, 2], max_tokens=1, temperature=0)
    # Whatever the first text's first token is, the next one is the broken token.
    cfg = writers.config(64, 96, 4, 2, 61, embed_scale=10.0)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][first[0], :] = 3e38
    llm = built(cfg, weights)
    generation = llm.start([1, 2], GREEDY, max_tokens=5, seed=1)
    with pytest.raises(NumericError, match="position 2 "):
        list(generation)
    assert generation.tokens == first


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_wrong_guesses_and_broken_drafts_do_not_matter(temperature):
    """If guessed tokens or the draft's logits are not finite, the text is the one without guesses."""
    llm = broken()
    prompt = [1, 2, 3, BROKEN - 1, 1, 2, 3]
    plain = llm.generate(prompt, max_tokens=12, seed=4, temperature=temperature)
    cfg = writers.config(64, 96, 4, 2, 61, embed_scale=10.0)
    weights = writers.random_weights(cfg, 0)
    weights["embed"][:] = 3e38
    draft = built(cfg, weights)
    assert llm.generate(prompt, max_tokens=12, seed=4, temperature=temperature, draft=draft) == plain

    class Guesser:
        def begin(self, prompt):
            pass

        def propose(self, tokens, most, others):
            return [BROKEN] * min(most, 3)

        def end(self, tokens):
            pass

    generation = llm.start(prompt, Sampling(temperature=temperature), max_tokens=12, seed=4)
    generation.proposer = Guesser()
    assert list(generation) == plain
    assert generation.proposed > 0
    assert generation.accepted == 0


def test_vectors_of_numbers_that_are_none():
    llm = broken()
    with pytest.raises(NumericError, match="the vector of text 1"):
        llm.embed([[1, 2], [BROKEN]])
    assert np.isfinite(llm.embed([[1, 2]])).all()


def spoiled(path, name, value):
    """Overwrites one number of a vector in a converted file, as a faulty disk might."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    at = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    data[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["layers.0.attn_norm", "final_norm", "rope.freqs"])
def test_vectors_are_checked_where_they_are_read(tmp_path, name, value):
    cfg = writers.config(64, 96, 4, 2, 61)
    path = tmp_path / "model.safetensors"
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, 0), "q8")
    tensors.pop("rope.freqs_local")
    store.save(path, Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    fastllm.load(path, threads=1)
    spoiled(path, name, value)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors .*{name} has a value that is not finite"):
        fastllm.load(path, threads=1)


@pytest.mark.parametrize("out", [{"dtype": "q8"}, {"format": "llama2c"}, {"format": "llama2c", "version": 2}])
@pytest.mark.parametrize("name", ["layers.1.ffn_norm", "layers.0.ffn.w1"])
def test_no_conversion_of_numbers_that_are_none(tmp_path, name, out):
    cfg = writers.config(64, 96, 4, 2, 61)
    weights = writers.random_weights(cfg, 0)
    weights[name].ravel()[3] = np.nan
    source, target = tmp_path / "model.bin", tmp_path / "out.bin"
    source.write_bytes(writers.v0(cfg, weights))
    with pytest.raises(CheckpointError, match=f"{name}.*not finite"):
        convert(source, target, threads=1, **out)
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


def test_the_command_line_says_so(tmp_path):
    """Loading does not read mapped matrices, so a broken one is found while writing: one sentence says so."""
    cfg = writers.config(64, 96, 4, 2, 300)
    path = tmp_path / "model.safetensors"
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, 0), "q8")
    tensors.pop("rope.freqs_local")
    words = writers.tokenizer_bin(writers.tokenizer_words(300))
    store.save(path, Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    (tmp_path / "tokenizer.bin").write_bytes(words)
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    at = 8 + size + header["layers.1.ffn.w2"]["data_offsets"][0]
    data[at : at + 2] = b"\x00\x7e"  # a scale
    path.write_bytes(data)
    done = run(
        "import sys; from fastllm.cli import main; sys.exit(main(['run', sys.argv[1], '-i', 'the', '-n', '20']))", path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{path} computes numbers that are not finite" in done.stderr
    assert "the output of layer 2" in done.stderr


def test_samplers_are_asked_no_more_than_their_rows():
    """A sampler checks its own row of logits only: a NaN in the row beside it is another text's."""
    ours = _core.Sampler(20, GREEDY, seed=1)
    rows = _core.Buffer(2 * 32 * 4)
    numbers = np.frombuffer(rows, np.float32).reshape(2, 32)
    numbers[0, :20] = np.arange(20)
    numbers[0, 20:] = np.nan
    numbers[1] = np.nan
    assert ours.draw(rows, 0) == 19
    with pytest.raises(NumericError):
        ours.draw(rows, 1)


@pytest.mark.parametrize("value", [1e39, 1e-46, np.inf, np.nan])
@pytest.mark.parametrize("name", ["logit_softcap", "embed_scale", "norm_eps"])
def test_numbers_that_the_core_would_round_to_others(name, value):
    """Config values that overflow or vanish in f32 are refused: a softcap of 0 is none, a factor of infinity is NaN."""
    with pytest.raises(CheckpointError, match=name):
        writers.config(64, 96, 4, 2, 61, **{name: value})
