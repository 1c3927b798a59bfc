"""Contrastive search, DoLa and guidance against transformers' own generate, token for token, on tiny random models.

transformers 5 has contrastive search and DoLa no more: those tests need a version before it.
"""

import functools
import random

import pytest

import fastllm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # the models are tiny

MOST = 24  # new tokens
BEFORE_5 = pytest.mark.skipif(
    not hasattr(transformers.GenerationMixin, "_contrastive_search"), reason="transformers before 5"
)


def config(family, vocab, layers, tied):
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=layers, n_head=4, n_positions=256, tie_word_embeddings=tied
        )
    return transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=57,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )


@functools.cache
def reference(family, vocab, layers, tied, seed):
    torch.manual_seed(seed)
    kind = transformers.GPT2LMHeadModel if family == "gpt2" else transformers.LlamaForCausalLM
    model = kind(config(family, vocab, layers, tied))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() < 2:
                p.add_(torch.randn_like(p), alpha=0.25)
            else:
                p.normal_(0.0, 1.3 / p.shape[0 if family == "gpt2" else -1] ** 0.5)
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = settings.eos_token_id = None
    return model.float().eval()


@pytest.fixture
def case(tmp_path, seed, family):
    """A model, as both libraries have it, a generator of random options, and a prompt."""
    rng = random.Random(f"{family}{seed}")
    model = reference(family, rng.choice([40, 61, 150]), rng.choice([1, 2, 3, 4, 6]), rng.random() < 0.5, seed)
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=rng.choice([1, 2]))
    return model, llm, rng, some_ids(rng, llm)


def some_ids(rng, llm):
    return [rng.randrange(llm.config.vocab_size) for _ in range(rng.choice([1, 2, 7, 30, 70]))]


def history(rng, llm):
    """Random options that change logits, as both libraries call them."""
    options = {}
    if rng.random() < 0.5:
        options["repetition_penalty"] = rng.choice([1.2, 1.5, 0.9])
    if rng.random() < 0.4:
        options["no_repeat_ngram_size"] = rng.choice([2, 3, 4])
    if rng.random() < 0.3:
        options["suppress_tokens"] = [rng.randrange(llm.config.vocab_size) for _ in range(3)]
    return options


def compare(model, llm, prompt, *, ours, theirs, ends):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        return_dict_in_generate=True,
        output_scores=True,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MOST,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=ends or None,
        **theirs,
    )
    expected = out.sequences[0, len(prompt) :].tolist()
    # Where all tokens are forbidden transformers takes the first one all the same.
    possible = [bool(scores.isfinite().any()) for scores in out.scores]
    if not all(possible):
        expected = expected[: possible.index(False)]
    elif ends and expected[-1] in ends:
        expected.pop()  # fastllm's texts are without the token that ends them
    found = list(llm.generate(prompt, max_tokens=MOST, temperature=0, ignore_eos=True, stop=ends, **ours))
    assert found == expected if all(possible) else found[: len(expected)] == expected
    return len(expected)


def random_ends(rng, llm):
    return [rng.randrange(llm.config.vocab_size)] if rng.random() < 0.3 else []


CASES = pytest.mark.parametrize(("family", "seed"), [(f, s) for f in ("llama", "gpt2") for s in range(15)])


@BEFORE_5
@CASES
def test_contrastive(case):
    model, llm, rng, prompt = case
    options = {"penalty_alpha": rng.choice([0.1, 0.4, 0.6, 0.8]), "top_k": rng.choice([2, 4, 5, 8])}
    options |= history(rng, llm)
    compare(model, llm, prompt, ours=options, theirs=options, ends=random_ends(rng, llm))


@BEFORE_5
@CASES
def test_dola(case):
    model, llm, rng, prompt = case
    n = llm.config.n_layers
    some = sorted(rng.sample(range(n), rng.randint(1, n)))
    low = "high" if n == 3 else "low"  # of a tied model of 3 layers transformers finds none, and fails
    options = {"dola_layers": rng.choice([low, "high", some])} | history(rng, llm)
    compare(model, llm, prompt, ours=options, theirs=options, ends=random_ends(rng, llm))


@BEFORE_5
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
@pytest.mark.parametrize("which", ["low", "high"])
def test_dola_of_a_deep_model(tmp_path, family, tied, which):
    model = reference(family, 40, 44, tied, 3)
    model.save_pretrained(tmp_path)
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    options = {"dola_layers": which}
    compare(model, llm, [5, 9, 31], ours=options, theirs=options, ends=[])


@CASES
def test_guidance(case):
    model, llm, rng, prompt = case
    options = {"guidance_scale": rng.choice([1.5, 3.0, 0.5, 0.0, 7.0, -1.0])} | history(rng, llm)
    ours, theirs = dict(options), dict(options)
    if rng.random() < 0.6:
        negative = some_ids(rng, llm)
        ours["negative_prompt"] = negative
        theirs["negative_prompt_ids"] = torch.tensor([negative])
    compare(model, llm, prompt, ours=ours, theirs=theirs, ends=random_ends(rng, llm))
