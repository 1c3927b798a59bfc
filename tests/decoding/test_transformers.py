"""Draws against transformers' own processors, in its own order: from random logits, text by text."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastllm import _core
from fastllm.decoding import Sampling, Watermark
from fastllm.errors import TokenizerError
from fastllm.llm.steering import Phrases
from helpers.sampling import buffer_of, coins

torch = pytest.importorskip("torch")
generation = pytest.importorskip("transformers.generation")
watermarking = pytest.importorskip("transformers.generation.watermarking")

VOCAB, MOST = 300, 24  # MOST: new tokens; the last is forced where an option says so
ENDS = [7, 11]


def processors(options, prompt):
    """transformers' processors for options, in its order."""
    given = {"do_sample": options.get("temperature") != 0, "top_k": 0, "eos_token_id": ENDS} | options
    given["bad_words_ids"] = [list(w) for w in given.pop("bad_words", ())] or None
    bias = {**given.pop("sequence_bias", {}), **{(t,): b for t, b in given.pop("logit_bias", {}).items()}}
    given["sequence_bias"] = [[list(ids), float(b)] for ids, b in bias.items()] or None
    given["min_new_tokens"] = given.pop("min_tokens", None)
    if (watermark := given.pop("watermark", None)) is not None:
        given["watermarking_config"] = generation.WatermarkingConfig(**watermark)
    if not given["do_sample"]:
        del given["temperature"]
    config = generation.GenerationConfig(max_length=len(prompt) + MOST, **given)
    config._eos_token_tensor = torch.tensor(ENDS)
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace(vocab_size=VOCAB)),
        _merge_criteria_processor_list=lambda processors, more: processors,
    )
    return generation.GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=len(prompt), device="cpu"
    )


def sampler(options, seed):
    options = {"top_p": 1.0} | options
    least = options.pop("min_tokens", 0)
    sampling = Sampling(**options)
    steering = Phrases(VOCAB, TokenizerError("none")).sampler_options(sampling, ENDS, min_tokens=least, max_tokens=MOST)
    return sampling, _core.Sampler(VOCAB, sampling, seed=seed, **steering)


def compare(options, seed, spread=2.0):
    """Asserts that a text's draws are those that transformers' scores give; returns how many were compared."""
    rng = np.random.default_rng(seed)
    prompt = [1, *rng.integers(0, 12, 14).tolist()]
    sampling, ours = sampler(options, seed)
    ours.accept_all(prompt)
    theirs, text, coin, compared = processors(options, prompt), list(prompt), coins(seed), 0
    for _ in range(MOST):
        logits = (spread * rng.standard_normal(VOCAB)).astype(np.float32)
        logits[:12] += 4  # so that texts repeat themselves
        token = ours.draw(buffer_of(logits))
        scores = theirs(torch.tensor([text]), torch.tensor(logits)[None])[0].double().numpy()
        if sampling.temperature == 0:
            best = np.sort(scores)
            if best[-1] - best[-2] > 1e-4:
                assert token == int(scores.argmax())
                compared += 1
        else:
            weights, at = np.exp(scores - scores.max()), next(coin)
            assert weights[token] > 0
            order = np.lexsort((np.arange(VOCAB), -weights)) if filtered(sampling) else np.arange(VOCAB)
            sums = np.cumsum(weights[order]) / weights.sum()
            if not 0 < sampling.typical_p < 1 and np.abs(sums - at).min() > 2e-5:  # drawn by typicality otherwise
                assert token == order[int(np.searchsorted(sums, at, side="right"))]
                compared += 1
        ours.accept(token, generated=True)
        text.append(token)
    return compared


def filtered(sampling):
    return (
        any((sampling.top_h, sampling.top_k, sampling.min_p, sampling.epsilon_cutoff, sampling.eta_cutoff))
        or 0 < sampling.top_p < 1
        or sampling.watermark is not None
    )


FILTERS = {
    "temperature": [0.6, 1.0, 1.7],
    "top_h": [0.3, 0.6, 0.95],
    "top_k": [1, 5, 60],
    "top_p": [0.3, 0.9, 0.99],
    "min_p": [0.02, 0.2],
    "epsilon_cutoff": [3e-3, 0.02, 0.4],
    "eta_cutoff": [3e-3, 0.05, 0.4],
}
PROCESSORS = {
    "repetition_penalty": [0.8, 1.3],
    "no_repeat_ngram_size": [1, 2, 3],
    "bad_words": [((3,), (4, 5)), ((1, 2, 3), (0, 0), (8, 2))],
    "sequence_bias": [{(3,): 2.0, (4, 5): 6.0}, {(2, 1): -5.5, (1, 1): 3.5, (6, 1): 1.5}],
    "logit_bias": [{9: 3.5, 10: -2.0}],
    "suppress_tokens": [[2, 5, 9]],
    "begin_suppress_tokens": [[0, 1, 2, 3, 4, 5]],
    "forced_eos_token_id": [7, 6],
    "exponential_decay_length_penalty": [(5, 1.2), (3, 0.8), (0, 1.5)],
    "min_tokens": [3, 20],
    "watermark": [{}, {"bias": 5.0, "greenlist_ratio": 0.5}, {"bias": 4.0, "seeding_scheme": "selfhash"}],
}
ALL = FILTERS | PROCESSORS


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ALL.items() for value in values])
def test_each(name, value, spread):
    assert compare({name: value}, int(10 * spread), spread) > MOST // 2


@pytest.mark.parametrize("seed", range(1, 301))
def test_any_together(seed):
    """Random options of each kind, and their order."""
    rng = np.random.default_rng(seed)
    names = [name for name in ALL if rng.random() < 0.35]
    options = {name: ALL[name][rng.integers(len(ALL[name]))] for name in names}
    if rng.random() < 0.2:
        options["temperature"] = 0
    assert compare(options, seed, float(rng.choice([0.5, 2.0, 4.0]))) > MOST // 2


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.95])
def test_typical(mass):
    """Only tokens that it leaves are drawn; in which order is ours, by typicality."""
    for seed in range(1, 9):
        compare({"typical_p": mass}, seed)


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_watermarks_lists(scheme, width):
    """Whether tokens are green is the same in both libraries, also for keys and ids whose products overflow."""
    for key, vocab in ((15485863, 300), (2**40 + 9, 1000), (1, 50)):
        mark = Watermark(hashing_key=key, seeding_scheme=scheme, context_width=width, greenlist_ratio=0.4)
        theirs = generation.logits_process.WatermarkLogitsProcessor(
            vocab, "cpu", hashing_key=key, seeding_scheme=scheme, context_width=width, greenlist_ratio=0.4
        )
        rng = np.random.default_rng(width)
        for _ in range(5):
            context = rng.integers(0, vocab, width + (scheme == "lefthash")).tolist()
            prefix = context[:-1] if scheme == "lefthash" else context
            green = set(theirs._get_greenlist_ids(torch.tensor(prefix)).tolist())
            assert mark.lists(vocab).green(context[:-1], context[-1]) == (context[-1] in green)


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("repeated", [False, True])
def test_detectors_agree(scheme, repeated):
    rng = np.random.default_rng(5)
    ids = rng.integers(2, 40, 120).tolist()
    fields = {"seeding_scheme": scheme, "context_width": 2}
    theirs = generation.WatermarkDetector(
        SimpleNamespace(is_encoder_decoder=False, bos_token_id=1, vocab_size=VOCAB),
        "cpu",
        generation.WatermarkingConfig(**fields),
        ignore_repeated_ngrams=repeated,
    )(torch.tensor([ids]), return_dict=True)
    found = Watermark(**fields).detect(ids, VOCAB, ignore_repeated_ngrams=repeated)
    assert (found.tokens, found.green) == (theirs.num_tokens_scored[0], theirs.num_green_tokens[0])
    assert found.z_score == pytest.approx(theirs.z_score[0], abs=1e-9)
    assert found.p_value == pytest.approx(theirs.p_value[0], abs=1e-6)
    assert found.found == theirs.prediction[0]
