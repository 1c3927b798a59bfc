"""The sampler in plain Python: which tokens it may draw, and which one it draws for a seed."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


def coins(seed):
    """The random numbers of a seed: xorshift64* (Vigna, 2016); 24 of its bits give a float in [0, 1), as in run.c.

    https://vigna.di.unimi.it/ftp/papers/xorshift.pdf
    """
    state, mask = seed, (1 << 64) - 1
    while True:
        state ^= state >> 12
        state ^= state << 25 & mask
        state ^= state >> 27
        yield ((state * 0x2545F4914F6CDD1D & mask) >> 32 >> 8) / 16777216


def adjusted(logits, options, prompt, text):
    """Logits with biases, then penalties, in the order of Sampling's docstring, in f32."""
    out = logits.copy()
    for token, bias in options.logit_bias.items():
        out[token] += np.float32(bias)
    penalty = np.float32(options.repetition_penalty)
    for token in {*prompt, *text}:
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    for token in set(text):
        out[token] -= np.float32(options.presence_penalty) + np.float32(text.count(token)) * np.float32(
            options.frequency_penalty
        )
    return out


@dataclass
class Walk:
    """The tokens that may be drawn, in the order in which their weights are summed up to the random number.

    Weights are probabilities times some constant.
    """

    tokens: list[int]
    weights: list[float]
    sure: bool = True  # every filter's decision is clear enough that rounding to f32 cannot change it

    def until(self, enough, strict):
        """Keeps the fewest first tokens whose total weight reaches `enough` or, if strict, exceeds it."""
        total = 0.0
        for i, weight in enumerate(self.weights):
            total += weight
            self.sure &= abs(total - enough) > 1e-5 * enough
            if total > enough or (total == enough and not strict):
                return self.keep(range(i + 1))
        return self

    def keep(self, places):
        places = list(places)
        weights = [self.weights[i] for i in places]
        return Walk([self.tokens[i] for i in places], weights, self.sure)


def walk(logits, options):
    """The tokens that are left by the filters, in the order of Sampling's docstring."""
    scaled = logits.astype(np.float64) / options.temperature
    weights = np.exp(scaled - np.nanmax(scaled))
    tokens = [int(i) for i in np.flatnonzero(weights > 1e-37)]
    filters = (0 < options.top_k < len(logits), 0 < options.top_p < 1, options.min_p > 0)
    typical = 0 < options.typical_p < 1
    out = Walk(tokens, [float(weights[i]) for i in tokens])
    if not any(filters) and not typical:
        return out
    gaps = np.diff(np.sort(scaled[tokens]))
    out.sure = bool(np.all((gaps == 0) | (gaps > 1e-4)))
    out = out.keep(sorted(range(len(tokens)), key=lambda i: (-out.weights[i], tokens[i])))
    if filters[0]:
        out = out.keep(range(min(options.top_k, len(out.tokens))))
    if filters[1]:
        out = out.until(options.top_p * sum(out.weights), strict=True)
    out.sure &= all(abs(weight - options.min_p) > 1e-5 for weight in out.weights)
    out = out.keep(i for i, weight in enumerate(out.weights) if weight >= options.min_p)
    if typical:
        total = sum(out.weights)
        surprise = [-math.log(weight / total) for weight in out.weights]
        entropy = sum(w / total * s for w, s in zip(out.weights, surprise, strict=True))
        far = [abs(s - entropy) for s in surprise]
        order = sorted(range(len(far)), key=lambda i: (far[i], out.tokens[i]))
        for a, b in pairwise(order):
            out.sure &= surprise[a] == surprise[b] or far[b] - far[a] > 1e-4
        # The most typical tokens come first, also when the token is drawn.
        out = out.keep(order).until(options.typical_p * total, strict=False)
    return out
