"""Beam search the plain way: arrays of all that there is, as in transformers' `_beam_search`, and by brute force."""

import itertools

import numpy as np

NEVER = -1e9  # the score of what is not there


def log_softmax(logits):
    x = np.asarray(logits, np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def beam_search(scores_of, options, stop, most):
    """The texts that are found, (score, tokens) best first, without the token that ended them.

    scores_of: tokens -> log probabilities [vocabulary] of the next one. options: a BeamOptions without forced words.
    Groups follow each other in each step, and lose what those before them have chosen.
    """
    size = options.num_beams // options.num_beam_groups
    kept = max(2, 1 + len(stop)) * size
    running = [[((), 0.0 if i == 0 else NEVER) for i in range(size)] for _ in range(options.num_beam_groups)]
    finished = [[(NEVER, (), False)] * size for _ in running]
    over = [False] * len(running)
    for length in range(1, most + 1):
        taken = []
        for g, beams in enumerate(running):
            if over[g]:
                continue
            scores = []
            for tokens, total in beams:
                row = np.array(scores_of(tokens), np.float64)
                for token in taken:
                    row[token] -= options.diversity_penalty
                scores.append(row + total)
            flat = np.concatenate(scores)
            order = np.argsort(-flat, kind="stable")[:kept]
            vocab = len(scores[0])
            followers = [((*beams[i // vocab][0], int(i % vocab)), float(flat[i])) for i in order]
            followers = [one for one in followers if one[1] > NEVER / 2]
            ends = [tokens[-1] in stop for tokens, _ in followers]
            going = [one for one, end in zip(followers, ends, strict=True) if not end][:size]
            done = [one for one, end in zip(followers[:size], ends, strict=False) if end]
            best = followers if options.num_beam_groups > 1 else going
            finished[g] = merged(finished[g], [(t[:-1], s) for t, s in done], length, options)
            last = length == most
            stays = bool(best) and can_be_better(finished[g], best[0][1], length, most, options)
            if last and (options.num_beam_groups == 1 or stays):
                finished[g] = merged(finished[g], going, length, options)
            over[g] = last or not stays or not going
            running[g] = going
            taken += [tokens[-1] for tokens, _ in going]
    found = [one for group in finished for one in group if one[2]]
    return [(score, list(tokens)) for score, tokens, _ in sorted(found, key=lambda one: -one[0])]


def merged(finished, new, length, options):
    more = [(total / length**options.length_penalty, tokens, True) for tokens, total in new]
    return sorted([*finished, *more], key=lambda one: -one[0])[: len(finished)]


def can_be_better(finished, total, length, most, options):
    full = all(there for *_, there in finished)
    if full and options.early_stopping is True:
        return False
    at = most if options.early_stopping == "never" and options.length_penalty > 0 else length
    return not full or total / at**options.length_penalty > min(score for score, *_ in finished)


def every_text(scores_of, vocab, options, stop, most):
    """All texts there are, (score, tokens) best first."""
    found = []
    for length in range(1, most + 1):
        for tokens in itertools.product(range(vocab), repeat=length):
            if any(token in stop for token in tokens[:-1]) or (length < most and tokens[-1] not in stop):
                continue
            total = sum(scores_of(tokens[:i])[token] for i, token in enumerate(tokens))
            text = list(tokens[:-1] if tokens[-1] in stop else tokens)
            found.append((total / length**options.length_penalty, text))
    return sorted(found, key=lambda one: -one[0])
