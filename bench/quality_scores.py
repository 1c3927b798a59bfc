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


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(axis=1, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=1, keepdims=True))
