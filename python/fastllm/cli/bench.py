"""fastllm bench: how fast a model runs, and the machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastllm.cli.options import precise_options
from fastllm.errors import OptionError


def options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint; without, the built-in storyteller")
    bench.add_argument("--prompt", type=int, metavar="N", help="tokens of a prompt (default 512, if they fit)")
    bench.add_argument("--gen", type=int, metavar="N", help="tokens to write after it (default 128, if they fit)")
    bench.add_argument("--batch", default="1,4,16", metavar="N,...", help="texts at once (default 1,4,16)")
    bench.add_argument("--threads", metavar="N,...", help="default: 1, and as fastllm info says")
    bench.add_argument("--dtype", metavar="TYPE,...", help="convert weights to these (default: as in the file)")
    precise_options(bench)
    bench.add_argument("--json", action="store_true", help="print one JSON list of objects instead of a table")
    bench.add_argument("--plot", metavar="FILE", help="draw it, .png, .svg or .pdf; needs 'fastllm[plot]'")


def run(args: argparse.Namespace) -> int:
    from fastllm.bench import bench, check_plot, plot, table
    from fastllm.llm.loading import BUILT_IN

    def numbers(name: str, text: str) -> list[int]:
        try:
            return [int(number) for number in text.split(",")]
        except ValueError:
            raise OptionError(f"--{name} takes whole numbers with commas between, not {text!r}") from None

    if args.plot is not None:
        check_plot(args.plot)
    model = BUILT_IN if args.model is None else args.model
    rows = bench(
        model,
        prompt=args.prompt,
        gen=args.gen,
        batches=numbers("batch", args.batch),
        threads=None if args.threads is None else numbers("threads", args.threads),
        dtypes=[None] if args.dtype is None else args.dtype.split(","),
        precise=args.precise,
    )
    if args.json:
        import json

        print(json.dumps(rows))
    else:
        print(table(rows))
    if args.plot is not None:
        plot(rows, args.plot, title=Path(model).name)
    return 0
