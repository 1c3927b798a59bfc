"""A model that is closed, copied, pickled, and used by other processes and threads; and how load names things."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError
from fastllm.families import recipe
from fastllm.formats import open_checkpoint
from fastllm.weights import store
from fastllm.weights.packing import assemble
from helpers.architectures import random_llm
from helpers.calls import refusal

PROMPT = "the ocean once"
OPTIONS = {"max_tokens": 10, "seed": 3}


@pytest.fixture
def converted(write_model, tmp_path):
    """The path of a converted file, which is mapped."""
    path = tmp_path / "model.safetensors"
    checkpoint = open_checkpoint(write_model())
    store.save(path, assemble(recipe(checkpoint), dtype=None, threads=1))
    return path


def maps(path):
    return str(path) in Path("/proc/self/maps").read_text()


# ---- close -----------------------------------------------------------------------------------------------------------


def test_a_closed_model_is_a_clear_error(llm):
    text = llm.generate(PROMPT, **OPTIONS)
    llm.close()
    llm.close()
    calls = [
        lambda: llm.generate(PROMPT),
        lambda: llm.generate([PROMPT, "a"], stream=False),
        lambda: llm.generate(PROMPT, stream=True),
        lambda: llm.agenerate(PROMPT, stream=True),
        lambda: llm.logits([1]),
        lambda: llm.hidden_states([1]),
        lambda: llm.attentions([1], 0),
        lambda: llm.embed(["a"]),
        llm.read_bandwidth,
        lambda: llm.threads,
        lambda: llm.isa,
        lambda: pickle.dumps(llm),
        lambda: fastllm.load(llm.path, threads=1).generate(PROMPT, draft=llm),
    ]
    for call in calls:
        assert refusal(call, OptionError) == f"{llm.path} is closed: load it again"
    assert llm.tokenize(PROMPT)  # needs no model
    with fastllm.load(llm.path, threads=1) as again:
        assert again.generate(PROMPT, **OPTIONS) == text
    with pytest.raises(OptionError, match="closed"):
        again.logits([1])


def test_a_text_that_is_being_written_when_its_model_is_closed(llm):
    whole = llm.generate(PROMPT, **OPTIONS)
    stream = llm.generate(PROMPT, stream=True, **OPTIONS)
    first = next(stream)
    llm.close()
    assert first + "".join(stream) == whole


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_close_unmaps_the_file(converted):
    llm = fastllm.load(converted, threads=1)
    llm.generate([1], max_tokens=2)
    assert maps(converted)
    llm.close()
    assert not maps(converted)
    llm = fastllm.load(converted, threads=1)
    stream = iter(llm.generate([1], stream=True, **OPTIONS))
    next(stream)
    llm.close()
    assert maps(converted)
    del stream
    assert not maps(converted)


# ---- copies and pickles ----------------------------------------------------------------------------------------------


def test_copies_are_the_same_object(llm):
    assert copy.copy(llm) is llm
    assert copy.deepcopy({"llm": [llm]})["llm"][0] is llm


def test_a_pickle_loads_the_same_files(write_model, tmp_path, monkeypatch):
    """Relative paths too, from another folder; options are kept, progress is not."""
    path = write_model()
    words = tmp_path / "elsewhere" / "words.bin"
    words.parent.mkdir()
    (tmp_path / "tokenizer.bin").rename(words)
    monkeypatch.chdir(tmp_path)
    told = []
    llm = fastllm.load(
        path.name,
        dtype="q8",
        kv="q8",
        threads=np.int64(1),
        context=np.int32(50),
        tokenizer="elsewhere/words.bin",
        progress=lambda done, total: told.append(done),
    )
    blob = pickle.dumps(llm)
    assert len(blob) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(blob)
    assert again is not llm
    assert (again.dtypes, again.context, again.threads) == (llm.dtypes, 50, 1) == (["q8"], 50, 1)
    assert again.generate(PROMPT, **OPTIONS) == llm.generate(PROMPT, **OPTIONS)
    assert pickle.loads(blob) is again  # a worker that is sent it with every task loads it once
    again.close()
    assert pickle.loads(blob).generate(PROMPT, **OPTIONS) == llm.generate(PROMPT, **OPTIONS)
    pickle.loads(blob).close()
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        pickle.loads(blob)


def test_what_load_has_not_opened_is_not_pickled():
    with pytest.raises(OptionError, match="cannot be pickled"):
        pickle.dumps(random_llm("qwen", "f32"))


# ---- processes -------------------------------------------------------------------------------------------------------

PROGRAM = """
import multiprocessing, sys
import fastllm


def work(llm, prompt):
    mapped = str(llm.path) in open("/proc/self/maps").read()
    return llm.generate(prompt, max_tokens=8, seed=1), mapped


if __name__ == "__main__":
    with fastllm.load(sys.argv[1], threads=1) as llm:
        prompts = [[1], [5], [7]]
        expected = [llm.generate(prompt, max_tokens=8, seed=1) for prompt in prompts]
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            found = pool.starmap_async(work, [(llm, prompt) for prompt in prompts]).get(100)
            assert found == [(text, True) for text in expected]
            assert pool.map_async(llm.tokenize, ["a", "the"]).get(100) == [llm.tokenize(text) for text in ("a", "the")]
            text = pool.apply_async(llm.generate, ([1],), {"max_tokens": 8, "seed": 1}).get(100)
            assert (text, text.tokens) == (expected[0], expected[0].tokens)
    print("fine")
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(converted, tmp_path, method):
    """Worker processes map the file for themselves, and write the same texts; these come back with their facts."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, converted, method], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_home_folder_and_paths(write_model, monkeypatch, tmp_path):
    path = write_model()
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = fastllm.load(path, threads=1).generate(PROMPT, **OPTIONS)
    for name in (f"~/{path.name}", Path("~") / path.name, os.fspath(path)):
        assert fastllm.load(name, tokenizer="~/tokenizer.bin", threads=1).generate(PROMPT, **OPTIONS) == expected
    assert str(tmp_path / "adapter") in refusal(lambda: fastllm.load(path, lora="~/adapter"), CheckpointError)


@pytest.mark.parametrize("name", ["path", "tokenizer", "lora"])
@pytest.mark.parametrize("value", [3, b"model.bin", "", 1.5, ["model.bin", 3]], ids=str)
def test_names_that_are_none(write_model, name, value):
    options = {} if name == "path" else {name: value}
    path = value if name == "path" else write_model()
    assert refusal(lambda: fastllm.load(path, **options), OptionError).startswith(
        (name, f"load takes a list of {name}")
    )


@pytest.mark.parametrize(
    "options",
    [{"threads": True}, {"threads": 1.0}, {"context": 0}, {"context": 10.0}, {"context": "all"}, {"kv_bytes": 0}],
    ids=str,
)
def test_numbers_that_are_none(write_model, options):
    with pytest.raises(OptionError, match=f"{next(iter(options))} must be"):
        fastllm.load(write_model(), **options)
