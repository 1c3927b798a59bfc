"""Beams of all kinds against transformers' `generate`, on tiny random models that both load: token for token.

Groups and forced words are compared where transformers still has them (4.5x).
"""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

import fastllm
from helpers.sampling import coins

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

VOCAB, MOST, ENDS = 120, 16, [7, 11]
PAD = 5  # after the end of a text, and in a group that is done, so that others would avoid it: it is forbidden to all
CLOSE = 2e-5  # two scores, or a sum of probabilities and a random number: rounding may turn them round
SHAPES = {
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    ),
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=128
    ),
}  # fmt: skip
BEAMS = {
    "num_beams": [2, 3, 5],
    "length_penalty": [0.0, 0.5, 1.0, 2.0, -1.0],
    "early_stopping": [True, False, "never"],
}
PROCESSORS = {
    "repetition_penalty": [0.8, 1.3],
    "no_repeat_ngram_size": [1, 2, 3],
    "bad_words": [((3,), (4, 5)), ((1, 2, 3), (0, 0), (8, 2))],
    "sequence_bias": [{(3,): 2.0, (4, 5): 6.0}, {(7,): 3.0}],
    "suppress_tokens": [(PAD, 2, 9)],
    "begin_suppress_tokens": [(0, 1, 2, 3)],
    "forced_eos_token_id": [7],
    "exponential_decay_length_penalty": [(3, 1.3)],
    "min_tokens": [3, 12],
    "watermark": [{"bias": 3.0, "greenlist_ratio": 0.5}],
}
FILTERS = {
    "top_h": [0.95],
    "top_k": [30, 60],
    "top_p": [0.8, 0.95],
    "min_p": [0.02],
    "typical_p": [0.9],
    "epsilon_cutoff": [3e-3],
    "eta_cutoff": [3e-3],
}


OLDER = pytest.mark.skipif(not hasattr(transformers, "BeamSearchScorer"), reason="of transformers before 5")
NEWER = pytest.mark.skipif(hasattr(transformers, "BeamSearchScorer"), reason="of transformers 5")


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """The same model in transformers, and in fastllm."""
    torch.manual_seed(1)
    model = getattr(transformers, request.param)(SHAPES[request.param]()).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0.0, 1.5 / p.shape[-1] ** 0.5)
            elif "bias" in name:
                p.normal_(0.0, 0.2)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, fastllm.load(folder, dtype="f32", kv="f32", cache=False)


class Watched:
    """Torch's topk and multinomial, as a search uses them: draws use our random numbers. `closest`: the least
    difference that has decided anything."""

    def __init__(self, seed):
        self.closest, self._coin, self._topk = 9.0, coins(seed), torch.topk

    def near(self, differences):
        self.closest = min([self.closest, *np.abs(differences)])

    def topk(self, x, k, *args, **more):
        values = np.sort(x[0].double().numpy())[::-1][: k + 1]
        if x.shape[-1] % VOCAB == 0 and x.shape[-1] > VOCAB:
            self.near(np.diff(values[values > -1e8]))
        return self._topk(x, k, *args, **more)

    def multinomial(self, probs, num_samples):
        left, drawn = probs[0].double().numpy(), []
        for _ in range(num_samples):
            if not left.any():  # ours has fewer followers then: these are never among the best
                drawn += [i for i in np.argsort(probs[0].numpy(), kind="stable") if i not in drawn][:1]
                continue
            sums, at = np.cumsum(left), next(self._coin)
            self.near(sums / sums[-1] - at)
            drawn.append(int(np.searchsorted(sums, at * sums[-1], side="right")))
            left[drawn[-1]] = 0
        return torch.tensor([drawn])

    @contextmanager
    def patched(self):
        with mock.patch.object(torch, "topk", self.topk), mock.patch.object(torch, "multinomial", self.multinomial):
            yield


def theirs(model, prompt, options, seed, **more):
    """transformers' texts and scores, and the least difference that decided anything."""
    given = {"top_k": 0, **options}
    if words := given.pop("force_words", None):
        given["force_words_ids"] = [
            [list(ids) for ids in word] if isinstance(word, list) else list(word) for word in words
        ]
    given["bad_words_ids"] = [list(words) for words in given.pop("bad_words", ())] or None
    given["sequence_bias"] = [[list(ids), bias] for ids, bias in given.pop("sequence_bias", {}).items()] or None
    given["min_new_tokens"] = given.pop("min_tokens", None)
    if (watermark := given.pop("watermark", None)) is not None:
        given["watermarking_config"] = transformers.WatermarkingConfig(**watermark)
    watched, ids = Watched(seed), torch.tensor([prompt])
    with watched.patched(), torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, eos_token_id=ENDS, pad_token_id=PAD,
            do_sample="temperature" in options, output_scores=True, return_dict_in_generate=True, **given, **more,
        )  # fmt: skip
    texts = out.sequences[:, len(prompt) :].tolist()
    cut = [text[: next((i for i, token in enumerate(text) if token in [*ENDS, PAD]), MOST)] for text in texts]
    return cut, out.sequences_scores.tolist(), watched.closest


def ours(llm, prompt, options, seed):
    given = {"top_p": 1.0, "num_return_sequences": 1, "stop": ENDS, "max_tokens": MOST} | options
    return llm.generate(prompt, seed=seed, **given)


def configuration(rng, tables, share):
    options = {name: values[rng.integers(len(values))] for name, values in BEAMS.items()}
    options |= {n: v[rng.integers(len(v))] for table in tables for n, v in table.items() if rng.random() < share}
    options.setdefault("suppress_tokens", (PAD,))
    return options | {"num_return_sequences": int(rng.integers(1, options["num_beams"] + 1))}


def compare(pair, seeds, tables, share, change=lambda options, rng: options, **more):
    """Random configurations: equal, or decided by less than rounding. Returns how many are equal."""
    model, llm = pair
    equal = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        options = change(configuration(rng, tables, share), rng)
        prompt = rng.integers(60, VOCAB, rng.integers(1, 9)).tolist()  # no forced word, which would count there
        expected, _, closest = theirs(model, prompt, options, seed, **more)
        found = ours(llm, prompt, options, seed)
        same = found == expected
        equal += same
        assert same or closest < CLOSE, (seed, options, closest)
    return equal


@NEWER
def test_beam_search(pair):
    """80 random configurations of each model."""
    assert compare(pair, range(80), [PROCESSORS], 0.25) >= 76


@NEWER
def test_beam_sampling(pair):
    def warm(options, rng):
        return {"temperature": float(rng.choice([0.7, 1.0, 1.6])), **options}

    assert compare(pair, range(1, 61), [PROCESSORS, FILTERS], 0.15, warm) >= 57


@NEWER
def test_the_course(pair):
    """Five beams, drawn, with the options of a course on controlled text generation."""
    options = {"num_beams": 5, "temperature": 1.1, "top_p": 0.9, "no_repeat_ngram_size": 3, "suppress_tokens": (PAD,)}
    equal = 0
    for seed in range(1, 21):
        expected, _, closest = theirs(pair[0], [50, 60, 70], options, seed)
        same = ours(pair[1], [50, 60, 70], options, seed) == expected
        assert same or closest < CLOSE
        equal += same
    assert equal >= 19


@OLDER
def test_groups(pair):
    """60 random configurations of diverse beams of each model."""

    def grouped(options, rng):
        groups, size = int(rng.choice([2, 3])), int(rng.choice([1, 2, 3]))
        diverse = {
            "num_beams": groups * size,
            "num_beam_groups": groups,
            "diversity_penalty": float(rng.choice([0.3, 2])),
        }
        return options | diverse | {"num_return_sequences": int(rng.integers(1, groups * size + 1))}

    assert compare(pair, range(60), [PROCESSORS], 0.2, grouped) >= 57


@OLDER
def test_forced_words(pair, monkeypatch):
    """60 random configurations of each model.

    Beams that have all words go on: there by an option that is never on, and has no effect, since a state that begins
    anew stays complete.
    """
    scorer, state = (
        transformers.ConstrainedBeamSearchScorer,
        transformers.generation.beam_constraints.ConstraintListState,
    )
    step, begin = scorer.step_sentence_constraint, state.init_state

    def pushes(self, batch, ids, scores, *rest):
        scores = scores.clone()
        scores[:, ENDS] = -np.inf  # such a beam does not go on with an end
        return step(self, batch, ids, scores, *rest, push_progress=True)

    def begins(self):
        self.completed = False
        begin(self)

    monkeypatch.setattr(scorer, "step_sentence_constraint", pushes)
    monkeypatch.setattr(state, "init_state", begins)

    def forced(options, rng):
        words = [(21, 22), (31,), [(41, 42), (43, 44, 45)], (51, 52, 53)]
        options.pop("no_repeat_ngram_size", None)  # there, forced words that it forbids take the place of others
        chosen = [words[i] for i in rng.permutation(4)[: rng.integers(1, 3)]]
        return options | {"force_words": chosen, "num_beams": int(rng.choice([3, 6])), "num_return_sequences": 1}

    assert compare(pair, range(60), [PROCESSORS], 0.1, forced) >= 57
