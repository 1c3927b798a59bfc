"""llama2.c's checkpoints give what llama2.c computed: model.py's logits, run.c's and runq.c's texts."""

import json
import shlex

import numpy as np
import pytest

import fastllm
from fastllm.decoding import Sampling
from fastllm.weights.packing import assemble
from fastllm.weights.source import open_source
from helpers import writers
from helpers.data import DATA, STORIES, needs_stories

MODELS = ("llama2c_gqa_tied", "llama2c_untied")


def golden(name):
    folder = DATA / name
    with np.load(folder / "expected.npz") as arrays:
        return folder, dict(arrays)


def greedy(llm, prompt, count):
    sampling = Sampling(temperature=0)
    return list(llm.start(prompt, sampling, max_tokens=count, seed=0, stop=()))


def rows(matrix):
    out = np.empty(matrix.shape, np.float32)
    for r in range(len(out)):
        matrix.row(r, out[r])
    return out


# ---- the golden models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("name", MODELS)
def test_float_logits_and_greedy_ids(name, version):
    folder, expected = golden(name)
    llm = fastllm.load(folder / f"model_{version}.bin")
    # model.py also computes in f32 but adds in another order. run.c differs from it by 8e-6.
    assert np.abs(llm.logits(expected["tokens"]) - expected["logits"]).max() < 1e-4
    assert greedy(llm, expected["greedy_prompt"], 16) == expected["greedy"].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_versions_0_and_1_hold_one_model(name):
    folder, expected = golden(name)
    a, b = (fastllm.load(folder / f"model_v{v}.bin").logits(expected["tokens"]) for v in (0, 1))
    assert (a == b).all()


@pytest.mark.parametrize("name", MODELS)
def test_version_2_in_floats(name):
    folder, expected = golden(name)
    llm = fastllm.load(folder / "model_v2_q80.bin", dtype="f32")
    assert np.abs(llm.logits(expected["tokens"]) - expected["logits_q80_dequant"]).max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_version_2_as_q8(name):
    folder, expected = golden(name)
    runq, floats = expected["logits_runq"], expected["logits_q80_dequant"]
    logits = fastllm.load(folder / "model_v2_q80.bin").logits(expected["tokens"])
    # What runq.c rounds are activations, in groups of 32 or 8; here they and the weights are rounded, in groups of 32.
    assert np.abs(logits - floats).max() < 2 * np.abs(runq - floats).max()
    assert (logits.argmax(axis=1) == runq.argmax(axis=1)).mean() >= 0.9


# ---- version 2's weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "group"),
    [
        ((64, 128, 4, 2, 100), 32),
        ((64, 128, 4, 2, 100), 64),
        ((128, 64, 4, 4, 33), 64),
        ((40, 56, 5, 5, 264), 8),
        ((64, 96, 4, 1, 48), 16),
        ((40, 80, 4, 2, 160), 80),  # groups go on from one row of 40 to the next
    ],
)
def test_version_2_weights(tmp_path, dims, group):
    """They are exact as f32, and as q8 unless they ask for another type: rounded as f32 weights are."""
    cfg = writers.config(*dims)
    weights = writers.random_weights(cfg, 3)
    path = tmp_path / "model.bin"
    path.write_bytes(writers.v2(cfg, weights, group))
    opened = open_source(path, None)
    kept = assemble(opened.recipe, dtype=opened.dtype, threads=1)
    stored = assemble(opened.recipe, dtype="f32", threads=1)
    halves = {
        "wq": writers.half_split(cfg.n_heads, cfg.head_dim, cfg.head_dim),
        "wk": writers.half_split(cfg.n_kv_heads, cfg.head_dim, cfg.head_dim),
    }
    for name, w in weights.items():
        if w.ndim == 1:
            assert stored.tensors[name].data == w.tobytes()
            continue
        values, scales = writers.q80(w, group)
        exact = (values.reshape(-1, group).astype(np.float32) * scales[:, None]).reshape(w.shape)
        exact = exact[halves.get(name[-2:], slice(None))]
        assert (rows(stored.tensors[name]) == exact).all()
        assert bytes(kept.tensors[name].data) == bytes(writers.pack("q8", exact).data)


@pytest.mark.parametrize("group", [32, 64])
def test_version_2_computes_with_its_weights(tmp_path, group):
    cfg = writers.config(64, 128, 4, 2, 100)
    weights = writers.random_weights(cfg, 4)
    path = tmp_path / "model.bin"
    path.write_bytes(writers.v2(cfg, weights, group))
    tokens = np.random.default_rng(0).integers(0, 100, 40)
    kept, floats = (fastllm.load(path, dtype=dtype).logits(tokens) for dtype in (None, "f32"))
    # The two differ by the rounding of activations, keys and values only.
    assert 0 < np.sqrt(np.mean((kept - floats) ** 2)) < 0.05 * floats.std()


# ---- stories260K: run.c's printed texts, byte for byte ---------------------------------------------------------------


def recorded():
    if not STORIES.exists():
        return []
    return json.loads((STORIES / "meta.json").read_text())["outputs"]


@pytest.fixture(scope="module")
def stories():
    return fastllm.load(STORIES / "stories260K.bin", tokenizer=STORIES / "tok512.bin", threads=1)


@needs_stories
@pytest.mark.parametrize("output", recorded(), ids=lambda output: output["file"])
def test_recorded_texts(stories, output):
    words = shlex.split(output["cmd"])
    option = dict(zip(words[2::2], words[3::2], strict=True))
    text = option.get("-i", "")
    assert stories.tokenize(text) == output["prompt_ids"]
    seed = int(option.get("-s", 0))
    sampling = {"temperature": float(option["-t"]), "top_p": float(option.get("-p", 0.9))}
    # run.c's -n counts all positions, the prompt's too, and run.c prints a newline at the end.
    count = int(option["-n"]) - len(output["prompt_ids"]) + 1
    new = stories.generate(text or [1], max_tokens=count, seed=seed, **sampling)
    assert f"{text}{new}\n".encode() == (STORIES / output["file"]).read_bytes()
    ids = list(stories.start(text or [1], Sampling(**sampling), max_tokens=count, seed=seed))
    assert output["prompt_ids"] + ids == output["tokens"]


@needs_stories
def test_stories_logits(stories):
    with np.load(STORIES / "expected.npz") as expected:
        logits = stories.logits(expected["tokens"])
        assert np.abs(logits - expected["logits"]).max() < 1e-3
        assert greedy(stories, [1], 200) == expected["greedy_tokens"][1:].tolist()
