"""The bytes of pages: they do not depend on how tokens came, and are as many as the type says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import _core
from helpers import writers

VOCAB, COUNT = 27, 192
TOKENS = np.random.default_rng(4).integers(0, VOCAB, COUNT).tolist()


def model_of(kv_dtype, isa):
    cfg = writers.config(96, 64, 3, 1, VOCAB, n_layers=2, max_seq=256)  # heads of 32 channels, with nothing past them
    return writers.core_model(cfg, writers.random_weights(cfg, 2), "f32", kv_dtype=kv_dtype, isa=isa)


def pages_after(model, cuts):
    """The bytes of all pages after TOKENS, read in pieces that end at `cuts`, behind another text's keys and values."""
    cache = _core.KVCache(model)
    sequence = cache.sequence()
    model.forward([(sequence, TOKENS[::-1], 0)], threads=1)
    sequence.truncate(0)
    for begin, end in zip([0, *cuts], [*cuts, COUNT], strict=True):
        if begin < end:
            model.forward([(sequence, TOKENS[begin:end], 0)], threads=2)
    return [bytes(sequence.page(i).part(0)) for i in range(COUNT // 64)]


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8", "q4"])
def test_any_cut_and_instruction_set(kv_dtype):
    model = model_of(kv_dtype, None)
    whole = pages_after(model, [])
    for isa in [name for name, supported in _core.isas() if supported]:
        assert pages_after(model_of(kv_dtype, isa), [1, 7, 64]) == whole

    @given(st.lists(st.integers(0, COUNT), max_size=8).map(sorted))
    def check(cuts):
        assert pages_after(model, cuts) == whole

    check()


@pytest.mark.parametrize(("kv_dtype", "bits"), [("f32", 32), ("f16", 16), ("q8", 9), ("q4", 5.5)])
def test_bytes_of_a_page(kv_dtype, bits):
    """One head of 32 channels in two layers: 64 positions of 32 keys and 32 values, scales included."""
    assert _core.KVCache(model_of(kv_dtype, None)).page_bytes == (2 * 64 * 64 * bits / 8,)
