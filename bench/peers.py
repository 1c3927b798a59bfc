"""Single-stream decode beside the peers: python bench/peers.py [--llama2c DIR] [--llama-cpp-python PYTHON]

The weights are random, of stories15M's shape, quantized once to int8 in groups of 32 with f16 scales, so that every
peer's file holds the same numbers. Each measurement is a process of its own; peers, thread counts and a plain reading
of memory take turns. A peer that is not there is left out with a line that says so. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

DIM, HIDDEN, LAYERS, HEADS, VOCAB, CONTEXT, GROUP = 288, 768, 6, 6, 32000, 1024, 32
LAYER = {"wq": (DIM, DIM), "wk": (DIM, DIM), "wv": (DIM, DIM), "wo": (DIM, DIM)}
LAYER |= {"w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM)}
NORMS = [*(f"att{i}" for i in range(LAYERS)), *(f"ffn{i}" for i in range(LAYERS)), "final"]
WEIGHTS = VOCAB * DIM + LAYERS * sum(d * n for d, n in LAYER.values())  # a token reads each once: the head is tied
NEW = 200  # tokens that are timed, after BOS and the first, which comes with it


# ---- the model -----------------------------------------------------------------------------------------------------


def make_weights() -> dict[str, np.ndarray]:
    """Name -> f32 norm, name.q -> int8 (d, n), name.s -> f16 scales (d, n / GROUP)."""
    rng = np.random.default_rng(1234)
    arrays = {name: 1 + 0.1 * rng.standard_normal(DIM, np.float32) for name in NORMS}
    shapes = {"embed": (VOCAB, DIM)} | {f"{name}{i}": s for name, s in LAYER.items() for i in range(LAYERS)}
    for name, (d, n) in shapes.items():
        w = 0.05 * rng.standard_normal((d, n // GROUP, GROUP), np.float32)
        if name == "embed":
            w[:3] *= 0.2  # as outputs, never the most likely: no text ends early
        scale = (np.abs(w).max(-1) / 127).astype(np.float16)
        values = np.clip(np.rint(w / scale[..., None].astype(np.float32)), -127, 127)
        arrays[f"{name}.q"], arrays[f"{name}.s"] = values.astype(np.int8).reshape(d, n), scale
    return arrays


def write_llama2c(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """llama2.c's version 2, and beside it a tokenizer whose every token prints as one word."""
    header = struct.pack("<Ii7iBi", 0x616B3432, 2, DIM, HIDDEN, LAYERS, HEADS, HEADS, VOCAB, CONTEXT, 1, GROUP)
    with open(path, "wb") as file:
        file.write(header.ljust(256, b"\0"))
        for name in NORMS:
            file.write(arrays[name].tobytes())
        for name in ["embed", *(f"{name}{i}" for name in LAYER for i in range(LAYERS))]:
            file.write(arrays[f"{name}.q"].tobytes() + arrays[f"{name}.s"].astype("<f4").tobytes())
    with open(path.with_name("tokenizer.bin"), "wb") as file:
        file.write(struct.pack("<i", 7))
        for i in range(VOCAB):
            file.write(struct.pack("<fi", 0, 7) + b" w%05d" % i)


def write_gguf(path: str, weights: str) -> None:
    """The same as GGUF Q8_0; runs where the gguf package is."""
    import gguf

    arrays = np.load(weights)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, ours: str) -> None:
        q, s = arrays[f"{ours}.q"], arrays[f"{ours}.s"]
        blocks = np.concatenate([s[..., None].view(np.uint8), q.reshape(*s.shape, GROUP).view(np.uint8)], -1)
        writer.add_tensor(name, blocks.reshape(len(q), -1), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", "embed")
    writer.add_tensor("output_norm.weight", arrays["final"])
    theirs = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    theirs |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    for i in range(LAYERS):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", arrays[f"att{i}"])
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", arrays[f"ffn{i}"])
        for ours, name in theirs.items():
            matrix(f"blk.{i}.{name}.weight", f"{ours}{i}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what runs in a process of its own: prints one number ----------------------------------------------------------


def run_fastllm(model: str, threads: int) -> float:
    """Tokens/s of greedy decode, with its arg max."""
    import fastllm
    from fastllm.sampling import Sampling

    llm = fastllm.load(model, dtype="q8", threads=threads)
    tokens = iter(llm.start([1], Sampling(temperature=0), max_tokens=NEW + 1, seed=0, stop=()))
    next(tokens)  # comes with the prompt
    start = time.perf_counter()
    count = sum(1 for _ in tokens)
    return count / (time.perf_counter() - start)


def run_llama_cpp(model: str, threads: int) -> float:
    """Tokens/s of llama_decode, a token at a time, each waited for. Tokens are given, not sampled: its best case."""
    import ctypes

    import llama_cpp as lib

    log = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(log, ctypes.c_void_p(0))
    lib.llama_backend_init()
    loaded = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, threads, threads
    context = lib.llama_init_from_model(loaded, params) if loaded else None
    if not context:
        raise RuntimeError("llama.cpp does not load the model")
    one = (lib.llama_token * 1)()
    batch = lib.llama_batch_get_one(one, 1)

    def decode(token: int) -> None:
        one[0] = token
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        lib.llama_get_logits_ith(context, -1)  # waits for them

    decode(1)
    start = time.perf_counter()
    for token in range(1000, 1000 + NEW):
        decode(token)
    return NEW / (time.perf_counter() - start)


def read_memory(_: str, threads: int) -> float:
    """GB/s of plain reading."""
    from fastllm.machine import read_bandwidth

    return read_bandwidth(threads)


CHILDREN = {f.__name__: f for f in (run_fastllm, run_llama_cpp, read_memory, write_gguf)}


def child(python: str, function: str, *args: str | int) -> Any:
    """Calls one of CHILDREN in another interpreter."""
    return json.loads(run([python, __file__, "--child", function, json.dumps(args)]).stdout)


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} failed:\n{done.stderr[-2000:]}")
    return done


# ---- the peers -----------------------------------------------------------------------------------------------------


class Peer(ABC):
    """Someone to measure. The first of them is fastllm, which the others are compared with."""

    name: str
    bytes_per_weight: float

    def prepare(self, folder: Path) -> str | None:
        """Makes what it runs from model.bin (llama2.c) or weights.npz in `folder`, or says why it is left out."""
        self.model = folder / "model.bin"
        return None

    @abstractmethod
    def measure(self, threads: int) -> float:
        """Tokens/s, in a process of its own."""


class FastLLM(Peer):
    name, bytes_per_weight = "fastllm q8", 1 + 2 / GROUP

    def measure(self, threads: int) -> float:
        return float(child(sys.executable, "run_fastllm", str(self.model), threads))


class Llama2c(Peer):
    name, bytes_per_weight = "llama2.c runq", 1 + 4 / GROUP

    def __init__(self, source: Path | None) -> None:
        self.source = source

    def prepare(self, folder: Path) -> str | None:
        if self.source is None:
            return "--llama2c is not given"
        self.program = self.source.resolve() / "runq"
        if not os.access(self.program, os.X_OK):
            return f"{self.program} is no program: run make there"
        return super().prepare(folder)

    def measure(self, threads: int) -> float:
        command = [self.program, self.model, "-z", self.model.with_name("tokenizer.bin"), "-t", "0", "-n", str(NEW + 1)]
        done = run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        speed = re.search(r"achieved tok/s: ([\d.]+)", done.stderr)
        if not speed or len(done.stdout.split()) != NEW + 1:
            raise RuntimeError("runq did not write the whole text")
        return float(speed[1])


class LlamaCpp(Peer):
    name, bytes_per_weight = "llama.cpp Q8_0", 1 + 2 / GROUP

    def __init__(self, python: str) -> None:
        self.python = python

    def prepare(self, folder: Path) -> str | None:
        try:
            run([self.python, "-c", "import llama_cpp, gguf"])
        except (RuntimeError, OSError) as error:
            return str(error).strip().splitlines()[-1]
        self.model = folder / "model.gguf"
        child(self.python, "write_gguf", str(self.model), str(folder / "weights.npz"))
        return None

    def measure(self, threads: int) -> float:
        return float(child(self.python, "run_llama_cpp", str(self.model), threads))


# ---- the table -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama2c", type=Path, metavar="DIR", help="a clone of llama2.c with a built runq")
    parser.add_argument("--llama-cpp-python", default=sys.executable, metavar="PYTHON", help="one that has llama_cpp")
    parser.add_argument("--threads", type=counts, default="1,2", help="thread counts (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default %(default)s)")
    args = parser.parse_args()
    peers = [FastLLM(), Llama2c(args.llama2c), LlamaCpp(args.llama_cpp_python)]
    try:
        with tempfile.TemporaryDirectory(prefix="fastllm-peers-") as folder:
            compare(peers, Path(folder), args.threads, max(1, args.repeats))
    except RuntimeError as error:
        sys.exit(f"peers: {error}")


def counts(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def compare(peers: Sequence[Peer], folder: Path, thread_counts: Sequence[int], repeats: int) -> None:
    arrays = make_weights()
    np.savez(folder / "weights.npz", **arrays)
    write_llama2c(folder / "model.bin", arrays)
    absent = {peer.name: why for peer in peers if (why := peer.prepare(folder))}
    for name, why in absent.items():
        print(f"{name}: left out, {why}")
    there = [peer for peer in peers if peer.name not in absent]
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(repeats):
        for threads in thread_counts:
            speeds["memory", threads].append(child(sys.executable, "read_memory", "", threads))
            for peer in there:
                speeds[peer.name, threads].append(peer.measure(threads))
    for threads in thread_counts:
        report(threads, there, {name: values for (name, n), values in speeds.items() if n == threads})


def report(threads: int, peers: Sequence[Peer], speeds: Mapping[str, Sequence[float]]) -> None:
    ours, read = median(speeds[peers[0].name]), median(speeds["memory"])
    print(f"\n{threads} thread{'s' if threads > 1 else ''}:\n")
    print("| | tokens/s | slowest to fastest | GB/s | of memory | fastllm is |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for peer in peers:
        runs = speeds[peer.name]
        gbps = median(runs) * WEIGHTS * peer.bytes_per_weight / 1e9
        cells = [peer.name, f"{median(runs):,.0f}", f"{min(runs):,.0f} to {max(runs):,.0f}", f"{gbps:.1f}"]
        cells += [f"{gbps / read:.0%}", f"{ours / median(runs):.2f} x"]
        print(f"| {' | '.join(cells)} |")
    print(f"| reading memory | | | {read:.1f} | 100% | |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*json.loads(sys.argv[3]))))
    else:
        main()
