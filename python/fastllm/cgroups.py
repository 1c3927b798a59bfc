"""The control groups of this process (Linux), which may limit its CPU time and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_LISTED, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def folders(controller: str) -> Iterator[Path]:
    """The folders of the process's groups and of all above them, for a controller: "cpu" or "memory".

    /proc/self/cgroup has a line hierarchy:controllers:path for each hierarchy; version 2's has no controllers.
    """
    try:
        lines = _LISTED.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        controllers, path = ([*line.split(":", 2), "", ""])[1:3]
        if controllers == "":
            base = _MOUNTED
        elif controller in controllers.split(","):
            base = _MOUNTED / controller
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder
            if folder == base:
                break
