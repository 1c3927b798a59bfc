"""What the tests of pruning share: a small model's config, a text, and the weights of a converted file."""

import math
import re

import numpy as np

import fastllm
from fastllm import _core
from fastllm.weights import store
from helpers import writers
from helpers.writers import rows

CONFIG = writers.config(64, 96, 4, 2, 300, n_layers=4, max_seq=80)
TEXT = "".join(np.random.default_rng(1).choice(list("tehainorgsdlcupm.,!? "), 3000))
LINEAR = re.compile(r"layers\.\d+\.(attn\.w[qkvo]|ffn\.w[123]|experts\.w[123])")


def matrices(path):
    """All matrices of a converted file as f32, those of stacks one below the other."""
    found = {}
    for name, t in store.open_file(path).tensors.items():
        if isinstance(t, _core.Matrix):
            *stack, d, n = t.shape
            size, values = _core.matrix_bytes(t.dtype, d, n), t.values
            parts = [t.data[i * size : (i + 1) * size] for i in range(math.prod(stack))]
            each = [_core.Matrix(t.dtype, d, n, part, values=values) for part in parts]
            found[name] = np.stack([rows(one) for one in each])
    return found


def pieces_of(source, *, learns=True):
    """The pieces of TEXT that a method learns from, and those that are held out, of which at most 8 are read."""
    llm = fastllm.load(source)
    room, tokens = llm.config.max_seq - 1, llm.tokenizer.encode(TEXT)
    pieces = [[llm.bos, *tokens[i : i + room]] for i in range(0, len(tokens), room)]
    held = pieces[::4] if learns else pieces
    assert len(held) > 8
    return [p for i, p in enumerate(pieces) if i % 4], held[:: -(-len(held) // 8)]
