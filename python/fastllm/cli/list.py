"""fastllm list: the models of the hub that are here."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from fastllm.cli.sizes import human
from fastllm.cli.tables import moment, show


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list of objects instead of a table")


def run(args: argparse.Namespace) -> int:
    from fastllm.weights.cached import cache_folder, models

    found = models()
    if args.json:
        import json

        names = ("name", "type", "bytes", "last_used", "path")
        rows = [(m.name, m.kind, m.nbytes, moment(m.used).isoformat(), str(m.path)) for m in found]
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], ensure_ascii=False))
        return 0
    if found:
        table = [(m.name, human(m.nbytes), m.kind, f"{moment(m.used):%Y-%m-%d %H:%M}") for m in found]
        show(("NAME", "SIZE", "TYPE", "LAST USED"), table, right={1})
    else:
        print(f"no models in {cache_folder()}: fastllm pull NAME gets one", file=sys.stderr)
    _point_to_packed()
    return 0


def _point_to_packed() -> None:
    """Says what the packed cache takes, if it holds anything."""
    from fastllm.files import TargetError
    from fastllm.weights import folder

    with suppress(TargetError):
        place = folder.cache_folder()
        if place is not None and (used := folder.used_bytes(place)):
            print(f"packed weights of models take {human(used)} more: fastllm cache lists them", file=sys.stderr)
