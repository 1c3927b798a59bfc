"""Dense layers of heads: equal to numpy's, the same bits in any batch, and kept by conversion."""

import math

import numpy as np
import pytest

from fastllm import CheckpointError, OptionError, _core
from fastllm.heads import Embedding, Layer
from fastllm.heads.dense import apply, pack
from fastllm.tensors import Tensor
from fastllm.weights import store
from helpers import writers

ACTS = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def layer(weight, bias=None, act="identity"):
    weight = np.ascontiguousarray(weight)
    dtype = {"float32": "f32", "float16": "f16"}[weight.dtype.name]
    return Layer(Tensor(dtype, weight.shape, lambda b, e: weight[b:e]), bias, act)


def refusal(call):
    with pytest.raises(CheckpointError) as error:
        call()
    return str(error.value)


def random(*shape):
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def test_acts_are_the_cores():
    assert set(ACTS) == set(_core.DENSE_ACTS)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_chain(act, dtype):
    first, second = random(21, 40).astype(dtype), random(3, 21).astype(dtype)
    bias, x = random(21), random(5, 40)
    chain = pack({"classifier": (layer(first, bias, act), layer(second))})["classifier"]
    want = ACTS[act](x.astype(float) @ first.T.astype(float) + bias) @ second.T.astype(float)
    got = apply(chain, x)
    assert got.shape == (5, 3)
    assert np.abs(got - want).max() < 1e-4
    for i in range(5):
        assert (apply(chain, x[i : i + 1]) == got[i]).all()
    for isa, supported in _core.isas():
        assert not supported or (apply(chain, x, isa=isa) == got).all()
    assert apply(chain, x[:0]).shape == (0, 3)


def test_kept_by_a_converted_file(tmp_path):
    config = writers.config(40, 57, 4, 2, 61)
    tensors = writers.core_tensors(config, writers.random_weights(config, 3, tied=True), "q8")
    chains = pack({"classifier": (layer(random(20, 40), random(20), "tanh"), layer(random(2, 20)))})
    path = tmp_path / "model"
    store.save(path, store.Stored(config, tensors, bos=1, stop=(), chat_stop=(), dense=chains))
    found = store.open_file(path)
    assert found.dtypes == ["q8"]
    x = random(4, 40)
    assert [[d.act for d in layers] for layers in found.dense.values()] == [["tanh", "identity"]]
    assert (apply(found.dense["classifier"], x) == apply(chains["classifier"], x)).all()
    store.save(tmp_path / "again", found)
    again = store.open_file(tmp_path / "again").dense["classifier"]
    assert (apply(again, x) == apply(chains["classifier"], x)).all()


@pytest.mark.parametrize("steps", [("pool",), ("pool", "dense"), ("dense", "pool", "dense", "residual")])
def test_an_embedding_has_as_many_layers_as_steps(tmp_path, steps):
    config = writers.config(40, 57, 4, 2, 61)
    tensors = writers.core_tensors(config, writers.random_weights(config, 3, tied=True), "q8")
    chains = pack({"embedding": (layer(random(40, 40)), layer(random(20, 40)))})
    fields = {"bos": 1, "stop": (1,), "chat_stop": (1,), "dense": chains, "embedding": Embedding(steps=steps)}
    store.save(tmp_path / "model", store.Stored(config, tensors, **fields))
    assert "layers of its embedding" in refusal(lambda: store.open_file(tmp_path / "model"))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([layer(random(3, 4)), layer(random(2, 5))], "3 rows before one of 5 columns"),
        ([layer(random(3, 4), random(2))], "bias of 2"),
        ([layer(random(3, 4), act="sin")], "'sin'"),
        ([layer(random(3))], "not that of a matrix"),
        ([layer(np.full((2, 2), np.nan, np.float32))], "x.0"),
        ([layer(random(2, 2), np.array([1, np.inf], np.float32))], "x.0.bias"),
    ],
)
def test_refused(layers, said):
    assert said in refusal(lambda: pack({"x": layers}))


def test_rows_of_another_width():
    chain = pack({"x": [layer(random(3, 4))]})["x"]
    assert "rows of 4 values, not of 5" in refusal(lambda: apply(chain, random(2, 5)))
    with pytest.raises(OptionError):
        chain[0].apply(random(2, 4), random(2, 3))
