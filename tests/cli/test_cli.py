"""The command line beside `run` and `chat`: info, inspect, convert and embed, mistakes, and how fast it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.commands import TINY, fastllm, one_sentence
from helpers.data import DATA, ROOT


def test_info_says_what_was_built_found_and_chosen() -> None:
    from fastllm import _core

    out, _ = fastllm("info", FASTLLM_ISA="")
    for name, _supported in _core.isas():
        assert name in out
    assert re.search(rf"chosen: +{_core.best_isa()} ", out)
    assert re.search(r"threads: +\d+ \(", out)
    assert re.search(r"families: AMPLIFY, bert, .*, qwen3, ", out)
    out, _ = fastllm("info", FASTLLM_ISA="scalar")
    assert re.search(r"chosen: +scalar \(FASTLLM_ISA\)", out)
    _, err = fastllm("info", FASTLLM_ISA="mmx", code=2)
    assert "'mmx'" in one_sentence(err)
    assert "scalar" in err


def test_inspect_shows_config_and_every_tensor() -> None:
    out, _ = fastllm("inspect", str(TINY))
    assert "llama2.c v0" in out
    assert re.search(r"n_kv_heads +2\n", out)
    assert re.search(r"layers\.1\.feed_forward\.w2\.weight +f32 +32 x 64 +8,192 bytes", out)
    demo = Path(__import__("fastllm").__file__).parent / "demo" / "stories.safetensors"
    out, _ = fastllm("inspect", str(demo))
    assert "sentencepiece" in out
    assert re.search(r"embed +q8 +1024 x 128 ", out)


def test_inspect_shows_a_folder(tmp_path: Path) -> None:
    import numpy
    import safetensors.numpy

    (tmp_path / "config.json").write_text('{"architectures": ["SomethingModel"], "many": "' + "x" * 1000 + '"}')
    tensors = {"a.weight": numpy.zeros((3, 5), numpy.float16), "b": numpy.zeros(7, numpy.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    out, _ = fastllm("inspect", str(tmp_path))
    assert re.search(r"architecture +SomethingModel\n", out)
    assert re.search(r"a\.weight +f16 +3 x 5 +30 bytes\n", out)
    assert "2 tensors, 22 parameters, 58 bytes\ncannot be run: " in out
    assert max(map(len, out.splitlines())) < 300


def test_convert_then_run(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    said, err = fastllm("convert", str(TINY), str(out), "--dtype", "q8", "--verify")
    assert said == ""
    size, found = err.splitlines()
    assert size == f"{out}: {out.stat().st_size:,} bytes"
    pattern = (
        r"over \d+ tokens: logits differ by at most [\d.e-]+, by [\d.e-]+ in the mean; KL [\d.e-]+; top-1 .* \d+.*%"
    )
    assert re.fullmatch(pattern, found), found
    words = ("-s", "3", "-n", "30", "-i", "a")
    assert fastllm("run", str(out), *words)[0] == fastllm("run", str(TINY), "--dtype", "q8", *words)[0]
    assert "llama2.c v0" in fastllm("inspect", str(out))[0]
    back = tmp_path / "model.bin"
    _, err = fastllm("convert", str(TINY), str(back), "--format", "llama2c", "--version", "1", "--verify")
    assert "KL 0; top-1 agreement 100.0%" in err
    assert back.read_bytes() == (DATA / "llama2c_gqa_tied" / "model_v1.bin").read_bytes()


def test_convert_misses_a_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(TINY.read_bytes())
    _, err = fastllm("convert", str(model), "out", cwd=tmp_path)
    assert "without a tokenizer: no tokenizer fits" in err


def test_embed_prints_a_line_for_each_text() -> None:
    texts = ["hi", "and again", "", "hi"]
    by_argument, _ = fastllm("embed", str(TINY), *texts)
    by_line, _ = fastllm("embed", str(TINY), stdin="".join(f"{text}\n" for text in texts))
    assert by_argument == by_line
    of_windows, _ = fastllm("embed", str(TINY), stdin="".join(f"{text}\r\n" for text in texts))
    assert of_windows == by_line
    vectors = [json.loads(line) for line in by_line.splitlines()]
    assert [len(vector) for vector in vectors] == [32] * 4
    assert vectors[0] == vectors[3] != vectors[1]
    unit, _ = fastllm("embed", str(TINY), "hi", "--normalize", "--pooling", "last", "--text")
    assert abs(sum(float(x) ** 2 for x in unit.split()) - 1) < 1e-5
    import fastllm as package

    expected = package.load(TINY).embed(["hi"], pooling="last", normalize=True)
    assert [float(x) for x in unit.split()] == [float(str(x)) for x in expected[0]]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["convert", str(TINY), "out", "--dtype", "q3"], "dtype must be one of f32, f16, bf16, q8, q4, not 'q3'"),
        (["convert", str(TINY), "."], "cannot be written: it is a folder"),
        (["convert", "nothing.bin", "out"], "nothing.bin does not exist"),
        (["convert", str(TINY), str(TINY)], "it is what would be converted"),
        (["convert", str(TINY), "out", "--version", "1"], "goes with the format llama2c"),
        (["convert", str(TINY)], "OUT"),
        (["embed", str(TINY), "hi", "--pooling", "sum"], "--pooling"),
        (["run", str(TINY), "--revision", "main"], "not a name of the hub"),
        (["run", str(TINY), "--kv", "q5"], "kv must be one of f32, f16, q8, q4, not 'q5'"),
        (["run", "nothing.bin"], "nothing.bin does not exist"),
        (["run", "."], "folder"),
        (["run", str(TINY), "-z", "nothing.model"], "nothing.model does not exist"),
        (["run", str(TINY), "-z", str(DATA / "llama2c_untied" / "tokenizer.bin")], "264 words, the model 272"),
        (["run", "-t", "-1"], "temperature"),
        (["run", "-t", "nan"], "temperature"),
        (["run", "-t", "warm"], "temperature"),
        (["run", "-p", "1.5"], "--top-p"),
        (["run", "--min-p", "2"], "--min-p"),
        (["run", "--top-k", "-3"], "--top-k"),
        (["run", "-n", "-3"], "-n"),
        (["run", "--max-tokens", "-3"], "--max-tokens"),
        (["run", "-n", "3", "--max-tokens", "3"], "not allowed with"),
        (["run", "-s", "-3"], "seed"),
        (["run", "--threads", "0"], "threads"),
        (["run", "--context", "0"], "context"),
        (["run", "--context", "100000"], "context"),
        (["run", "--dtype", "q3"], "dtype"),
        (["run", "--dtype", "f32"], "already converted"),
        (["run", "--context", "8", "-i", "a prompt that is much longer than that"], "context"),
        (["inspect", "nothing.bin"], "does not exist"),
        (["fly"], "fly"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(args: list[str], said: str, tmp_path: Path) -> None:
    out, err = fastllm(*args, code=2, cwd=tmp_path)
    assert out == ""
    assert said in one_sentence(err)


def test_no_tokenizer_names_every_place(tmp_path: Path) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    model = beside / "model.bin"
    model.write_bytes(TINY.read_bytes())
    _, err = fastllm("run", str(model), code=2, cwd=here)
    one_sentence(err)
    for folder in (beside, here):
        assert f"{folder} has no tokenizer.bin, tok272.bin, tokenizer.model, tokenizer.json" in err
    # A tokenizer of another size is passed over, a fitting one is used.
    (beside / "tokenizer.bin").write_bytes((DATA / "llama2c_untied" / "tokenizer.bin").read_bytes())
    (here / "tok272.bin").write_bytes((DATA / "llama2c_gqa_tied" / "tokenizer.bin").read_bytes())
    fastllm("run", str(model), "-n", "5", cwd=here)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    for version in ("v0", "v1", "v2_q80"):
        whole = (DATA / "llama2c_gqa_tied" / f"model_{version}.bin").read_bytes()
        model.write_bytes(whole[: len(whole) * 2 // 3])
        _, err = fastllm("run", str(model), code=2)
        assert str(model) in one_sentence(err)
        assert "truncated" in err


def test_start_is_quick() -> None:
    """A run without a prompt imports no library that it does not need, which keeps its start short."""
    code = "import sys; from fastllm import cli; cli.main(['run', '-n', '2', '-s', '1']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    loaded = done.stdout.decode().split()
    assert "fastllm._core" in loaded
    for heavy in _HEAVY:
        assert heavy not in loaded


_HEAVY = ("numpy", "sentencepiece", "safetensors", "tokenizers", "dataclasses", "tempfile", "rich", "huggingface_hub")


@pytest.mark.parametrize("name", ["model_v0.bin", "model_v2_q80.bin", "model.safetensors"])
def test_files_start_as_quickly(tmp_path: Path, name: str) -> None:
    """llama2.c's files and converted ones import as little as the built-in model."""
    model = DATA / "llama2c_gqa_tied" / name
    if name == "model.safetensors":
        model = tmp_path / name
        fastllm("convert", str(TINY), str(model), "--dtype", "q8")
    code = f"import sys; from fastllm import cli; cli.main(['run', {str(model)!r}, '-n', '2']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert not set(_HEAVY) & set(done.stdout.decode(errors="replace").split())


def test_time_to_interrupt_is_short() -> None:
    """Ctrl-C ends the process even before the first token."""
    with subprocess.Popen(
        [sys.executable, "-m", "fastllm", "chat", str(TINY)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, -signal.SIGINT)


def test_readme_shows_stories_unedited() -> None:
    readme = (ROOT / "README.md").read_text()
    quoted = "\n".join(line[2:] for line in readme.splitlines() if line.startswith(">"))
    for seed in "123":
        assert fastllm("run", "-s", seed)[0].rstrip("\n") in quoted


def test_stdin_that_is_no_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", "embed", str(DATA / "amplify_tiny")],
        input=b"MKV\n\xff\xfe\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastllm", "run", str(TINY), "-n", "3"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left" in one_sentence(done.stderr.decode().splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr.decode()
