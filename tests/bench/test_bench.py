"""fastllm bench: its figures agree with each other, and its batches compute what single texts compute."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm import bench
from fastllm.bench import rounds
from fastllm.decoding import Sampling
from helpers.data import DATA

TINY = DATA / "llama2c_gqa_tied" / "model_v0.bin"

FIELDS = {
    *("threads", "dtype", "batch", "prompt", "gen", "prefill_tps", "decode_tps", "weight_gbps", "read_gbps"),
    *("int8_gops", "first_token_s", "rss_mb"),
}


def command(*args: object, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """Runs `fastllm bench` in a process of its own and returns what it wrote to stdout and stderr."""
    words = [sys.executable, "-m", "fastllm", "bench", *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def weights_in(file: Path) -> int:
    """The bytes of all tensors in a converted file, which a token reads all of if the head is tied."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    spans = [header[name]["data_offsets"] for name in header if name not in ("__metadata__", "tokenizer")]
    return sum(end - begin for begin, end in spans)


def test_json_is_one_list_that_fits_together(tmp_path: Path) -> None:
    lengths = ("--prompt", 20, "--gen", 6)
    out, err = command(TINY, *lengths, "--dtype", "f32,q8", "--threads", "2,1", "--batch", "3,1", "--json")
    assert err == ""
    rows = json.loads(out)
    found = [(row["dtype"], row["threads"], row["batch"]) for row in rows]
    assert found == [(dtype, threads, batch) for dtype in ("f32", "q8") for threads in (2, 1) for batch in (1, 3)]
    for row in rows:
        assert set(row) >= FIELDS
        assert (row["prompt"], row["gen"]) == (20, 6)
        assert all(row[name] > 0 for name in FIELDS - {"dtype", "rss_mb"})
        file = tmp_path / f"{row['dtype']}.safetensors"
        if not file.exists():
            words = [sys.executable, "-m", "fastllm", "convert", TINY, file, "--dtype", row["dtype"]]
            subprocess.run(words, check=True, capture_output=True)
        # A forward reads the weights once and gives each text of the batch a token.
        forwards = row["weight_gbps"] * 1e9 / weights_in(file)
        assert row["decode_tps"] == pytest.approx(forwards * row["batch"], rel=0.02)  # vectors are padded in the file
        assert row["read_share"] == pytest.approx(row["weight_gbps"] / row["read_gbps"])
        assert row["first_token_s"] >= row["batch"] * row["prompt"] / row["prefill_tps"]
        assert row["prefill_limit_tps"] * row["int8_share"] == pytest.approx(row["prefill_tps"])
        assert row["samples"] >= 5
        assert 5 < row["rss_mb"] < 2000 or not sys.platform.startswith("linux")


def test_shares_are_of_the_machine_in_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares equal a count by hand for 2 layers of width 32, 4 heads of 8 (2 for keys), 64 inside, 272 words."""
    monkeypatch.setattr(rounds, "read_bandwidth", lambda threads: 10.0 * threads)
    monkeypatch.setattr(rounds, "int8_peak", lambda threads, isa: 100.0 * threads)
    (row,) = bench.bench(TINY, prompt=10, gen=4, batches=[2], threads=[2])
    assert (row["read_gbps"], row["int8_gops"]) == (20, 200)
    config = fastllm.load(TINY).config
    dim, kv = config.dim, config.n_kv_heads * config.head_dim
    layer = 2 * dim * dim + 2 * kv * dim + 3 * dim * config.hidden_dim
    head = config.vocab_size * dim
    work = 2 * 10 * config.n_layers * layer + 2 * head  # two prompts, a row of logits for each
    assert row["int8_share"] == pytest.approx(row["prefill_tps"] / 20 * work / 200e9)
    per_token = config.n_layers * layer + head
    assert row["decode_limit_tps"] == pytest.approx(min(2 * 20e9 / row["weight_bytes"], 200e9 / per_token))


def test_the_built_in_model_by_default_as_a_table() -> None:
    out, err = command("--batch", 2, "--threads", 1, "--prompt", 5, "--gen", 3)
    assert err == ""
    names, units, row, about, machine = out.splitlines()
    assert {len(names), len(units)} == {len(row)}
    assert row.split()[:3] == ["q8", "1", "2"]
    assert about.startswith("prompt 5, then 3 tokens; ")
    assert machine.startswith("1 thread: reading alone ")


def test_a_batch_writes_what_its_texts_alone_do(write_model: Any) -> None:
    """Prompts that end inside a forward, at its end and at its beginning."""
    llm = fastllm.load(write_model(), threads=2)
    draw = random.Random(0)
    for lengths in ([100, 100, 100], [128, 128, 9], [1, 150, 105, 2, 150, 150], [7]):
        prompts = [draw.choices(range(llm.config.vocab_size), k=length) for length in lengths]
        new, sample = bench.run(llm, prompts, 9)
        greedy = Sampling(temperature=0)
        alone = [list(llm.start(prompt, greedy, max_tokens=10, seed=0, stop=())) for prompt in prompts]
        assert new == alone
        assert 0 < sample.prefill <= sample.first_token
        assert sample.decode > 0


@pytest.mark.parametrize(
    ("context", "prompt", "gen", "lengths"),
    [
        (2048, None, None, (512, 128)),
        (640, None, None, (512, 128)),
        (256, None, None, (192, 64)),
        (600, None, 200, (400, 200)),
        (600, 590, None, (590, 10)),
        (600, 500, 100, (500, 100)),
    ],
)
def test_lengths_that_fit(context: int, prompt: int | None, gen: int | None, lengths: tuple[int, int]) -> None:
    assert rounds._lengths("model", context, prompt, gen) == lengths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch", "0"], "batch must be 1 or more, not 0"),
        (["--batch", "1,,2"], "--batch takes whole numbers with commas between, not '1,,2'"),
        (["--prompt", "0"], "prompt must be 1 or more, not 0"),
        (["--gen", "-3"], "gen must be 1 or more, not -3"),
        (["--prompt", "many"], "--prompt"),
        (["--threads", "1,0"], "threads must be between 1 and 1024, not 0"),
        (["--threads", "1025"], "threads must be between 1 and 1024, not 1025"),
        (["--threads", ""], "--threads takes whole numbers"),
        (["--dtype", "q8,q9"], "not 'q9'"),
        (["--dtype", "f16"], "already converted to q8"),
        (["--prompt", "380", "--gen", "5"], "a prompt of 380 tokens and 5 new ones do not fit into the context of"),
        ([str(DATA / "amplify_tiny")], "is an encoder"),
        (["nothing.bin"], "nothing.bin does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_code_2(args: list[str], said: str, tmp_path: Path) -> None:
    out, err = command(*args, code=2, cwd=tmp_path)
    assert out == ""
    assert err.startswith("fastllm")
    assert said in err
    assert len(err.splitlines()) == 1


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, err = command(TINY, "--batch", "1,2", "--threads", 1, "--gen", 4, "--plot", "plot.png", cwd=tmp_path)
    assert len(out.splitlines()) == 6
    assert err == ""
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    bench.check_plot(tmp_path / "another.SVG")
    for name, said in {"plot": "must end in one of", "plot.doc": r"\.png", "no/plot.png": "cannot be written"}.items():
        with pytest.raises(fastllm.OptionError, match=said):
            bench.check_plot(tmp_path / name)


def test_plot_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(fastllm.OptionError, match=r"pip install 'fastllm\[plot\]'"):
        bench.check_plot("plot.png")


def test_a_worker_that_was_killed() -> None:
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(fastllm.FastLLMError, match=r"model\.bin as q8 ended: maybe for lack of memory"):
        rounds._Worker(ours, "model.bin as q8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget a peak")
def test_a_peak_of_memory_can_be_forgotten() -> None:
    # The memory is mapped for this alone: an allocator might keep what was freed.
    code = """
import mmap
from fastllm.bench import child
size = 100 << 20
with mmap.mmap(-1, size) as pages:
    for at in range(0, size, mmap.PAGESIZE):
        pages[at] = 1
before = child.peak_rss()
child.reset_peak()
assert before > size, before
assert child.peak_rss() < before - size // 2, (before, child.peak_rss())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
