"""fastllm convert: the file that loads at once."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastllm.cli.options import opening_options
from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    from fastllm.weights.store import Pruning


def options(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("model", metavar="PATH", help="a checkpoint: a file, a folder, or a name of the hub")
    convert.add_argument("out", metavar="OUT", help="the file to write, OUT.safetensors")
    convert.add_argument("--dtype", metavar="TYPE", help="f32, f16, bf16, q8 or q4 (default: as in the file, or q8)")
    convert.add_argument("--precise", action="store_true", help="to be run with activations of 15 bits instead of 8")
    convert.add_argument(
        "--bits",
        type=float,
        metavar="N",
        help="4.5 to 8.5 for a weight in the mean: a type for each matrix, by its cost",
    )
    text = convert.add_mutually_exclusive_group()
    text.add_argument("--calibrate", metavar="FILE", help="a text to round to four bits or prune by (default: our own)")
    text.add_argument("--no-calibrate", action="store_true", help="round each weight to four bits by itself")
    convert.add_argument(
        "--prune",
        metavar="HOW",
        help="set weights to zero: magnitude:0.5 or 2of4, wanda:0.5 or 2of4, sparsegpt:0.5 or 2of4, threshold:0.1",
    )
    convert.add_argument("--drop-layers", type=int, metavar="N", help="leave out N layers, those that do least")
    convert.add_argument("--format", default="fastllm", metavar="NAME", help="fastllm (default) or llama2c")
    convert.add_argument("--version", type=int, metavar="N", help="llama2.c's: 0 (default) or 1 in f32, 2 in int8")
    convert.add_argument("--verify", action="store_true", help="run both and say how they differ")
    convert.add_argument("-z", "--tokenizer", metavar="FILE", help="default: beside the model, or in this folder")
    opening_options(convert)


def run(args: argparse.Namespace) -> int:
    from fastllm.llm.verify import verify
    from fastllm.progress import Bar
    from fastllm.weights.convert import convert

    before = _identity(args.out)
    try:
        with _ending_by_interrupt(), Bar("converting") as bar:
            no_tokenizer = convert(
                args.model,
                args.out,
                dtype=args.dtype,
                precise=args.precise,
                format=args.format,
                version=args.version,
                tokenizer=args.tokenizer,
                bits=args.bits,
                calibrate=False if args.no_calibrate else args.calibrate,
                prune=args.prune,
                drop_layers=args.drop_layers,
                revision=args.revision,
                lora=args.lora,
                threads=args.threads,
                progress=bar,
            )
    except KeyboardInterrupt:
        if _identity(args.out) != before:
            raise  # the interrupt came just after the file was complete
        raise CheckpointError(f"{args.out} was not written: interrupted") from None
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes", file=sys.stderr)
    if args.prune is not None or args.drop_layers is not None:
        print(f"pruned: {_pruning(args.out)}", file=sys.stderr)
    if no_tokenizer:
        print(f"without a tokenizer: {no_tokenizer}", file=sys.stderr)
    if args.verify:
        found = verify(args.model, args.out, revision=args.revision, lora=args.lora, threads=args.threads)
        parts = [f"{found.what} differ by at most {found.largest:.3g}, by {found.mean:.3g} in the mean"]
        if found.kl is not None and found.top1 is not None:
            parts.append(f"KL {found.kl:.3g}")
            parts.append(f"top-1 agreement {found.top1:.1%}")
        print(f"over {found.tokens} tokens: {'; '.join(parts)}", file=sys.stderr)
    return 0


def _pruning(path: str) -> Pruning | None:
    """What the converted file at a path says about how it was pruned."""
    from fastllm.weights import store

    stored = store.open_file(Path(path))
    return None if stored is None else stored.pruning


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at a path, or None: they tell whether it has been replaced."""
    with suppress(OSError, ValueError):
        about = os.stat(path)
        return about.st_dev, about.st_ino
    return None


@contextmanager
def _ending_by_interrupt() -> Iterator[None]:
    """In the block, signals that would end the process raise KeyboardInterrupt, so that the unfinished file is removed.

    Signals that are ignored, as SIGHUP is under nohup, stay ignored.
    """
    import signal
    from time import monotonic

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: old for number, old in handlers.items() if old is not None and old != signal.SIG_IGN}
    last = -math.inf

    def interrupt(*_: object) -> None:
        """Ignores a second signal within a second, which would interrupt the cleaning up. A later one counts: the first
        exception may have been lost in code that cannot raise."""
        nonlocal last
        last, soon = monotonic(), monotonic() < last + 1
        if not soon:
            raise KeyboardInterrupt

    try:
        for number in handlers:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
