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
    print(f"cache:   {_packed_cache()}")
    print(f"families: {', '.join(sorted(FAMILIES, key=str.lower))}")
    return 0


def _packed_cache() -> str:
    """Where packed weights are kept, and how many bytes they take and may take."""
    from fastllm.files import TargetError
    from fastllm.weights import folder

    try:
        place = folder.cache_folder()
        if place is None:
            return f"packed weights are not kept ({folder.VARIABLE} is {os.environ[folder.VARIABLE]!r})"
        used, most = folder.used_bytes(place), folder.most_bytes(place)
    except TargetError as error:
        return f"packed weights are not kept: {error}"
    return f"packed weights in {place}: {human(used)} of at most {human(most)} (20 GB, or a tenth of the free disk)"
