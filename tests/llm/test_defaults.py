"""The sampling options of a checkpoint are those of its texts, unless the user says otherwise."""

import json
import struct

import pytest

import fastllm
from fastllm import CheckpointError, cli
from fastllm.decoding import DEFAULTS, Sampling
from fastllm.weights import store
from fastllm.weights.convert import convert
from helpers import writers
from helpers.writers import SMALL

MOST = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 0.9,
    "repetition_penalty": 1.05,
    "eos_token_id": [2, 3],
    "do_sample": True,
    "max_length": 20,
    "transformers_version": "4.51.0",
}


@pytest.fixture
def folder(tmp_path):
    return writers.write_folder(tmp_path / "model", SMALL, writers.random_weights(SMALL))


def defaults(folder, **options):
    (folder / "generation_config.json").write_text(json.dumps(options))
    return fastllm.load(folder, threads=1).defaults


def test_none(folder, llm):
    """llama2.c's files keep the defaults of run.c; so does a checkpoint that names no option."""
    assert llm.defaults == fastllm.load(folder, threads=1).defaults == DEFAULTS == Sampling(temperature=1.0, top_p=0.9)
    assert defaults(folder, eos_token_id=3, do_sample=True, top_p=None, temperature=None) == DEFAULTS


def test_some(folder):
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    assert defaults(folder, **MOST) == Sampling(**{name: MOST[name] for name in names})
    assert defaults(folder, temperature=0.7) == Sampling(temperature=0.7, top_p=1.0)
    assert defaults(folder, top_k=0, top_p=1) == Sampling(top_p=1)
    assert defaults(folder, do_sample=False, temperature=0.9) == Sampling(temperature=0, top_p=1)


def test_what_they_change(folder):
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 2.5, "top_k": 7}))
    llm, options = fastllm.load(folder, threads=1), {"max_tokens": 30, "seed": 3, "stop": ()}
    ids = llm.generate([1, 5], **options)
    assert ids == llm.generate([1, 5], temperature=2.5, top_k=7, top_p=1, **options)
    overruled = llm.generate([1, 5], temperature=1, top_k=0, top_p=0.9, **options)
    assert overruled != ids
    (folder / "generation_config.json").unlink()
    assert fastllm.load(folder, threads=1).generate([1, 5], **options) == overruled


def test_a_converted_file_keeps_them(folder, tmp_path, capsys):
    expected, out = defaults(folder, **MOST), tmp_path / "out.safetensors"
    convert(folder, out, dtype="f32")
    assert fastllm.load(out, threads=1).defaults == expected
    again = tmp_path / "again.safetensors"
    convert(out, again, dtype="q8")
    assert fastllm.load(again, threads=1).defaults == expected
    for path in (folder, again):
        assert cli.main(["inspect", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "  sampling       {" in shown
        assert "'temperature': 0.6," in shown
    back = tmp_path / "back.bin"
    convert(out, back, format="llama2c")
    assert fastllm.load(back, threads=1).defaults == DEFAULTS


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature must be a number between 0 and 10000, not -1"),
        ({"top_k": 2.5}, "top_k 2.5"),
        ({"top_p": [1]}, "top_p"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"min_p": True}, "min_p True"),
        ({"do_sample": "no"}, "do_sample 'no'"),
    ],
    ids=repr,
)
def test_impossible(folder, options, cause):
    with pytest.raises(CheckpointError, match=cause) as error:
        defaults(folder, **options)
    assert str(folder) in str(error.value)


def test_a_converted_file_with_impossible_ones(folder, tmp_path):
    out = tmp_path / "out.safetensors"
    defaults(folder, temperature=0.5)
    convert(folder, out, dtype="f32")
    data = out.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    about = json.loads(header["__metadata__"]["fastllm"])
    for broken in ({"temperature": -1}, {"heat": 1}, {"top_k": [1]}, "hot", 5, [1]):
        header["__metadata__"]["fastllm"] = json.dumps({**about, "sampling": broken})
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        out.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        with pytest.raises(CheckpointError, match=str(out)):
            fastllm.load(out, threads=1)


def test_the_same_file_without_them(folder, tmp_path):
    """A checkpoint that names no options gives the file that it always gave."""
    convert(folder, tmp_path / "out.safetensors", dtype="f32")
    assert store.open_file(tmp_path / "out.safetensors").sampling == {}
    assert b"sampling" not in (tmp_path / "out.safetensors").read_bytes()[:4096]


def test_the_least_top_p_is_greedy(llm):
    options = {"max_tokens": 30, "seed": 1}
    greedy = llm.generate("the ocean", temperature=0, **options)
    assert llm.generate("the ocean", top_p=0, **options) == greedy
    assert llm.generate("the ocean", top_p=1e-9, **options) == greedy
    assert llm.generate("the ocean", top_k=-1, top_p=1, **options) != greedy
