"""The key of a model in the prompt cache: a hash of all that decides the bits of its keys and values."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from fastllm import _core
from fastllm.config import Config
from fastllm.engine.folder import CacheFolder, file_bytes, file_name

_PIECE = 8 << 20  # bytes that a thread hashes at a time
_SETTLED = 3 * 10**9  # nanoseconds: a file that has just changed may change again within a tick of its file system


def model_key(
    config: Config,
    tensors: Mapping[str, _core.Matrix | _core.Vector],
    kv_dtype: str,
    folder: Path,
    *,
    threads: int = 1,
    identity: str = "",
) -> bytes:
    """The key of a model, 32 bytes: another one for another config, type of keys and values, tensor or core.

    Instruction set and threads are not in it, since they change no bits. The core's own file is: so whatever a later
    version computes or lays out in another way needs no number that someone must remember to raise. Contents are hashed
    on `threads` threads. A file of weights that is mapped is hashed as a whole, and its hash is remembered in `folder`,
    a CacheFolder, for as long as its path, device, inode, size and times stay the same. identity: what tells the
    contents of mapped weights from all others, where that is known; then they are not hashed.

    Raises OptionError where the folder cannot be used, CheckpointError where a mapped file has changed.
    """
    cached = CacheFolder(folder)
    files: dict[_core.MappedFile, str] = {}
    contents: dict[str, memoryview] = {"": memoryview(Path(_core.__file__).read_bytes())}
    shapes: dict[str, tuple[str, tuple[int, ...], tuple[int, ...] | None, str]] = {}
    for name, tensor in tensors.items():
        file = tensor.file if isinstance(tensor, _core.Matrix) else None
        if file is None:
            contents[name] = tensor.data
        elif file not in files:
            files[file] = identity or _file_hash(file, cached, threads)
        dtype, values = (tensor.dtype, tensor.values) if isinstance(tensor, _core.Matrix) else ("", None)
        shapes[name] = (dtype, tensor.shape, values, files[file] if file else "")
    parts = [config.to_json(), kv_dtype, shapes, _hashes(contents, threads)]
    return sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def _file_hash(file: _core.MappedFile, cached: CacheFolder, threads: int) -> str:
    """The hash of a mapped file, in hexadecimal: the remembered one if the file has not changed since."""
    about, now = os.fstat(file.fileno()), time.time_ns()
    version = [file.path, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    name = file_name(sha256(json.dumps(version).encode()).digest()[:20], "weights")
    known = cached.read(name, bytearray(file_bytes(2 * sha256().digest_size)))
    if known is not None:
        cached.touch(name, now)
        return str(known, "ascii")
    found = _hashes({"": memoryview(file)}, threads)[""]
    file.check()
    if now - max(about.st_mtime_ns, about.st_ctime_ns) > _SETTLED:
        with suppress(OSError):  # the cache's first page will say that nothing can be written
            cached.write(name, found.encode())
    return found


def _hashes(contents: Mapping[str, memoryview], threads: int) -> dict[str, str]:
    """The hash of each content, in hexadecimal: that of its pieces' hashes, so that threads share a large one."""
    from concurrent.futures import ThreadPoolExecutor

    pieces = [(name, data[at : at + _PIECE]) for name, data in contents.items() for at in range(0, len(data), _PIECE)]
    whole = {name: sha256() for name in contents}
    with ThreadPoolExecutor(threads) as pool:
        for (name, _), digest in zip(pieces, pool.map(lambda piece: sha256(piece[1]).digest(), pieces), strict=True):
            whole[name].update(digest)
    return {name: hashed.hexdigest() for name, hashed in whole.items()}
