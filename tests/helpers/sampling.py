"""What a sampler may draw, and what it draws for a seed, in plain Python."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# ---- the oracle ------------------------------------------------------------------------------------------------------


def coins(seed):
    """xorshift64*, as in run.c: 24 bits in [0, 1)."""
    state, mask = seed, (1 << 64) - 1
    while True:
        state ^= state >> 12
        state ^= state << 25 & mask
        state ^= state >> 27
        yield ((state * 0x2545F4914F6CDD1D & mask) >> 32 >> 8) / 16777216


def adjusted(logits, options, prompt, text):
    """Biases and penalties in the order of Sampling's docstring, in f32."""
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
    """Tokens in the order a coin walks them, with their probabilities (of no particular sum)."""

    tokens: list[int]
    weights: list[float]
    sure: bool = True  # no filter's border lies so near to a token that f32 may see it on the other side

    def until(self, enough, strict):
        """The shortest beginning whose weight reaches or, if strict, exceeds `enough`."""
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
    """What Sampling's docstring says of the filters, in its order."""
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
        # The most typical first: the order in which a coin walks them, too.
        out = out.keep(order).until(options.typical_p * total, strict=False)
    return out
