"""A layer alone, through which the hidden states of a text are run: memory for one layer, whatever the model's size.

It is a model of one layer, in f32, whose learned positions are the hidden states that enter the layer:

    0 * embedding of token 0 + positions [t, dim], the states -> the layer -> states after it, inputs of its matrices
                                                                      '-> (the last layer, with the head) logits

An expert is run alone too, as the feed-forward of a layer whose attention adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.families import Recipe, Weight
from fastllm.tensors import Bytes, Tensor, at, floats
from fastllm.weights.packing import assemble

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXPERT_ROWS = 1024  # that an expert is given at once


class Seen(NamedTuple):
    """What a layer does to a stream of t tokens.

    inputs: what multiplies wq, wk and wv; wo; w1 and w3; w2, [t, n] each. attention: the probabilities [heads * t, t].
    after: the stream after the layer; normed: that after the model's last norm, where it is the last layer.
    """

    inputs: list[NDArray[np.float32]]
    attention: NDArray[np.float32]
    after: NDArray[np.float32]
    normed: NDArray[np.float32]


class Layer:
    """A layer of a recipe alone. Streams are [t, dim], of t consecutive tokens of a text."""

    def __init__(self, recipe: Recipe, index: int, *, threads: int, experts: bool = True, dtype: str = "f32") -> None:
        """index: of the layer. experts: False leaves them out, so that `inputs` can tell what they are given. dtype:
        the type that its matrices are packed as."""
        c = recipe.config
        self.config, self._threads = _alone(c, index), threads
        matrices, vectors = _renamed(recipe.matrices, index), _renamed(recipe.vectors, index)
        matrices["embed"] = _zeros(1, c.dim)
        if not experts and c.layer_moe(index):
            width = c.hidden_dim or 1  # of the shared expert, else of one that adds nothing
            self.config = self.config._replace(n_experts=0, n_experts_used=0, expert_dim=0, moe=(), hidden_dim=width)
            shapes = {"w1": (width, c.dim), "w3": (width, c.dim), "w2": (c.dim, width)}
            matrices = {f"layers.0.ffn.{name}": _zeros(*shape) for name, shape in shapes.items()} | matrices
        if index == c.n_layers - 1:
            vectors |= {name: values for name, values in recipe.vectors.items() if name.startswith("final_norm")}
        self._tensors = _packed(self.config, matrices, vectors, dtype, threads)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The stream after the layer, of the stream x before it."""
        out = _core.Buffer(x.nbytes)
        self._forward(x, hidden={1: out})
        return _floats(out, *x.shape)

    def inputs(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What multiplies wq, wk and wv; wo; w1 and w3; w2, [t, n] each, of the stream x before the layer."""
        return self.all(x).inputs

    def all(self, x: NDArray[np.float32]) -> Seen:
        """All that the layer does to the stream x."""
        c, t = self.config, len(x)
        widths = (c.dim, c.n_heads * c.head_dim, c.dim, c.hidden_dim)
        buffers = {i: _core.Buffer(t * max(widths) * 4) for i in range(len(widths))}
        hidden, attention = {i: _core.Buffer(x.nbytes) for i in (1, 2)}, _core.Buffer(c.n_heads * t * t * 4)
        self._forward(x, inputs=buffers, hidden=hidden, attention={0: attention})
        inputs = [_floats(buffers[i], t, width) for i, width in enumerate(widths)]
        after, normed = (_floats(hidden[i], t, c.dim) for i in (1, 2))
        return Seen(inputs, _floats(attention, c.n_heads * t, t), after, normed)

    def _forward(self, x: Bytes, rows: int = 0, logits: _core.Buffer | None = None, **out: Any) -> None:
        """Runs the stream x. rows: of logits that are wanted; out: other outputs, see _core.Model.forward."""
        t, dim = x.shape
        states = _core.pack("f32", t, dim, "f32", memoryview(x).cast("B"), threads=self._threads)
        config = self.config._replace(max_seq=t, positions=t)
        model = _core.Model(config, {**self._tensors, "positions": states}, kv_dtype="f32")
        model.forward([(_core.KVCache(model).sequence(), [0] * t, rows)], logits, threads=self._threads, **out)


class LastLayer(Layer):
    """The last layer with the head. dtype: the type that the head is packed as; None for its own."""

    def __init__(self, recipe: Recipe, *, dtype: str | None, threads: int) -> None:
        c = recipe.config
        super().__init__(recipe, c.n_layers - 1, threads=threads)
        self.config = self.config._replace(head=True, vocab_size=c.vocab_size)
        layer = {name: tensor for name, tensor in self._tensors.items() if name != "embed"}
        matrices = {**recipe.matrices, **_renamed(recipe.matrices, c.n_layers - 1)}
        vectors = {name: values for name, values in recipe.vectors.items() if not name.startswith("embed_norm")}
        vectors |= _renamed(recipe.vectors, c.n_layers - 1)
        self._tensors = {**_packed(self.config, matrices, vectors, dtype, threads), **layer}

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [t, vocabulary] of the stream x before the layer."""
        n = self.config.vocab_size
        stride = n + -n % _core.LANES
        out = _core.Buffer(len(x) * stride * 4)
        self._forward(x, len(x), out)
        return _floats(out, len(x), stride)[:, :n]


def embedded(
    recipe: Recipe, pieces: Sequence[list[int]], *, dtype: str | None, threads: int
) -> list[NDArray[np.float32]]:
    """The stream before the first layer, of each piece of a text. dtype: as LastLayer's, of the embedding."""
    c = recipe.config
    config = c._replace(n_layers=1, head=False, windows=c.windows[:1], ropes=c.ropes[:1], moe=c.moe[:1], rope_switch=0)
    model = _core.Model(config, _packed(config, recipe.matrices, recipe.vectors, dtype, threads), kv_dtype="f32")
    found = []
    for piece in pieces:
        out = _core.Buffer(len(piece) * c.dim * 4)
        model.forward([(_core.KVCache(model).sequence(), piece, 0)], threads=threads, hidden={0: out})
        found.append(_floats(out, len(piece), c.dim))
    return found


def routed(recipe: Recipe, index: int, x: Bytes, *, threads: int) -> NDArray[np.bool_]:
    """Which experts of a layer are given each row of x [t, dim], the inputs of its feed-forward: [t, experts]."""
    import numpy

    c = recipe.config
    values: Bytes = floats(recipe.matrices[f"layers.{index}.router"].tensor)
    router = _core.pack("f32", c.n_experts, c.dim, "f32", memoryview(values).cast("B"), threads=threads)
    scores: Bytes = numpy.empty((len(x), c.n_experts + -c.n_experts % _core.LANES), numpy.float32)
    router.multiply(x, scores, threads=threads)
    best = (-scores[:, : c.n_experts]).argsort(axis=1, kind="stable")[:, : c.n_experts_used]
    found: NDArray[np.bool_] = numpy.zeros((len(x), c.n_experts), bool)
    numpy.put_along_axis(found, best, True, axis=1)
    return found


def expert_hidden(
    recipe: Recipe, index: int, expert: int, x: NDArray[np.float32], *, threads: int
) -> NDArray[np.float32]:
    """What multiplies w2 of an expert of a layer, [t, expert_dim], of its inputs x [t, dim]."""
    import numpy

    c = recipe.config
    config = c._replace(
        n_layers=1,
        hidden_dim=c.expert_dim,
        n_heads=1,
        n_kv_heads=1,
        head_dim=1,
        rotary_dim=0,
        qk_norm="none",
        windows=(),
        ropes=(),
        moe=(),
        n_experts=0,
        n_experts_used=0,
        expert_dim=0,
    )
    matrices = {f"layers.0.attn.{name}": _zeros(1, c.dim) for name in ("wq", "wk", "wv")}
    matrices["layers.0.attn.wo"] = _zeros(c.dim, 1)
    for name in ("w1", "w3", "w2"):
        if (weight := recipe.matrices.get(f"layers.{index}.experts.{name}")) is not None:
            matrices[f"layers.0.ffn.{name}"] = Weight(at(weight.tensor, expert), weight.rows)
    layer = Layer(Recipe(config, matrices, {}, None, (), ()), 0, threads=threads)
    parts = [layer.inputs(x[i : i + _EXPERT_ROWS])[3] for i in range(0, len(x), _EXPERT_ROWS)]
    return numpy.concatenate(parts)


def _alone(c: Config, index: int) -> Config:
    """The config of one layer of c's without embedding and head. LongRoPE rotates as in short contexts."""
    return c._replace(
        n_layers=1,
        head=False,
        vocab_size=1,
        embed_scale=0.0,
        rope_switch=0,
        second_segment=False,
        mask_token=-1,
        pad_token=-1,
        positions=0,
        windows=(c.layer_window(index),),
        ropes=(c.layer_rope(index),),
        moe=(int(c.layer_moe(index)),),
    )


def _renamed(tensors: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The tensors of a layer as those of layer 0, and vectors that all layers share."""
    prefix = f"layers.{index}."
    own = {f"layers.0.{name.removeprefix(prefix)}": t for name, t in tensors.items() if name.startswith(prefix)}
    return {name: t for name, t in tensors.items() if name.startswith("rope.")} | own


def _packed(
    config: Config, matrices: Mapping[str, Weight], vectors: Mapping[str, Bytes], dtype: str | None, threads: int
) -> dict[str, _core.Matrix | _core.Vector]:
    """Those of the tensors that a model of the config has, packed."""
    names = {name for name, *_ in config.matrices()} | {name for name, *_ in config.vectors()}
    recipe = Recipe(
        config,
        {name: weight for name, weight in matrices.items() if name in names},
        {name: values for name, values in vectors.items() if name in names},
        None,
        (),
        (),
    )
    return dict(assemble(recipe, dtype=dtype, threads=threads).tensors)


def _zeros(d: int, n: int) -> Weight:
    """A matrix of zeros."""
    return Weight(Tensor("f32", (d, n), lambda begin, end: bytes((end - begin) * n * 4)))


def _floats(buffer: _core.Buffer, t: int, n: int) -> NDArray[np.float32]:
    """The first t * n floats of a buffer as [t, n]."""
    import numpy

    return numpy.frombuffer(memoryview(buffer), numpy.float32)[: t * n].reshape(t, n)
