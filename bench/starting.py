"""Starts: from `python -m fastllm run FILE` to the first token, of a model of 1.1 billion random weights in GGUF.

    python bench/starting.py TOKENIZER.gguf [--types Q4_K,Q8_0] [--llama PYTHON] [--folder DIR]

TOKENIZER.gguf is any GGUF file: its vocabulary is taken over. For each type a model is written below DIR (a temporary
folder by default), and processes are started in turn, each of which writes one token:

    first        nothing is in the packed cache: the file is read and packed
    second       the packed cache has it
    converted    the file that `fastllm convert` makes of it
    llama.cpp    llama-cpp-python, where --llama names a Python that has it

The table has the medians of seconds by the clock from the start of the process to the first token and to its end, and
the peak of resident memory, mapped files included. All files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

# As TinyLlama.
_DIM, _HIDDEN, _LAYERS, _HEADS, _KV_HEADS = 2048, 5632, 22, 32, 4
# A type -> values of a block, its bytes, where its f16 scale is, and its f16 minimum.
_BLOCKS = {"Q4_0": (32, 18, 0, None), "Q4_K": (256, 144, 0, 2), "Q8_0": (32, 34, 0, None)}
_SCALE = 0.0005
_PROMPT = "x"
_ONE_TOKEN = """
import sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=512, verbose=False, n_threads=int(sys.argv[2]))
print("x", llm("x", max_tokens=1, temperature=0)["choices"][0]["text"], flush=True)
"""


class Start(NamedTuple):
    """A process: seconds to the first token and to its end, and the peak of its resident memory in MB."""

    token: float
    seconds: float
    megabytes: float


def write_model(path: Path, tokenizer: Path, kind: str) -> None:
    """A Llama of random blocks, with the tokenizer of another GGUF file."""
    writer = GGUFWriter(path, "llama")
    source = GGUFReader(tokenizer)
    for name, field in source.fields.items():
        if name.startswith("tokenizer.") and "chat_template" not in name:
            of = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), GGUFValueType(field.types[0]), of)
    vocabulary = len(source.fields["tokenizer.ggml.tokens"].data)
    writer.add_context_length(2048)
    writer.add_embedding_length(_DIM)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    rng = np.random.default_rng(1)
    kv = _DIM // _HEADS * _KV_HEADS
    layer = {"attn_q": (_DIM, _DIM), "attn_k": (kv, _DIM), "attn_v": (kv, _DIM), "attn_output": (_DIM, _DIM)}
    layer |= {"ffn_gate": (_HIDDEN, _DIM), "ffn_up": (_HIDDEN, _DIM), "ffn_down": (_DIM, _HIDDEN)}
    shapes = {"token_embd": (vocabulary, _DIM), "output": (vocabulary, _DIM)}
    norms = ["output_norm"]
    for i in range(_LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(_DIM, np.float32))
    for name, (d, n) in shapes.items():
        writer.add_tensor(f"{name}.weight", _blocks(kind, d, n, rng), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: str, d: int, n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A matrix of random blocks, uint8 [d, bytes of a row]."""
    values, size, scale, minimum = _BLOCKS[kind]
    blocks = rng.integers(0, 256, (d * n // values, size), np.uint8)
    blocks[:, scale : scale + 2] = np.array([_SCALE], "<f2").view(np.uint8)
    if minimum is not None:
        blocks[:, minimum : minimum + 2] = np.array([7.5 * _SCALE], "<f2").view(np.uint8)
    return blocks.reshape(d, -1)


def start(command: Sequence[str | Path], **environment: str) -> Start:
    """Runs a command. Raises RuntimeError with what it said where it fails."""
    begin = time.perf_counter()
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env={**os.environ, **environment})
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(len(_PROMPT) + 1)  # the prompt, and the first byte of the token
    token = time.perf_counter() - begin
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(said)
    return Start(token, seconds, usage.ru_maxrss / 1000)


def measure(model: Path, folder: Path, *, times: int, llama: str | None) -> dict[str, list[Start]]:
    """The starts of a model, by their kind, interleaved."""
    cache, converted = folder / "cache", folder / "converted.safetensors"
    fastllm = [sys.executable, "-m", "fastllm"]
    end = (_PROMPT, "--max-tokens", "1", "--temperature", "0")
    subprocess.run([*fastllm, "convert", model, converted], check=True, capture_output=True)
    found: dict[str, list[Start]] = {"first": [], "second": [], "converted": []}
    if llama:
        found["llama.cpp"] = []
    threads = str(len(os.sched_getaffinity(0)))
    for _ in range(times):
        shutil.rmtree(cache, ignore_errors=True)
        for kind in ("first", "second"):
            found[kind].append(start([*fastllm, "run", model, *end], FASTLLM_CACHE=str(cache)))
        found["converted"].append(start([*fastllm, "run", converted, *end]))
        if llama:
            found["llama.cpp"].append(start([llama, "-c", _ONE_TOKEN, model, threads]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a GGUF file, whose vocabulary the models have")
    parser.add_argument("--types", default="Q4_K,Q8_0", help=f"of {', '.join(_BLOCKS)} (default Q4_K,Q8_0)")
    parser.add_argument("--times", type=int, default=5, help="starts of each kind (default 5)")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--folder", type=Path, help="where models are written, and left")
    args = parser.parse_args()
    print("| | file, MB | start | first token, s | end, s | memory, MB |\n| --- | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for kind in args.types.split(","):
            model = folder / f"random-{kind}.gguf"
            if not model.exists():  # in a process of its own: a process's peak of memory begins with its parent's
                writing = get_context("spawn").Process(target=write_model, args=(model, args.tokenizer, kind))
                writing.start()
                writing.join()
            for name, starts in measure(model, folder, times=args.times, llama=args.llama).items():
                token, seconds, megabytes = (statistics.median(column) for column in zip(*starts, strict=True))
                size = model.stat().st_size / 1e6
                print(f"| {kind} | {size:.0f} | {name} | {token:.2f} | {seconds:.2f} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
