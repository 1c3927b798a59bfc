"""Guidance, DoLa and contrastive search in numpy, from the formulas of their papers and of the transformers library."""

import math

import numpy as np


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
