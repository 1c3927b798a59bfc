"""fastllm info: what this machine and build can do."""

from __future__ import annotations

import argparse
import os

from fastllm import __version__
from fastllm.cli.sizes import human


def options(_: argparse.ArgumentParser) -> None:
    """It has none."""


def run(_: argparse.Namespace) -> int:
    import platform

    from fastllm import _core
    from fastllm.families.architectures import FAMILIES
    from fastllm.machine import kv_bytes_default, thread_count

    forced = os.environ.get("FASTLLM_ISA")
    built = _core.isas()
    chosen = _core.best_isa(forced)
    count, why = thread_count()
    print(f"fastllm {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"built:   {', '.join(name for name, _ in built)}")
    print(f"found:   {', '.join(name for name, supported in built if supported)}")
    print(f"chosen:  {chosen} ({'FASTLLM_ISA' if forced else 'the best found'})")
    print(f"threads: {count} ({why}){'' if _core.has_threads() else ', built without OpenMP'}")
    kv_bytes, reason = kv_bytes_default()
    print(f"memory:  {human(kv_bytes)} at most for keys and values ({reason})")
    print(f"families: {', '.join(sorted(FAMILIES, key=str.lower))}")
    return 0
