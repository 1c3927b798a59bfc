"""A layer alone computes what it computes in its model, and tells what its matrices are multiplied with."""

import numpy as np
import pytest

from fastllm import _core
from fastllm.families import Recipe, Weight
from fastllm.tensors import Tensor
from fastllm.weights.layers import LastLayer, Layer, embedded
from fastllm.weights.pruning.inputs import Inputs
from fastllm.weights.pruning.options import parse
from fastllm.weights.pruning.prune import without_layers
from helpers import oracle, writers
from helpers.architectures import ARCHITECTURES

PIECES = [list(range(6, 26)), [7, 9, 50, 60], [11]]


def tensor(w):
    flat = w.reshape(-1, w.shape[-1])
    return Tensor("f32", w.shape, lambda begin, end: flat[begin:end].tobytes())


def recipe_of(config, weights):
    """Weights of random_weights as a recipe, with the rows of rotary pairs half a head apart."""
    tensors = writers.core_tensors(config, weights, "f32")
    names = {name for name, *_ in config.vectors()}
    matrices = {
        name: Weight(tensor(weights[name] if weights[name].ndim == 3 else writers.rows(t)))
        for name, t in tensors.items()
        if isinstance(t, _core.Matrix)
    }
    vectors = {name: bytes(t.data) for name, t in tensors.items() if isinstance(t, _core.Vector) and name in names}
    return Recipe(config, matrices, vectors, None, (), ())


def architecture(name):
    config, optional, tied = ARCHITECTURES[name]
    weights = writers.random_weights(config, 3, tied=tied, optional=optional)
    return config, weights, recipe_of(config, weights)


def outputs(model, config, tokens):
    """The stream before and after every layer, and the logits if there is a head."""
    hidden = {i: _core.Buffer(len(tokens) * config.dim * 4) for i in range(config.n_layers + 1)}
    logits = model.logits(len(tokens)) if config.head else None
    rows = len(tokens) if config.head else 0
    model.forward([(_core.KVCache(model).sequence(), tokens, rows)], logits, hidden=hidden)
    stream = [np.frombuffer(memoryview(b), np.float32).reshape(-1, config.dim) for b in hidden.values()]
    if not config.head:
        return stream, None
    return stream, np.frombuffer(memoryview(logits), np.float32).reshape(len(tokens), -1)[:, : config.vocab_size]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_alone_gives_the_same_bits(name):
    """Streams and logits equal those of the whole model in f32, for every piece of a text."""
    config, weights, recipe = architecture(name)
    model = writers.core_model(config, weights, "f32")
    whole = [outputs(model, config, piece) for piece in PIECES]
    stream = embedded(recipe, PIECES, dtype=None, threads=1)
    for i in range(config.n_layers):
        assert all((x == expected[i]).all() for x, (expected, _) in zip(stream, whole, strict=True))
        if i == config.n_layers - 1 and config.head:
            last = LastLayer(recipe, dtype=None, threads=2)
            assert all((last.logits(x) == logits).all() for x, (_, logits) in zip(stream, whole, strict=True))
        layer = Layer(recipe, i, threads=2)
        stream = [layer.run(x) for x in stream]
    assert all((x == expected[-1]).all() for x, (expected, _) in zip(stream, whole, strict=True))


@pytest.mark.parametrize("method", ["wanda:0.5", "sparsegpt:0.5"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_matrices_are_multiplied_with(name, method):
    """Squares and products of the inputs of every linear layer, experts included, equal the oracle's over the text."""
    config, weights, recipe = architecture(name)
    seen = oracle.inputs(config, weights, PIECES)
    stream = embedded(recipe, PIECES, dtype=None, threads=1)
    for i in range(config.n_layers):
        inputs = Inputs(recipe, i, stream, parse(method), threads=2)
        for part, name_of in ((n.removeprefix(f"layers.{i}."), n) for n in weights if n.startswith(f"layers.{i}.")):
            if not part.startswith(("attn.w", "ffn.w", "experts.")) or part.endswith(".bias"):
                continue
            for expert in range(config.n_experts) if part.startswith("experts") else [None]:
                x = seen.get((name_of, expert), np.eye(weights[name_of].shape[-1]))
                if method.startswith("wanda"):
                    expected = (x**2).sum(axis=0)
                    assert np.allclose(inputs.squares(part, expert), expected, rtol=1e-3, atol=1e-4 * expected.max())
                else:
                    found, h = inputs.inverse(part, expert), x.T @ x
                    h[np.diag(h) == 0, np.diag(h) == 0] = 1
                    h += 0.01 * np.diag(h).mean() * np.eye(len(h))
                    upper = np.triu(found.upper, 1) + np.eye(len(h))
                    assert np.allclose(upper * found.importance @ upper.T, h, rtol=1e-3, atol=1e-4 * h.max())
        layer = Layer(recipe, i, threads=1)
        stream = [layer.run(x) for x in stream]


@pytest.mark.parametrize("name", ["gemma", "qwen_moe", "gpt_neo", "bert"])
def test_a_model_without_a_layer(name):
    """It computes what a model with the other layers' weights does."""
    config, weights, recipe = architecture(name)
    for dropped in range(config.n_layers):
        kept = [i for i in range(config.n_layers) if i != dropped]
        lists = {
            n: tuple(getattr(config, n)[i] for i in kept) for n in ("windows", "ropes", "moe") if getattr(config, n)
        }
        smaller = config._replace(n_layers=len(kept), **lists)
        own = {n: w for n, w in weights.items() if not n.startswith("layers.")}
        for new, old in enumerate(kept):
            prefix = f"layers.{old}."
            own |= {f"layers.{new}.{n.removeprefix(prefix)}": w for n, w in weights.items() if n.startswith(prefix)}
        _, expected = outputs(writers.core_model(smaller, own, "f32"), smaller, PIECES[0])
        found = without_layers(recipe, [dropped])
        assert found.config == smaller
        stream = embedded(found, PIECES[:1], dtype=None, threads=1)
        for i in range(len(kept) - 1):
            stream = [Layer(found, i, threads=1).run(x) for x in stream]
        assert (LastLayer(found, dtype=None, threads=1).logits(stream[0]) == expected).all()
