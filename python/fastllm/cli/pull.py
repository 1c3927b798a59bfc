"""fastllm pull: a model of the hub, downloaded."""

from __future__ import annotations

import argparse
import sys

from fastllm.cli.sizes import human
from fastllm.errors import OptionError


def options(pull: argparse.ArgumentParser) -> None:
    pull.add_argument("name", metavar="NAME", help="owner/name, or owner/name/file of one of several models")
    pull.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: the main branch)")


def run(args: argparse.Namespace) -> int:
    from fastllm.weights.source import find_source

    path, from_hub = find_source(args.name, args.revision)
    if not from_hub:
        what = "a path here" if path.exists() else "no name"
        raise OptionError(f"{args.name} is {what}, not a name of the hub, owner/name or owner/name/file")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{args.name}: {human(sum(file.stat().st_size for file in files))}", file=sys.stderr)
    print(path)
    return 0
