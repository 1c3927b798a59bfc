"""A text written the plainest way: its prompt in one forward, then token by token, with a cache of its own."""

from fastllm import _core
from fastllm.engine.scheduler import Scheduler


def plain_text(llm, prompt, sampling, *, max_tokens, seed, stop=()):
    """The new tokens and why they end: what every other way of writing has to give too."""
    model = llm._model
    sequence, logits, sampler = _core.KVCache(model).sequence(), model.logits(), llm._sampler(sampling, seed)
    for token in prompt:
        sampler.accept(token, generated=False)
    most = llm.context - len(prompt) + 1
    most = most if max_tokens is None else min(most, max_tokens)
    tokens, part = [], list(prompt)
    while len(tokens) < most:
        model.forward([(sequence, part, 1)], logits)
        token = sampler.draw(logits)
        if token in stop:
            return tokens, "stop"
        sampler.accept(token, generated=True)
        tokens.append(token)
        part = [token]
    return tokens, "length"


def places(llm, most):
    """Has a model write at most `most` texts at once."""
    llm._scheduler = Scheduler(llm._engine, most)
    return llm._scheduler
