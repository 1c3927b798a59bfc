"""The sampler in plain Python: which tokens it may draw, and which one it draws for a seed."""

import math

import numpy as np

from fastllm import _core


def buffer_of(logits):
    """A row of logits as a sampler reads it."""
    buffer = _core.Buffer(-(-len(logits) // 16) * 64)
    np.frombuffer(buffer, np.float32)[: len(logits)] = logits
    return buffer


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
    """Logits with biases, penalties, DRY and n-grams, in the order of Sampling's docstring, in f32.

    Phrases are ids; breakers of DRY too.
    """
    out, seen = logits.copy(), [*prompt, *text]
    for token, bias in options.logit_bias.items():
        out[token] += np.float32(bias)
    phrases = {**options.sequence_bias, **dict.fromkeys(options.bad_words, -math.inf)}
    for phrase, bias in phrases.items():
        if phrase[:-1] == tuple(seen[len(seen) - len(phrase) + 1 :]):
            out[phrase[-1]] += np.float32(bias)
    window = options.penalty_window or len(seen)
    recent = seen[max(0, len(seen) - window) :]
    new = recent[max(0, len(recent) - len(text)) :]
    penalty = np.float32(options.repetition_penalty)
    for token in set(recent):
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    for token in set(new):
        out[token] -= np.float32(options.presence_penalty) + np.float32(new.count(token)) * np.float32(
            options.frequency_penalty
        )
    for token, length in repeats(seen, options).items():
        over = length - options.dry_allowed_length
        out[token] -= np.float32(min(1e30, float(np.float32(options.dry_multiplier)) * options.dry_base**over))
    n = options.no_repeat_ngram_size
    for i in range(len(seen) - n + 1 if n else 0):
        if seen[i : i + n - 1] == seen[len(seen) - n + 1 :]:
            out[seen[i + n - 1]] = -math.inf
    return out


def repeats(seen, options):
    """DRY, token by token: how many tokens before it agree with the text's end, the most for each token."""
    last_n = len(seen) if options.dry_penalty_last_n < 0 else options.dry_penalty_last_n
    if not options.dry_multiplier or not last_n:
        return {}
    ends = [
        i + len(b) for b in options.dry_sequence_breakers for i in range(len(seen)) if tuple(seen[i : i + len(b)]) == b
    ]
    unbroken = len(seen) - max(ends, default=0)
    window, found = seen[max(0, len(seen) - last_n) :], {}
    for i in range(1, len(window)):
        length = 0
        while length < min(i, unbroken) and window[i - 1 - length] == window[-1 - length]:
            length += 1
        if length >= options.dry_allowed_length:
            found[window[i]] = max(length, found.get(window[i], 0))
    return found


TRUNCATIONS = ["top_n_sigma", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc"]
ORDER = ["temperature", *TRUNCATIONS, "mirostat"]


class Walk:
    """The tokens that may be drawn, in the order in which their probabilities are summed up to the random number.

    logits: those tokens', after the temperature. sure: every filter's decision is clear enough that rounding to f32
    cannot change it.
    """

    def __init__(self, logits, options, mu, chance):
        self.options, self.mu, self.chance, self.sure = options, mu, chance, True
        self.tokens = np.flatnonzero(logits - np.nanmax(logits) > -1e29)
        self.all = len(logits)
        self.logits = logits.astype(np.float64)[self.tokens]
        self.ordered = False  # by id, as long as no filter asks for more

    @property
    def weights(self):
        """Probabilities relative to the largest."""
        return np.exp(self.logits - self.logits.max())

    @property
    def probs(self):
        return self.weights / self.weights.sum()

    @property
    def entropy(self):
        p = self.probs[self.probs > 0]
        return float(-(p * np.log(p)).sum())

    def keep(self, places):
        self.tokens, self.logits = self.tokens[places], self.logits[places]

    def sort(self, values):
        gaps = np.diff(np.sort(values))
        self.sure &= bool(np.all((gaps == 0) | (gaps > 1e-4)))
        self.keep(np.lexsort((self.tokens, values)))

    def likely(self):
        """Orders tokens by probability; those of none are no candidates."""
        self.sort(-self.logits)
        self.keep(self.logits - self.logits.max() > -87)
        self.ordered = True

    def until(self, enough, strict):
        """Keeps the fewest first tokens whose probabilities reach `enough` or, if strict, exceed it."""
        sums = np.cumsum(self.probs)
        self.sure &= bool(np.all(np.abs(sums - enough) > 1e-5 * enough))
        self.keep(slice(0, int(np.searchsorted(sums, enough, side="right" if strict else "left")) + 1))

    def at_least(self, least):
        """Keeps tokens of at least that probability, and the most likely ones."""
        self.likely()
        self.sure &= bool(np.all(np.abs(self.probs / least - 1) > 1e-5))
        self.keep((self.probs >= least) | (self.logits == self.logits[0]))

    def temperature(self):
        heat = self.options.temperature
        if self.options.dynatemp_range > 0:
            size = len(self.tokens) if self.ordered else self.all
            self.likely()
            if size < 2:
                return
            least, most = max(0, heat - self.options.dynatemp_range), heat + self.options.dynatemp_range
            heat = least + (most - least) * (self.entropy / math.log(size)) ** self.options.dynatemp_exponent
            if heat < 1e-3:  # nearly greedy: only the best is certain
                self.sure &= len(self.logits) < 2 or self.logits[0] - self.logits[1] > 100 * heat
                heat = max(heat, 1e-6)
        self.logits = self.logits / heat
        if self.ordered:
            self.likely()

    def top_n_sigma(self):
        if self.ordered:
            self.likely()
        least = self.logits.max() - self.options.top_n_sigma * self.logits.std()
        self.likely()
        self.sure &= bool(np.all(np.abs(self.logits - least) > 1e-4))
        self.keep(self.logits >= least)

    def top_h(self):
        self.likely()
        self.keep(slice(0, 100))
        terms = -self.probs * np.log(self.probs)
        bound = self.options.top_h * terms.sum()
        self.sure &= bool(np.all(np.abs(np.cumsum(terms)[1:] - bound) > 1e-5))
        self.keep((np.cumsum(terms) <= bound) | (np.arange(len(terms)) == 0))

    def top_k(self):
        if self.options.top_k < self.all:
            self.likely()
            self.keep(slice(0, self.options.top_k))

    def top_p(self):
        self.likely()
        self.until(self.options.top_p, strict=True)

    def min_p(self):
        self.likely()
        self.sure &= bool(np.all(np.abs(self.weights - self.options.min_p) > 1e-5))
        self.keep(self.weights >= self.options.min_p)

    def typical_p(self):
        self.likely()
        surprise = -np.log(self.probs)
        far = np.abs(surprise - self.entropy)
        order = np.lexsort((self.tokens, far))
        near = np.diff(far[order]) <= 1e-4
        self.sure &= bool(np.all(surprise[order][1:][near] == surprise[order][:-1][near]))
        self.keep(order)  # the most typical tokens come first, also when the token is drawn
        self.until(self.options.typical_p, strict=False)

    def epsilon_cutoff(self):
        self.at_least(self.options.epsilon_cutoff)

    def eta_cutoff(self):
        epsilon = self.options.eta_cutoff
        self.likely()
        self.at_least(min(epsilon, math.sqrt(epsilon) * math.exp(-self.entropy)))

    def xtc(self):
        if self.chance >= self.options.xtc_probability:
            return
        self.likely()
        self.sure &= bool(np.all(np.abs(self.probs - self.options.xtc_threshold) > 1e-5))
        top = int((self.probs >= self.options.xtc_threshold).sum())
        self.keep(slice(max(0, top - 1), None))

    def mirostat(self):
        self.at_least(2.0**-self.mu)


def is_on(name, options):
    value = getattr(options, {"xtc": "xtc_probability", "mirostat": "mirostat_tau"}.get(name, name))
    if name == "temperature":
        return value != 1 or options.dynatemp_range > 0
    return 0 < value < 1 if name in ("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff") else value > 0


def walk(logits, options, *, mu=0.0, chance=1.0):
    """The tokens that are left by the filters, in their order; mu: mirostat's bound, chance: XTC's random number."""
    out = Walk(logits, options, mu, chance)
    for name in options.sampler_order or ORDER:
        if is_on(name, options):
            getattr(out, name)()
    if not out.ordered:
        out.keep(out.logits - out.logits.max() > -87)
    return out
