"""Any change of a config or of a tensor's shape gives a model or one of our errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.tensors import Tensor
from fastllm.weights.packing import assemble
from helpers.calls import failure, soon
from helpers.data import DATA
from helpers.families import encoders, gpt, mingpt

ENCODERS = ["bert, pretraining", "roberta, masked tokens", "esm-2, masked tokens", "esm-1b", "clip"]
CASES = ["gpt2", "gpt_neo", "gpt_neox", "mingpt first", "mingpt second", *ENCODERS, "amplify"]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 100)
    | st.sampled_from([10**6, 10**12, 10**30, -(10**12)])
    | st.floats()
    | st.sampled_from(["", "gelu", "rotary", "absolute", "SwiGLU", "default", "yarn"])
)
KEYS = st.sampled_from(["rope_type", "rope_theta", "factor", "n_head", "hidden_size", "model_type"])
NESTED = SCALARS | st.lists(SCALARS, max_size=3)
VALUES = NESTED | st.lists(NESTED, max_size=3) | st.dictionaries(KEYS, NESTED, max_size=3)
WHICH = st.integers(0, 999)
SHAPES = st.lists(st.integers(0, 120), max_size=3).map(tuple)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    def checkpoint(case):
        folder = tmp_path_factory.mktemp("model")
        if case == "amplify":
            return open_checkpoint(DATA / "amplify_variant")
        if case.startswith("mingpt"):
            return open_checkpoint(mingpt.mingpt(case.split()[1], folder, config=mingpt.FLAT)[1])
        model = encoders.built(case)[0] if case in encoders.CASES else gpt.built(*gpt.CASES[case])
        model.save_pretrained(folder)
        return open_checkpoint(folder)

    return {case: checkpoint(case) for case in CASES}.get  # not the dict: hypothesis would print all of it


def zeros(shape):
    def read(begin, end):
        return bytes((end - begin) * (shape[-1] if shape else 1) * 4)

    return Tensor("f32", shape, read)


@pytest.mark.parametrize("case", CASES)
def test_numbers_without_end(case, checkpoints):
    """A config with infinite or huge numbers gives a recipe or one of our errors."""
    checkpoint = checkpoints(case)
    for key, value in checkpoint.header.items():
        if type(value) is int:
            failure(lambda key=key: recipe(checkpoint._replace(header={**checkpoint.header, key: 10**400})))


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60)
@given(
    values=st.lists(st.tuples(WHICH, VALUES), max_size=2),
    shapes=st.lists(st.tuples(WHICH, SHAPES | st.none()), max_size=2),
)
def test_mutated(case, checkpoints, values, shapes):
    checkpoint = checkpoints(case)
    header, tensors = dict(checkpoint.header), dict(checkpoint.tensors)
    keys, names = sorted(header), sorted(tensors)
    for which, value in values:
        header[keys[which % len(keys)]] = value
    for which, shape in shapes:
        if shape is None:
            tensors.pop(names[which % len(names)], None)
        else:
            tensors[names[which % len(names)]] = zeros(shape)
    mutated = checkpoint._replace(header=header, tensors=tensors)
    with soon():
        failure(lambda: assemble(recipe(mutated), dtype=None, threads=1))  # another error would fail the test
