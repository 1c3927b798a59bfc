"""fastllm list: the models of the hub that are here."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from fastllm.cli.sizes import human


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list of objects instead of a table")


def run(args: argparse.Namespace) -> int:
    from fastllm.weights.cached import cache_folder, models

    found = models()
    if args.json:
        import json

        names = ("name", "type", "bytes", "last_used", "path")
        rows = [(m.name, m.kind, m.nbytes, _time(m.used).isoformat(), str(m.path)) for m in found]
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], ensure_ascii=False))
        return 0
    if not found:
        print(f"no models in {cache_folder()}: fastllm pull NAME gets one", file=sys.stderr)
        return 0
    table = [("NAME", "SIZE", "TYPE", "LAST USED")]
    table += [(m.name, human(m.nbytes), m.kind, f"{_time(m.used):%Y-%m-%d %H:%M}") for m in found]
    name, size, kind = (max(len(row[i]) for row in table) for i in range(3))
    for row in table:
        print(f"{row[0]:{name}}  {row[1]:>{size}}  {row[2]:{kind}}  {row[3]}")
    return 0


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds)).astimezone()
