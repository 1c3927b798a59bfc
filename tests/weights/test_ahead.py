"""Packing ahead: pieces come in order whatever thread packed them, and an error ends it."""

import random
import time
from array import array

import pytest

from fastllm import CheckpointError
from fastllm.weights import packing
from fastllm.weights.ahead import packed
from fastllm.weights.packing import assemble, chunks, pack, plan
from fastllm.weights.source import open_source
from helpers import writers

CONFIG = writers.config(64, 96, 4, 2, 300)


@pytest.fixture
def recipe(write_model, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK", 4000)  # several pieces of a matrix
    recipe = open_source(write_model(CONFIG), None).recipe
    name = "layers.1.attn.wq"  # one of them is reordered
    turned = recipe.matrices[name]._replace(rows=array("i", reversed(range(CONFIG.dim))))
    return recipe._replace(matrices={**recipe.matrices, name: turned})


def slow(name, matrix, rows, data, out):
    time.sleep(random.random() / 500)
    pack(matrix, rows, out, threads=2, name=name, data=data)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["f32", "q8", "q4"])
def test_pieces_in_order(recipe, threads, dtype):
    plans = plan(recipe, dtype)
    whole = assemble(recipe, dtype=dtype, threads=1)
    expected = b"".join(bytes(whole.tensors[name].data) for name in plans)
    assert b"".join(map(bytes, packed(plans, slow, threads))) == expected
    assert len(list(packed(plans, slow, threads))) == sum(len(list(chunks(matrix))) for matrix in plans.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_in_its_place(recipe, threads):
    plans, count = plan(recipe, "q8"), 0

    def fails(*piece):
        nonlocal count
        count += 1
        if count == 4:
            raise CheckpointError("the fourth")
        slow(*piece)

    found = []
    with pytest.raises(CheckpointError, match="the fourth"):
        found.extend(map(bytes, packed(plans, fails, threads)))
    assert len(found) <= 3


def test_it_can_be_left(recipe):
    pieces = packed(plan(recipe, "q8"), slow, 2)
    next(pieces)
    pieces.close()
    assert list(pieces) == []
    assert list(packed({}, slow, 2)) == []
