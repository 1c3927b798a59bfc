"""Guidance, DoLa and contrastive search in numpy, from the formulas of their papers and of the transformers library."""

import math

import numpy as np

from helpers.sampling import buffer_of


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max()
    return x - math.log(np.exp(x).sum())


def guided(logits, other, scale):
    """Classifier-free guidance (Sanchez et al., 2023)."""
    p, q = log_softmax(logits), log_softmax(other)
    return scale * (p - q) + q


def divergence(logits, other):
    """The Jensen-Shannon divergence of two predictions."""
    p, q = log_softmax(logits), log_softmax(other)
    mean = (np.exp(p) + np.exp(q)) / 2
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return float((mean * (log_mean - p)).sum() + (mean * (log_mean - q)).sum()) / 2


def dola_scores(logits, exits):
    """DoLa (Chuang et al., 2023): against the exit that diverges most, among tokens of a tenth of the largest p."""
    far = exits[int(np.argmax([divergence(logits, e) for e in exits]))]
    p, q = log_softmax(logits), log_softmax(far)
    return np.where(p < p.max() + math.log(0.1), -math.inf, p - q)


def dola_layers(which, n_layers, tied):
    """The candidate layers that transformers 4.53 takes for "low" and "high"."""
    first = (2 if n_layers > 2 else 1 if n_layers == 2 else 0) if tied else 0
    if which == "high":
        return list(range(n_layers // 2 if n_layers <= 40 else n_layers - 20, n_layers, 2))
    if first == n_layers // 2:
        return [first]
    return list(range(first, n_layers // 2 if n_layers <= 40 else 20, 2))


def degeneration(context, rows):
    """The penalties of contrastive search (Su et al., 2022): of each row the largest cosine with one of the context."""
    a, b = (np.asarray(x, np.float64) for x in (context, rows))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return (b @ a.T).max(axis=1)


# ---- whole texts, the plainest way: every step computes all of its text anew


class _Plain:
    """A text and its sampler. Scores are numpy's; a sampler then draws from them as from logits."""

    def __init__(self, llm, prompt, sampling, seed):
        self.llm, self.text, self.tokens = llm, list(prompt), []
        self.sampler = llm._sampler(sampling, seed)
        for token in prompt:
            self.sampler.accept(token, generated=False)

    def logits(self, text):
        return self.llm.logits(text)[-1].astype(np.float64)

    def take(self, token):
        self.sampler.accept(token, generated=True)
        self.tokens.append(token)
        self.text.append(token)

    def draw(self, scores):
        self.take(self.sampler.draw(buffer_of(np.maximum(scores, -1e30))))


def plain_guidance(llm, prompt, sampling, *, scale, negative, count, seed):
    plain, other = _Plain(llm, prompt, sampling, seed), negative or prompt[-1:]
    for _ in range(count):
        plain.draw(guided(plain.logits(plain.text), plain.logits(other + plain.tokens), scale))
    return plain.tokens


def plain_dola(llm, prompt, sampling, *, layers, head, bias, count, seed):
    """head, bias: the model's [vocabulary, dim] and [vocabulary]."""
    plain = _Plain(llm, prompt, sampling, seed)
    for _ in range(count):
        exits = [head @ llm.hidden_states(plain.text, layer)[-1] + bias for layer in layers]
        plain.draw(dola_scores(plain.logits(plain.text), exits))
    return plain.tokens


def plain_contrastive(llm, prompt, *, alpha, k, count, penalty=1.0):
    """With a repetition penalty (Keskar et al., 2019) on logits. Greedy."""
    text = list(prompt)
    for _ in range(count):
        logits = llm.logits(text)[-1].astype(np.float64)
        seen = sorted(set(text))
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        p = np.exp(log_softmax(logits))
        best = np.argsort(-p, kind="stable")[:k]
        hidden = [llm.hidden_states([*text, int(token)]) for token in best]
        worth = [
            (1 - alpha) * p[t] - alpha * degeneration(h[:-1], h[-1:])[0] for t, h in zip(best, hidden, strict=True)
        ]
        text.append(int(best[int(np.argmax(worth))]))
    return text[len(prompt) :]
