"""Real sizes: random checkpoints of the true shapes are written, converted to q8 and run.

    python bench/real_sizes.py --folder DIR llama-2-7b llama-3-8b grok-1-pair

Prints for each the bytes read and written, the seconds and the memory of the conversion (without the page cache), and
tokens/s. One model at a time is on the disk, of up to 27 GB. Grok-1 is two of the release's 64 layers at full width,
from which the needs of all 64 are computed at the end.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PATTERN = 64 << 20  # bytes of random values, of which every tensor is made


class Llama(NamedTuple):
    architecture: str
    dtype: str  # as safetensors names it
    config: dict[str, object]
    shards: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c: dict[str, int] = self.config  # type: ignore[assignment]  # the values used here are numbers
        dim, hidden, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
        kv = dim // c["num_attention_heads"] * c["num_key_value_heads"]
        yield "model.embed_tokens.weight", (vocab, dim)
        for i in range(c["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            for name, shape in (
                ("self_attn.q_proj", (dim, dim)),
                ("self_attn.k_proj", (kv, dim)),
                ("self_attn.v_proj", (kv, dim)),
                ("self_attn.o_proj", (dim, dim)),
                ("mlp.gate_proj", (hidden, dim)),
                ("mlp.up_proj", (hidden, dim)),
                ("mlp.down_proj", (dim, hidden)),
                ("input_layernorm", (dim,)),
                ("post_attention_layernorm", (dim,)),
            ):
                yield f"{layer}.{name}.weight", shape
        yield "model.norm.weight", (dim,)
        yield "lm_head.weight", (vocab, dim)


_SHAPES = {"num_attention_heads": 32, "num_hidden_layers": 32, "hidden_size": 4096, "hidden_act": "silu"}
LLAMAS = {
    "llama-2-7b": Llama(
        "LlamaForCausalLM",
        "F16",
        _SHAPES
        | {
            "intermediate_size": 11008,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        2,
    ),
    "llama-3-8b": Llama(
        "LlamaForCausalLM",
        "BF16",
        _SHAPES
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
        },
        4,
    ),
}

# ---- writing -------------------------------------------------------------------------------------------------------


def _pattern(dtype: str) -> bytes:
    """The bytes of normal values with the standard deviation of trained weights, 0.02."""
    values = (np.random.default_rng(0).standard_normal(_PATTERN // 2, np.float32) * 0.02).astype(np.float32)
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def write_llama(folder: Path, model: Llama) -> None:
    config = model.config | {"architectures": [model.architecture], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(model.tensors())
    pattern = memoryview(_pattern(model.dtype))
    ones = np.float16(1).tobytes() if model.dtype == "F16" else b"\x80\x3f"
    names = {}
    for shard in range(model.shards):
        part = tensors[len(tensors) * shard // model.shards : len(tensors) * (shard + 1) // model.shards]
        name = f"model-{shard + 1:05}-of-{model.shards:05}.safetensors"
        header, offset = {}, 0
        for key, shape in part:
            size = 2 * int(np.prod(shape))
            header[key] = {"dtype": model.dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            names[key] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, shape in part:
                left = 2 * int(np.prod(shape))
                if len(shape) == 1:
                    file.write(ones * (left // 2))
                    continue
                start = hash_of(key) % (_PATTERN // 2) * 2  # so that no two matrices are equal
                while left:
                    piece = pattern[start : start + min(left, _PATTERN - start)]
                    file.write(piece)
                    left, start = left - len(piece), 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % 1_000_003


class QuantizedWeight8bit:
    """The class as which the released code pickles a matrix."""

    def __init__(self, weight: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self.weight, self.scales = weight, scales


GROK = {"emb": 6144, "ffn": 32768, "experts": 8, "heads": 48, "kv_heads": 8, "key": 128, "vocab": 131072}


def write_grok(folder: Path, layers: int = 2) -> None:
    g = GROK
    config = {
        "vocab_size": g["vocab"],
        "pad_token": 0,
        "eos_token": 2,
        "sequence_len": 8192,
        "output_multiplier_scale": 0.5773502691896257,
        "embedding_multiplier_scale": 78.38367176906169,
        "model": {
            "emb_size": g["emb"],
            "widening_factor": 8,
            "key_size": g["key"],
            "num_q_heads": g["heads"],
            "num_kv_heads": g["kv_heads"],
            "num_layers": layers,
            "attn_output_multiplier": 0.08838834764831845,
            "num_experts": g["experts"],
            "num_selected_experts": 2,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ckpt-0").mkdir()
    rng = np.random.default_rng(0)
    pattern = rng.integers(-127, 128, _PATTERN, np.int8)

    def matrix(*shape: int) -> QuantizedWeight8bit:
        *stack, _, outputs = shape
        scales = np.full((*stack, 8, outputs), 0.02 / 73, np.float32)  # deviation 0.02 for uniform int8
        return QuantizedWeight8bit(np.resize(pattern, shape), scales)

    emb, ffn, experts = g["emb"], g["ffn"], g["experts"]
    q, kv = g["heads"] * g["key"], g["kv_heads"] * g["key"]
    leaves: list[object] = [rng.standard_normal((g["vocab"], emb), np.float32) * 0.02, np.ones(emb, np.float32)]
    number = 0

    def put(value: object) -> None:
        nonlocal number
        with (folder / "ckpt-0" / f"tensor{number:05}_000").open("wb") as file:
            pickle.dump(value, file, protocol=4)
        number += 1

    for leaf in leaves:
        put(leaf)
    leaves.clear()
    for _ in range(layers):
        put(matrix(experts, emb, ffn))
        put(matrix(experts, ffn, emb))
        put(matrix(experts, emb, ffn))
        for shape in ((emb, kv), (q, emb), (emb, q), (emb, kv)):
            put(matrix(*shape))
        for _ in range(4):
            put(np.ones(emb, np.float32))
        put(rng.standard_normal((emb, experts), np.float32))


# ---- measuring -----------------------------------------------------------------------------------------------------

# Generates in a process of its own, so that its memory can be measured. There is no tokenizer: texts are ids.
_RUN = """
import json, sys, time
start = time.perf_counter()
import fastllm
from fastllm.decoding import DEFAULTS
llm = fastllm.load(sys.argv[1], context=512)
loaded = time.perf_counter() - start
prompt = [1 + i * 7919 % (llm.config.vocab_size - 1) for i in range(128)]
for _ in range(2):  # the second run has the file in the page cache
    generation = llm.start(prompt, DEFAULTS._replace(temperature=0), max_tokens=17, seed=0, stop=())
    tokens = list(generation)
    prompt = prompt[::-1]
print(json.dumps({"load": loaded, "prefill": len(prompt) / generation.prompt_seconds,
    "decode": 16 / generation.decode_seconds, "bytes": llm.bytes_per_token, "threads": llm.threads}))
"""


def anonymous_peak(process: subprocess.Popen[str]) -> int:
    """The peak of a process's memory without mapped files, in bytes, sampled every 20 ms until it ends."""
    most = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, int(line.split()[1]) << 10)
        except OSError:
            break
        time.sleep(0.02)
    return most


def run(*command: str) -> tuple[str, float, int]:
    """Runs a command: its output, seconds, and peak of anonymous memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    peaks: list[int] = []
    watcher = threading.Thread(target=lambda: peaks.append(anonymous_peak(process)))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return output, time.perf_counter() - start, peaks[0]


def measure(name: str, folder: Path) -> str:
    from fastllm.machine import read_bandwidth, thread_count

    source, target = folder / name, folder / f"{name}.safetensors"
    source.mkdir(parents=True)
    try:
        write_grok(source) if name == "grok-1-pair" else write_llama(source, LLAMAS[name])
        read = sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
        _, seconds, peak = run("-m", "fastllm", "convert", str(source), str(target), "--dtype", "q8")
        shutil.rmtree(source)
        output, _, memory = run("-c", _RUN, str(target))
        speed = json.loads(output)
        wrote = target.stat().st_size
    finally:
        shutil.rmtree(source, ignore_errors=True)
        target.unlink(missing_ok=True)
    bandwidth = read_bandwidth(thread_count()[0])
    share = speed["decode"] * speed["bytes"] / 1e9 / bandwidth
    return (
        f"| {name} | {read / 1e9:.1f} | {wrote / 1e9:.1f} | {seconds:.0f} | {peak / 1e9:.2f} | {memory / 1e9:.2f} "
        f"| {speed['load']:.2f} | {speed['prefill']:.1f} | {speed['decode']:.2f} | {share:.0%} |"
    )


def grok_on_paper() -> str:
    """What all 64 layers of the release need: parameters, bytes per token, memory, tokens/s at some bandwidths."""
    g = GROK
    q, kv = g["heads"] * g["key"], g["kv_heads"] * g["key"]
    attention = g["emb"] * (2 * q + 2 * kv)
    expert, head = 3 * g["emb"] * g["ffn"], g["vocab"] * g["emb"]
    layers = 64
    every = layers * (attention + 8 * expert) + head
    active = layers * (attention + 2 * expert) + head
    lines = [
        f"Grok-1: {every / 1e9:.0f} billion parameters, {active / 1e9:.1f} of which a token reads (2 of 8 experts).",
        "",
        "| | memory | read for a token | tokens/s at 50 GB/s | 200 GB/s | 500 GB/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, bits in (("q8", 8.5), ("q4", 4.5)):
        read = active * bits / 8 / 1e9
        speeds = " | ".join(f"{b / read:.2f}" for b in (50, 200, 500))
        lines.append(f"| {name}, {bits} bits | {every * bits / 8 / 1e9:.0f} GB | {read:.1f} GB | {speeds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*LLAMAS, "grok-1-pair"], metavar="MODEL")
    parser.add_argument("--folder", type=Path, required=True, help="where there is room for a model and its conversion")
    args = parser.parse_args()
    columns = ("", "read, GB", "written, GB", "convert, s", "its memory, GB", "running, GB", "load, s")
    columns += ("prefill, tok/s", "decode, tok/s", "of memory")
    print(f"| {' | '.join(columns)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.models:
        print(measure(name, args.folder), flush=True)
    print(f"\n{grok_on_paper()}")


if __name__ == "__main__":
    main()
