"""Long prompts of small models: reading them, storing them in a prompt cache on disk, and taking them up again."""

import random

from fastllm import _core
from fastllm.engine.disk import PromptCache
from helpers import writers

WINDOWS = {"full": (), "windows": (20, 0, 150), "only windows": (100, 100)}
KV = ["f32", "f16", "q8", "q4"]
KEY = bytes(32)


def make_model(windows="full", kv="f16", seed=0):
    layers = len(WINDOWS[windows]) or 2
    config = writers.config(40, 57, 4, 2, 300, n_layers=layers, max_seq=2048, windows=WINDOWS[windows])
    return _core.Model(config, writers.core_tensors(config, writers.random_weights(config, seed), "q8"), kv_dtype=kv)


MODELS = {windows: make_model(windows) for windows in WINDOWS}


def text(count, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(300) for _ in range(count)]


def extend(sequence, tokens, model):
    """Appends what the sequence has not of `tokens`, in forwards of 64, and returns the last logits."""
    logits = model.logits()
    while sequence.length < len(tokens):
        part = tokens[sequence.length : sequence.length + 64]
        model.forward([(sequence, part, int(sequence.length + len(part) == len(tokens)))], logits)
    return bytes(logits)


def computed(model, tokens):
    """The logits after `tokens`, computed from the first on."""
    return extend(_core.KVCache(model).sequence(), tokens, model)


def save(folder, model, tokens, **options):
    """Reads a prompt and stores it."""
    cache = _core.KVCache(model)
    disk, sequence = PromptCache(folder, KEY, cache, **options), cache.sequence()
    extend(sequence, tokens, model)
    disk.save(tokens, sequence)
    disk.close()


def take_up(folder, model, tokens, **options):
    """How many tokens a new cache takes up, and the logits after `tokens` that follow."""
    cache = _core.KVCache(model)
    empty = cache.sequence()
    sequence = PromptCache(folder, KEY, cache, **options).load(tokens, empty) or empty
    length = sequence.length
    assert length < len(tokens)
    return length, extend(sequence, tokens, model)
