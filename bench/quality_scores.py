"""How far one model is from another. Imports only numpy, because every engine runs it in a Python of its own."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Model(Protocol):
    def logits(self, text: list[int], /) -> NDArray[np.float32]:
        """The logits after every token: (tokens, vocabulary)."""


def compare(exact: Model, other: Model, texts: list[list[int]]) -> tuple[float, float, float]:
    """KL(exact || other) in nats, the other's perplexity, and the share of positions with the same likeliest token."""
    kl, loss, same = [], [], []
    for text in texts:
        p, q = exact.logits(text), other.logits(text)
        for i in range(0, len(text), 32):
            a, b = _log_softmax(p[i : i + 32]), _log_softmax(q[i : i + 32])
            kl.append((np.exp(a) * (a - b)).sum(axis=1))
            same.append(a.argmax(axis=1) == b.argmax(axis=1))
            following = np.array(text[i + 1 : i + 33])
            loss.append(-b[np.arange(len(following)), following])
    return (
        float(np.concatenate(kl).mean()),
        float(np.exp(np.concatenate(loss).mean())),
        float(np.concatenate(same).mean()),
    )


def answers(model: Model, prompts: list[list[int]], stop: list[int]) -> list[list[int]]:
    """The 16 likeliest tokens after each prompt, one after the other, or those up to one of `stop`."""
    found = []
    for prompt in prompts:
        text = list(prompt)
        while len(text) < len(prompt) + 16 and (len(text) == len(prompt) or text[-1] not in stop):
            text.append(int(model.logits(text)[-1].argmax()))
        found.append(text[len(prompt) :])
    return found


def equal(exact: list[list[int]], other: list[list[int]]) -> int | None:
    """How many answers are the same; None if there are none."""
    return sum(a == b for a, b in zip(exact, other, strict=True)) if exact else None


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(axis=1, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=1, keepdims=True))
