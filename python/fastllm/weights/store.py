"""The converted file: a .safetensors of packed panels that is mapped and run as it lies on disk.

The header's metadata key "fastllm" holds JSON: format version, layout, config, the tensors' types and shapes, stop
tokens, and the kind of the tokenizer, whose bytes are a tensor too. Data starts at a multiple of 64 bytes and every
tensor is one long, so that panels lie aligned in the map.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.errors import CheckpointError, OptionError
from fastllm.files import map_file
from fastllm.formats import is_safetensors
from fastllm.heads import Classifier, Embedding, Ranking, dense

if TYPE_CHECKING:
    from fastllm.families import Recipe
    from fastllm.tensors import Bytes

VERSION = 1
LAYOUT = "panels16x32"
DTYPES = ("f32", "f16", "bf16", "q8", "q4")  # that weights may be converted to


class Stored(NamedTuple):
    """What a converted file holds: a Recipe's fields, its tensors packed, and the tokenizer's.

    tokenizer: its kind and its files' bytes (see tokenizer). source: the format and architecture it was made from, for
    people. dense: chains of layers after the stream, by what they are for. embedding: how a text becomes one vector.
    classifier, ranking: a Recipe's.
    """

    config: Config
    tensors: Mapping[str, _core.Matrix | _core.Vector]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]
    tokenizer: tuple[str, bytes] | None = None
    source: str = ""
    dense: Mapping[str, tuple[_core.Dense, ...]] = MappingProxyType({})
    embedding: Embedding = Embedding()
    classifier: Classifier | None = None
    ranking: Ranking = Ranking()

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        tensors: Mapping[str, _core.Matrix | _core.Vector],
        *,
        tokenizer: tuple[str, bytes] | None = None,
        source: str = "",
    ) -> Stored:
        """What a file made of a recipe holds. Raises CheckpointError for dense layers that do not fit each other."""
        return cls(
            recipe.config,
            tensors,
            recipe.bos,
            recipe.stop,
            recipe.chat_stop,
            tokenizer,
            source,
            dense.pack(recipe.dense),
            recipe.embedding,
            recipe.classifier,
            recipe.ranking,
        )

    @property
    def dtypes(self) -> list[str]:
        """What the weights are stored as. Routers and positions, which are few and kept more exactly, do not count.

        Nor do the int8 matrices of q4.
        """
        matrices = {name: t.dtype for name, t in self.tensors.items() if isinstance(t, _core.Matrix)}
        dtypes = {dtype for name, dtype in matrices.items() if not name.endswith(".router") and name != "positions"}
        return sorted(dtypes - {"q8"} if "q4" in dtypes else dtypes)


class Part(NamedTuple):
    """A tensor to be written, in pieces. dtype: a matrix's; None is a vector of f32."""

    dtype: str | None
    shape: tuple[int, ...]
    nbytes: int
    pieces: Iterable[Bytes]


def check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def save(path: Path, stored: Stored) -> None:
    """Writes a converted file. The same content gives the same bytes; a failure leaves nothing at `path`."""
    write(
        path,
        stored,
        {
            name: Part(getattr(tensor, "dtype", None), tensor.shape, len(tensor.data), (tensor.data,))
            for name, tensor in stored.tensors.items()
        },
    )


def write(path: Path, stored: Stored, parts: Mapping[str, Part]) -> None:
    """Writes a converted file of `parts`, which need not exist before they are written, in place of stored.tensors."""
    parts = {**parts, **_dense_parts(stored.dense)}
    about: dict[str, object] = {
        "version": VERSION,
        "layout": LAYOUT,
        "config": stored.config.to_json(),
        "matrices": {name: [part.dtype, *part.shape] for name, part in parts.items() if part.dtype},
        "bos": stored.bos,
        "stop": stored.stop,
        "chat_stop": stored.chat_stop,
        "source": stored.source,
    }
    if stored.dense:
        about["dense"] = {chain: [layer.act for layer in layers] for chain, layers in stored.dense.items()}
    if embedding := stored.embedding.to_json():
        about["embedding"] = embedding
    if stored.classifier is not None:
        about["classifier"] = stored.classifier
    if stored.ranking != Ranking():
        about["ranking"] = stored.ranking
    if stored.tokenizer:
        kind, blob = stored.tokenizer
        parts = {**parts, "tokenizer": Part("u8", (len(blob),), len(blob), (blob,))}
        about["tokenizer"] = {"kind": kind, "bytes": len(blob)}
    header: dict[str, object] = {"__metadata__": {"fastllm": json.dumps(about, sort_keys=True)}}
    offset = 0
    for name, part in parts.items():
        end = offset + part.nbytes + -part.nbytes % _core.ALIGN
        header[name] = {
            "dtype": "U8" if part.dtype else "F32",
            "shape": [end - offset if part.dtype else (end - offset) // 4],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _core.ALIGN)
    from fastllm.files import replacing

    with replacing(path, 8 + len(text) + offset) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts.values():
            for piece in part.pieces:
                file.write(piece)
            file.write(bytes(-part.nbytes % _core.ALIGN))


def _dense_parts(chains: Mapping[str, tuple[_core.Dense, ...]]) -> dict[str, Part]:
    """Layer i of a chain as its matrix, "chain.i", and its bias, "chain.i.bias"."""
    parts = {}
    for chain, layers in chains.items():
        for i, layer in enumerate(layers):
            matrix, bias = layer.matrix, layer.bias
            parts[f"{chain}.{i}"] = Part(matrix.dtype, matrix.shape, matrix.nbytes, (matrix.data,))
            if bias is not None:
                parts[f"{chain}.{i}.bias"] = Part(None, bias.shape, bias.nbytes, (bias.data,))
    return parts


def is_store(data: memoryview) -> bool:
    """Whether a file's bytes begin like a converted file: a .safetensors header with our key."""
    return is_safetensors(data) and b'"fastllm"' in bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def open_file(path: Path) -> Stored | None:
    """A converted file, or None for anything else. Raises CheckpointError for what cannot be read, or is broken."""
    if path.is_dir():
        return None
    data = map_file(path)
    return load(path, data) if is_store(data) else None


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

    def vector(name: str, size: int) -> _core.Vector:
        values = part(name)
        if len(values) < size * 4:
            raise CheckpointError(f"{name} has {len(values) // 4} values, the config needs {size}")
        return _core.Vector(values[: size * 4], name=name)

    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    for name, shape, required in config.matrices():
        if name not in about["matrices"]:
            if required:
                raise CheckpointError(f"it has no matrix {name}")
            continue
        dtype, *found = about["matrices"][name]
        if tuple(found) != shape:
            raise CheckpointError(f"{name} is {found}, the config needs {list(shape)}")
        *stack, d, n = shape
        tensors[name] = _core.Matrix(dtype, d, n, part(name), count=stack[0] if stack else None)
    for name, size, required in config.vectors():
        if name in header or required:
            tensors[name] = vector(name, size)

    def layer(name: str, act: str) -> tuple[_core.Matrix, _core.Vector | None, str]:
        dtype, d, n = about["matrices"][name]
        bias = vector(f"{name}.bias", d) if f"{name}.bias" in header else None
        return _core.Matrix(dtype, d, n, part(name)), bias, act

    chains = {
        chain: dense.bind(chain, [layer(f"{chain}.{i}", act) for i, act in enumerate(acts)])
        for chain, acts in about.get("dense", {}).items()
    }
    embedding = Embedding.from_json(about.get("embedding", {}))
    if embedding.layers != len(chains.get("embedding", ())):
        raise CheckpointError(f"it has not the {embedding.layers} layers of its embedding")
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
        source=str(about.get("source", "")),  # which the first files did not have
        dense=chains,
        embedding=embedding,
        classifier=Classifier.from_json(about["classifier"]) if "classifier" in about else None,
        ranking=Ranking.from_json(about["ranking"]) if "ranking" in about else Ranking(),
    )
