"""The models that are in the cache of the Hugging Face hub, by the layout of its folders: no library, no network.

https://huggingface.co/docs/huggingface_hub/guides/manage-cache: models--owner--name has blobs/, the files by their
hashes; snapshots/COMMIT/, links to them by name; refs/BRANCH, the commit that a branch was at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fastllm.weights._hub import PART


class Cached(NamedTuple):
    """A model in the cache.

    name: as `load` takes it: owner/name, or owner/name/file of a file that is a model by itself. kind: its model type
    and format, for people. nbytes: on disk. used: when a file of it was last read, in seconds since 1970, as far as the
    file system says. path: of its newest snapshot, or of the file.
    """

    name: str
    kind: str
    nbytes: int
    used: float
    path: Path


def cache_folder() -> Path:
    """Where huggingface_hub keeps its cache, from the environment variables that it reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(name):
            return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home, "hub").expanduser()


def models() -> list[Cached]:
    """The models in the cache, the last used first. Folders that cannot be read are left out."""
    found: list[Cached] = []
    for folder in cache_folder().glob("models--*"):
        with suppress(OSError):
            found += _of_repository(folder)
    return sorted(found, key=lambda model: (-model.used, model.name))


def _of_repository(folder: Path) -> list[Cached]:
    repo = "/".join(folder.name.split("--")[1:])
    if (snapshot := _newest(folder)) is None:
        return []
    files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    incomplete = ", not complete" if any(folder.glob("blobs/*.incomplete")) else ""
    singles = [n for n in files if n.endswith(".gguf") or (n.endswith(".bin") and _is_llama2c(n, files))]
    if not singles:
        everything = [path for path in folder.glob("snapshots/*/**/*") if path.is_file()]
        return [Cached(repo, _kind(files) + incomplete, *_of_files(everything), snapshot)]
    wholes: dict[str, list[Path]] = {}  # the parts of a split file, under the name of the first
    for name in sorted(singles):
        part = PART.search(name)
        first = f"{name[: part.start()]}-00001-of-{part[1]}.gguf" if part else name
        wholes.setdefault(first, []).append(files[name])
    return [
        Cached(
            f"{repo}/{name}",
            ("gguf" if name.endswith(".gguf") else "llama2.c") + incomplete,
            *_of_files(parts),
            parts[0],
        )
        for name, parts in wholes.items()
    ]


def _newest(folder: Path) -> Path | None:
    """The snapshot that the main branch was at, else the one that was made last."""
    with suppress(OSError, ValueError):
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        if snapshot.is_dir():
            return snapshot
    return max(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, default=None)


def _is_llama2c(name: str, files: Iterable[str]) -> bool:
    """Whether a .bin file is llama2.c's: torch's have a config.json beside them, and tokenizers are no models."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/config.json".lstrip("/") not in files and not file.startswith("tok")


def _of_files(paths: Iterable[Path]) -> tuple[int, float]:
    """Bytes on disk, each blob once, and the time of the last read."""
    blobs = {os.path.realpath(path): path.stat() for path in paths}.values()
    return sum(about.st_size for about in blobs), max((about.st_atime for about in blobs), default=0.0)


def _kind(files: dict[str, Path]) -> str:
    """The type in a config, and the format of the weights."""
    forms = {".safetensors": "safetensors", ".bin": "torch", ".pth": "torch", ".ckpt": "MindSpore"}
    form = next((form for end, form in forms.items() if any(name.endswith(end) for name in files)), "no weights")
    if "adapter_config.json" in files:
        return f"LoRA adapter, {form}"
    config = next((files[name] for name in ("config.json", "0_Transformer/config.json") if name in files), None)
    with suppress(OSError, ValueError, AttributeError):
        if config is not None and isinstance(kind := json.loads(config.read_bytes()).get("model_type"), str):
            return f"{kind}, {form}"
    return form
