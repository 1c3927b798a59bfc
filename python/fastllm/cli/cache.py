"""fastllm cache: the packed weights that are kept for the next start."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastllm.cli.sizes import human
from fastllm.cli.tables import moment, show
from fastllm.errors import OptionError
from fastllm.files import remove_abandoned
from fastllm.weights import folder


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", metavar="clear", help="remove the files of the models named, or all")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model's path or file name, as the list has them")
    parser.add_argument("--json", action="store_true", help="print one JSON list of objects instead of a table")


def run(args: argparse.Namespace) -> int:
    if args.action not in (None, "clear"):
        raise OptionError(f"cache takes nothing, or clear and names of models, not {args.action!r}")
    if (place := folder.cache_folder()) is None:
        print(f"packed weights are not kept: {folder.VARIABLE} is {os.environ[folder.VARIABLE]!r}", file=sys.stderr)
        return 0
    files = folder.packed_files(place)
    if args.action == "clear":
        return _clear(place, files, args.names)
    if args.json:
        import json

        rows = [
            {"model": f.model, "dtype": "+".join(f.dtypes), "bytes": f.nbytes, "last_used": moment(f.used).isoformat()}
            | {"path": str(f.path)}
            for f in files
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    if not files:
        print(f"no packed weights in {place}", file=sys.stderr)
        return 0
    show(
        ("MODEL", "DTYPE", "SIZE", "LAST USED", "PATH"),
        [
            (
                f.model or "(damaged)",
                "+".join(f.dtypes),
                human(f.nbytes),
                f"{moment(f.used):%Y-%m-%d %H:%M}",
                str(f.path),
            )
            for f in files
        ],
        right={2},
    )
    return 0


def _clear(place: Path, files: Sequence[folder.Packed], names: Sequence[str]) -> int:
    """Removes the files of the models of these names, or all. Raises OptionError for a name that no file has."""
    chosen = [file for file in files if not names or any(_is_named(file, name) for name in names)]
    for name in names:
        if not any(_is_named(file, name) for file in chosen):
            raise OptionError(f"no packed weights of {name!r} are in {place}")
    for file in chosen:
        file.path.unlink(missing_ok=True)
    if not names:
        remove_abandoned(place)
    freed = human(sum(file.nbytes for file in chosen))
    print(f"{len(chosen)} file{'' if len(chosen) == 1 else 's'} removed, {freed}", file=sys.stderr)
    return 0


def _is_named(file: folder.Packed, name: str) -> bool:
    model = Path(file.model)
    return name in (file.model, model.name, model.stem, file.path.name) or os.path.abspath(name) in (
        file.model,
        str(file.path),
    )
