"""GGUF, llama.cpp's format, versions 2 and 3. All numbers are little-endian.

    "GGUF", version u32, count of tensors u64, count of metadata u64
    metadata   each: key string, type u32, value              string: length u64, UTF-8
               with the tokenizer under "tokenizer.ggml."     array: type u32, count u64, values
    tensors    each: name string, count of axes u32, axes u64 (fastest first), type u32, offset u64
    padding    to a multiple of general.alignment, 32 bytes by default
    data       of the tensors, at their offsets from here, each aligned

A model may be split into files NAME-00001-of-00003.gguf, ...; opening one of them opens all.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.errors import CheckpointError
from fastllm.files import exists, map_file
from fastllm.formats.checkpoint import Checkpoint
from fastllm.tensors import BLOCKS, Reader, Tensor

# Names of the tensors' types by their numbers (enum ggml_type). Those in _FLOATS and BLOCKS are read.
# fmt: off
_TYPES = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16",
    "I32", "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4",
    "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",
)
# fmt: on
_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# The number of a metadata type -> the struct module's letter for it. 7 is bool.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_NESTED = 4
_MOST_ENTRIES = 1 << 16  # of metadata, and of tensors each
_MOST_AXES = 4
# Long arrays that only the tokenizer needs; they are left out of the header.
_TOKENIZER_ARRAYS = ("tokens", "scores", "token_type", "merges", "precompiled_charsmap", "added_tokens")


class _Part(NamedTuple):
    """What one file holds."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: Path, data: memoryview) -> Checkpoint:
    """Opens a file, and if its model is split, the other files too. Raises CheckpointError.

    The header is the metadata, under its own keys. The tokenizer is a JSON object of the metadata whose keys begin with
    "tokenizer."; bytes that are not UTF-8 become surrogate escapes (PEP 383).
    """
    part = _read(path, data)
    count = part.metadata.get("split.count", 1)
    metadata, tensors = _joined(path, part, count) if count != 1 else part
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} is broken: it does not say its general.architecture")
    words = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    arrays = {f"tokenizer.ggml.{key}" for key in _TOKENIZER_ARRAYS} | {"tokenizer.huggingface.json"}
    return Checkpoint(
        path,
        "GGUF" if count == 1 else f"GGUF, {count} files",
        f"gguf:{name}",
        {key: value for key, value in metadata.items() if key not in arrays},
        tensors,
        ("gguf", json.dumps(words).encode()) if "tokenizer.ggml.tokens" in words else None,
    )


def _joined(path: Path, opened: _Part, count: Any) -> _Part:
    """A whole split model: the metadata of the first file, the tensors of all. opened: the file at `path`."""
    place = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name, re.DOTALL)
    number = opened.metadata.get("split.no")
    if not place or type(count) is not int or int(place[3]) != count or number != int(place[2]) - 1:
        raise CheckpointError(f"{path} is one of {count} files of a model, and its name does not say which")
    metadata: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for i in range(count):
        file = path.with_name(f"{place[1]}-{i + 1:05}-of-{count:05}.gguf")
        if i != number and not exists(file):
            raise CheckpointError(f"{path} is one of {count} files of a model, and {file.name} is missing")
        part = opened if i == number else _read(file, map_file(file))
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (i, count):
            raise CheckpointError(f"{file} is not file {i + 1} of {count} of the model that {path} is part of")
        if both := part.tensors.keys() & tensors.keys():
            raise CheckpointError(f"{file} is broken: another file of the model holds tensor {min(both)!r} too")
        metadata = metadata or part.metadata
        tensors |= part.tensors
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(f"{path} is broken: the files of its model hold {len(tensors)} tensors, not {expected}")
    return _Part(metadata, tensors)


def _read(path: Path, data: memoryview) -> _Part:
    reader = _Metadata(path, data, 4)
    version = reader.number("I")
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{path} is a big-endian GGUF file, which fastllm does not read")
    if version not in (2, 3):
        raise CheckpointError(f"{path} is a GGUF file of version {version}; 2 and 3 are known")
    n_tensors, n_values = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    if max(n_tensors, n_values) > _MOST_ENTRIES:
        raise CheckpointError(f"{path} is broken: it would have {n_tensors:,} tensors and {n_values:,} metadata values")
    for _ in range(n_values):
        key = reader.string()
        if key in metadata:
            raise CheckpointError(f"{path} is broken: it has the metadata {key!r} twice")
        metadata[key] = reader.value(reader.number("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path} is broken: its tensors are aligned to {alignment!r} bytes")
    entries = [reader.entry() for _ in range(n_tensors)]
    start = (reader.offset + alignment - 1) // alignment * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, number, offset in entries:
        if name in tensors:
            raise CheckpointError(f"{path} is broken: it has the tensor {name!r} twice")
        if offset % alignment:
            raise CheckpointError(f"{path} is broken: tensor {name!r} is not aligned to {alignment} bytes")
        tensors[name] = _tensor(Reader(path, data, start + offset), name, shape, number)
    return _Part(metadata, tensors)


def _tensor(reader: Reader, name: str, shape: tuple[int, ...], number: int) -> Tensor:
    kind = _TYPES[number] if number < len(_TYPES) else f"type {number}"
    what = f"tensor {name!r}"
    if kind in _FLOATS:
        return reader.tensor(_FLOATS[kind], shape, what)
    if kind not in BLOCKS:
        known = ", ".join([*_FLOATS, *BLOCKS])
        raise CheckpointError(f"{reader.path} holds {what} as {kind}; fastllm reads {known}")
    values, *_ = BLOCKS[kind]
    if not shape or shape[-1] % values:
        raise CheckpointError(f"{reader.path} is broken: {what} of {shape} is not in blocks of {values}")
    return reader.tensor(kind, shape, what)


class _Metadata(Reader):
    """Reads the metadata and the table of tensors, from front to back."""

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), "its metadata"))[0]

    def count(self, n: int, least: int, what: str) -> int:
        """n itself, if n things of at least `least` bytes each can be in the rest of the file. Raises CheckpointError.

        It comes before memory is allocated for n things.
        """
        if n * least > len(self.data) - self.offset:
            raise CheckpointError(f"{self.path} is truncated or broken: {n:,} {what} do not fit in the file")
        return n

    def string(self) -> str:
        return str(self.take(self.number("Q"), "a string of its metadata"), "utf-8", "surrogateescape")

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape (the file has the fastest axis first), type number and offset."""
        name, axes = self.string(), self.number("I")
        if axes > _MOST_AXES:
            raise CheckpointError(f"{self.path} is broken: tensor {name!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if 0 in shape:
            raise CheckpointError(f"{self.path} is broken: tensor {name!r} of {shape} has no values")
        return name, shape, self.number("I"), self.number("Q")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth == _MOST_NESTED:
            raise CheckpointError(f"{self.path} is broken: its metadata has a value of type {kind}")
        kind, n = self.number("I"), self.number("Q")
        if kind == _STRING:
            return self._strings(self.count(n, 8, "strings"))
        if kind == _ARRAY:
            return [self.value(kind, depth + 1) for _ in range(self.count(n, 12, "arrays"))]
        if kind not in _NUMBERS:
            raise CheckpointError(f"{self.path} is broken: its metadata has an array of type {kind}")
        letter = _NUMBERS[kind]
        size = self.count(n, struct.calcsize(letter), "numbers") * struct.calcsize("<" + letter)
        return list(struct.unpack(f"<{n}{letter}", self.take(size, "an array of its metadata")))

    def _strings(self, n: int) -> list[str]:
        """n strings: vocabularies have hundreds of thousands."""
        strings, self.offset = _core.gguf_strings(self.data, self.offset, n)
        if len(strings) < n:
            raise CheckpointError(f"{self.path} is truncated: a list of {n:,} strings ends past the end of the file")
        return strings
