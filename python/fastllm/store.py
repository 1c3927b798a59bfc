"""The converted file: a .safetensors of packed panels that is mapped and run as it lies on disk.

The header's metadata key "fastllm" holds JSON: format version, layout, config, the tensors' types and shapes, stop
tokens, and the kind of the tokenizer, whose bytes are a tensor too. Data starts at a multiple of 64 bytes and every
tensor is one long, so that panels lie aligned in the map.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.errors import CheckpointError

VERSION = 1
LAYOUT = "panels16x32"
_MOST_HEADER = 100 << 20  # the safetensors format's own limit


class Stored(NamedTuple):
    """What a converted file holds. tokenizer: its kind (see tokenizer.py) and its file's bytes."""

    config: Config
    tensors: Mapping[str, _core.Matrix | _core.Vector]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]
    tokenizer: tuple[str, bytes] | None


def is_store(data: memoryview) -> bool:
    """Whether a file's bytes begin like a .safetensors file."""
    if len(data) < 10:
        return False
    (length,) = struct.unpack_from("<Q", data)
    return 2 <= length <= min(_MOST_HEADER, len(data) - 8) and data[8] == ord("{")


def _padded(data: memoryview | bytes) -> bytes:
    return bytes(-len(data) % _core.ALIGN)


def save(path: Path, stored: Stored) -> None:
    """Writes a converted file. The same content gives the same bytes; a failure leaves nothing at `path`."""
    parts: dict[str, memoryview | bytes] = {n: t.data for n, t in stored.tensors.items()}
    about: dict[str, object] = {
        "version": VERSION,
        "layout": LAYOUT,
        "config": stored.config.to_json(),
        "matrices": {
            name: [tensor.dtype, *tensor.shape]
            for name, tensor in stored.tensors.items()
            if isinstance(tensor, _core.Matrix)
        },
        "bos": stored.bos,
        "stop": stored.stop,
        "chat_stop": stored.chat_stop,
    }
    if stored.tokenizer:
        kind, blob = stored.tokenizer
        parts["tokenizer"] = blob
        about["tokenizer"] = {"kind": kind, "bytes": len(blob)}
    header: dict[str, object] = {"__metadata__": {"fastllm": json.dumps(about, sort_keys=True)}}
    offset = 0
    for name, data in parts.items():
        end = offset + len(data) + len(_padded(data))
        vector = isinstance(stored.tensors.get(name), _core.Vector)
        shape = [(end - offset) // 4] if vector else [end - offset]
        header[name] = {
            "dtype": "F32" if vector else "U8",
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _core.ALIGN)
    import tempfile

    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                for data in parts.values():
                    file.write(data)
                    file.write(_padded(data))
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: Path, data: memoryview) -> Stored:
    """Opens a mapped converted file; tensors point into the map. Raises CheckpointError for anything amiss."""
    try:
        return _load(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a usable converted file: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is not a usable converted file: its header is broken") from None


def _load(data: memoryview) -> Stored:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(bytes(data[8 : 8 + length]))
    if "fastllm" not in header.get("__metadata__", {}):
        raise CheckpointError("it is a safetensors file that fastllm did not write")
    about = json.loads(header["__metadata__"]["fastllm"])
    if about["version"] != VERSION or about["layout"] != LAYOUT:
        raise CheckpointError(
            f"its version is {about['version']}, layout {about['layout']}; "
            f"this fastllm reads {VERSION}, {LAYOUT}: convert the model again"
        )
    config = Config.from_json(about["config"])
    body = data[8 + length :]

    def part(name: str) -> memoryview:
        if name not in header:
            raise CheckpointError(f"it has no tensor {name}")
        begin, end = header[name]["data_offsets"]
        if not 0 <= begin <= end <= len(body):
            raise CheckpointError(f"it is truncated: {name} ends past the end of the file")
        return body[begin:end]

    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    for name, shape in config.matrices():
        if name == "head" and name not in about["matrices"]:
            continue
        if name not in about["matrices"]:
            raise CheckpointError(f"it has no matrix {name}")
        dtype, d, n = about["matrices"][name]
        if (d, n) != shape:
            raise CheckpointError(f"{name} is {d} x {n}, the config needs {shape[0]} x {shape[1]}")
        tensors[name] = _core.Matrix(dtype, d, n, part(name))
    for name, size in config.vectors():
        values = part(name)
        if len(values) < size * 4:
            raise CheckpointError(f"{name} has {len(values) // 4} values, the config needs {size}")
        tensors[name] = _core.Vector(values[: size * 4])
    tokenizer = None
    if "tokenizer" in about:
        kind, size = about["tokenizer"]["kind"], about["tokenizer"]["bytes"]
        tokenizer = (str(kind), bytes(part("tokenizer")[:size]))
    bos = about["bos"]
    return Stored(
        config=config,
        tensors=tensors,
        bos=None if bos is None else int(bos),
        stop=tuple(int(i) for i in about["stop"]),
        chat_stop=tuple(int(i) for i in about["chat_stop"]),
        tokenizer=tokenizer,
    )
