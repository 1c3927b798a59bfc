"""The converted file: a .safetensors file of packed panels, which is mapped and run as it lies on disk.

https://github.com/huggingface/safetensors#format describes the frame:

    8 bytes           the length of the header, little-endian
    header            JSON: for each tensor its dtype (U8 for panels, F32 for vectors), shape and data_offsets, and
                      "__metadata__": {"fastllm": JSON of what is not in tensors}; spaces, up to a multiple of 64 bytes
    data              the tensors one after the other, each padded with zeros to a multiple of 64 bytes, so that the
                      panels are aligned in memory: matrices and vectors of Config, the layers of dense chains
                      ("classifier.0", "classifier.0.bias", ...), the bytes of the tokenizer

The JSON under "fastllm": version, layout, config, matrices (name -> [dtype, *shape], since a matrix is U8 for
safetensors), values (name -> what the 16 codes of a q4 matrix stand for), bos, stop, chat_stop, source, and where the
model has them dense (chain -> activations), embedding, classifier, ranking, sampling, pruning, tokenizer (kind, bytes);
in the packed cache also packed and ready, which packed.py explains.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm import _core
from fastllm.config import Config
from fastllm.errors import CheckpointError, OptionError
from fastllm.files import map_file, replacing
from fastllm.formats import is_safetensors
from fastllm.heads import Classifier, Embedding, Ranking, dense

if TYPE_CHECKING:
    from fastllm.families import Recipe
    from fastllm.tensors import Bytes

VERSION = 2
_READABLE = (1, 2)  # version 1 has no values: q4 matrices have those of the core
LAYOUT = "panels16x32"  # 16 rows x groups of 32 channels; see csrc/fastllm.h
DTYPES = ("f32", "f16", "bf16", "q8", "q4")  # types that weights may be converted to

# The fields that a Recipe and a Stored share as they are: all but tensors, and what only one of them has.
_SHARED = ("config", "bos", "stop", "chat_stop", "embedding", "classifier", "ranking", "sampling")


class Pruning(NamedTuple):
    """What pruning did to a model.

    method: as `convert` takes it, such as "wanda:0.5", and zeros: the share of the linear layers' weights that is zero;
    both None where no weights were pruned. dropped: the layers that were left out, by their numbers before. kl: from
    the model before, in nats, the mean over a text; None where there was no text, or the model has no logits.
    """

    method: str | None
    zeros: float | None
    dropped: tuple[int, ...]
    kl: float | None

    def __str__(self) -> str:
        parts = []
        if self.method is not None and self.zeros is not None:
            parts.append(f"{self.method}, {self.zeros:.2%} of the weights of linear layers are zero")
        if self.dropped:
            parts.append(f"without layer{'s' if len(self.dropped) > 1 else ''} {', '.join(map(str, self.dropped))}")
        parts.append("KL not measured" if self.kl is None else f"KL {self.kl:.3g} from the model before")
        return "; ".join(parts)

    def to_json(self) -> dict[str, object]:
        """The fields that say something."""
        return {name: value for name, value in self._asdict().items() if value not in (None, ())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Pruning:
        """The inverse of to_json. Raises TypeError, ValueError or AttributeError for anything else."""
        method, zeros, kl = data.get("method"), data.get("zeros"), data.get("kl")
        return cls(
            None if method is None else str(method),
            None if zeros is None else float(zeros),
            tuple(int(layer) for layer in data.get("dropped", ())),
            None if kl is None else float(kl),
        )


class Stored(NamedTuple):
    """What a converted file holds: a Recipe with its tensors packed, and the tokenizer.

    tensors: matrices and vectors by canonical name. dense: chains of layers after the last hidden states, by purpose.
    tokenizer: its kind and bytes, as fastllm.tokenizer.from_blob takes them. source: the format and architecture that
    the file was made from, for people. pruning: what was pruned before packing. packed: what the packed cache keeps in
    its files, None elsewhere. identity: what tells its weights from all others, where that is known without reading
    them (packed.py), else "". ready: the tokenizer's ready form (fastllm.tokenizer.ready), only in the packed cache.
    The other fields are the Recipe's.
    """

    config: Config
    tensors: Mapping[str, _core.Matrix | _core.Vector]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]
    tokenizer: tuple[str, Bytes] | None = None
    source: str = ""
    dense: Mapping[str, tuple[_core.Dense, ...]] = MappingProxyType({})
    embedding: Embedding = Embedding()
    classifier: Classifier | None = None
    ranking: Ranking = Ranking()
    sampling: Mapping[str, float] = MappingProxyType({})
    pruning: Pruning | None = None
    packed: Mapping[str, Any] | None = None
    identity: str = ""
    ready: Bytes = b""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        tensors: Mapping[str, _core.Matrix | _core.Vector],
        *,
        tokenizer: tuple[str, Bytes] | None = None,
        source: str = "",
        pruning: Pruning | None = None,
        packed: Mapping[str, Any] | None = None,
        ready: Bytes = b"",
    ) -> Stored:
        """A recipe's file. Raises CheckpointError for dense layers that do not fit each other."""
        more = {"tensors": tensors, "tokenizer": tokenizer, "source": source, "packed": packed, "ready": ready}
        return cls(**shared(recipe), **more, pruning=pruning, dense=dense.pack(recipe.dense))

    @property
    def dtypes(self) -> list[str]:
        """The types of the weights, sorted, for people: ["q4"] for a model converted to q4.

        Left out are those of the few matrices that are kept more exactly than asked for: routers, positions, and in a
        model of four bits those that are q8.
        """
        matrices = {name: t.dtype for name, t in self.tensors.items() if isinstance(t, _core.Matrix)}
        dtypes = {dtype for name, dtype in matrices.items() if not name.endswith(".router") and name != "positions"}
        return sorted(dtypes - {"q8"} if dtypes & {"q4", "q4m"} else dtypes)


def shared(model: Recipe | Stored) -> dict[str, Any]:
    """The fields of a Recipe or a Stored that the other takes as they are, as keyword arguments."""
    return {name: getattr(model, name) for name in _SHARED}


class Part(NamedTuple):
    """A tensor to be written, as an iterable of pieces. dtype: a matrix's; None for a vector of f32.

    values: Matrix.values of a q4 matrix; None for the core's own.
    """

    dtype: str | None
    shape: tuple[int, ...]
    nbytes: int
    pieces: Iterable[Bytes]
    values: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: _core.Matrix | _core.Vector) -> Part:
        """A tensor that is packed already."""
        if isinstance(tensor, _core.Vector):
            return cls(None, tensor.shape, tensor.nbytes, (tensor.data,))
        return cls(tensor.dtype, tensor.shape, tensor.nbytes, (tensor.data,), tensor.values)


def check_dtype(dtype: str | None) -> None:
    """Raises OptionError unless weights may be converted to `dtype`; None keeps their own type."""
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def save(path: Path, stored: Stored) -> None:
    """Writes a converted file. The same content gives the same bytes; a failure leaves `path` as it was."""
    write(
        path,
        stored,
        {name: Part.of(tensor) for name, tensor in stored.tensors.items()},
    )


def write(
    path: Path, stored: Stored, parts: Mapping[str, Part], *, private: bool = False, modified: int | None = None
) -> None:
    """Writes a converted file with `parts` in place of stored.tensors: their pieces are made while they are written.

    private, modified: see files.replacing.
    """
    parts = {**parts, **_dense_parts(stored.dense)}
    about = _about(stored, parts)
    if stored.tokenizer:
        kind, blob = stored.tokenizer
        about["tokenizer"] = {"kind": kind, "bytes": len(blob)}
        parts["tokenizer"] = Part("u8", (len(blob),), len(blob), (blob,))
    if stored.ready:
        about["ready"] = len(stored.ready)
        parts["tokenizer.ready"] = Part("u8", (len(stored.ready),), len(stored.ready), (stored.ready,))
    header, nbytes = _header(about, parts)
    with replacing(path, len(header) + nbytes, private=private, modified=modified) as file:
        file.write(header)
        for part in parts.values():
            for piece in part.pieces:
                file.write(piece)
            file.write(bytes(-part.nbytes % _core.ALIGN))


def _about(stored: Stored, parts: Mapping[str, Part]) -> dict[str, object]:
    """The JSON under the header's key "fastllm", but for the tokenizer's entry."""
    about: dict[str, object] = {
        "version": VERSION,
        "layout": LAYOUT,
        "config": stored.config.to_json(),
        "matrices": {name: [p.dtype, *p.shape] for name, p in parts.items() if p.dtype},
        "values": {name: list(p.values) for name, p in parts.items() if p.values},
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
    if stored.sampling:
        about["sampling"] = dict(stored.sampling)
    if stored.pruning is not None:
        about["pruning"] = stored.pruning.to_json()
    if stored.packed is not None:
        about["packed"] = dict(stored.packed)
    return about


def _header(about: Mapping[str, object], parts: Mapping[str, Part]) -> tuple[bytes, int]:
    """The bytes before the data, and how many bytes of data follow."""
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
    return struct.pack("<Q", len(text)) + text, offset


def _dense_parts(chains: Mapping[str, tuple[_core.Dense, ...]]) -> dict[str, Part]:
    """The layers of chains: layer i's matrix is "chain.i", its bias "chain.i.bias"."""
    parts = {}
    for chain, layers in chains.items():
        for i, layer in enumerate(layers):
            parts[f"{chain}.{i}"] = Part.of(layer.matrix)
            if layer.bias is not None:
                parts[f"{chain}.{i}.bias"] = Part.of(layer.bias)
    return parts


def is_store(data: memoryview) -> bool:
    """Whether a file's bytes are a .safetensors header with the key "fastllm"."""
    return is_safetensors(data) and b'"fastllm"' in bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def open_file(path: Path) -> Stored | None:
    """A converted file, or None for a file of another kind. Raises CheckpointError if it is broken or unreadable."""
    if path.is_dir():
        return None
    data = map_file(path)
    return load(path, data) if is_store(data) else None


def load(path: Path, data: memoryview) -> Stored:
    """Opens a mapped converted file; tensors point into the map. Raises CheckpointError for a broken one."""
    try:
        return _load(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a usable converted file: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is not a usable converted file: its header is broken") from None


class _File(NamedTuple):
    """The tensors of a converted file. header: its JSON; matrices, values: as there; data: what follows."""

    header: Mapping[str, Any]
    matrices: Mapping[str, Any]
    values: Mapping[str, Any]
    data: memoryview

    def part(self, name: str) -> memoryview:
        """The bytes of a tensor, with those that pad it."""
        if name not in self.header:
            raise CheckpointError(f"it has no tensor {name}")
        begin, end = self.header[name]["data_offsets"]
        if not 0 <= begin <= end <= len(self.data):
            raise CheckpointError(f"it is truncated: {name} ends past the end of the file")
        return self.data[begin:end]

    def vector(self, name: str, size: int) -> _core.Vector:
        """A vector of `size` values."""
        values = self.part(name)
        if len(values) < size * 4:
            raise CheckpointError(f"{name} has {len(values) // 4} values, the config needs {size}")
        return _core.Vector(values[: size * 4], name=name)

    def matrix(self, name: str) -> _core.Matrix:
        """A matrix or a stack of them."""
        dtype, *stack, d, n = self.matrices[name]
        count = stack[0] if stack else None
        return _core.Matrix(dtype, d, n, self.part(name), count=count, values=self.values.get(name))

    def layer(self, name: str, act: str) -> tuple[_core.Matrix, _core.Vector | None, str]:
        """A dense layer, as dense.bind takes it."""
        matrix = self.matrix(name)
        bias = self.vector(f"{name}.bias", matrix.shape[0]) if f"{name}.bias" in self.header else None
        return matrix, bias, act


def _tensors(config: Config, file: _File) -> dict[str, _core.Matrix | _core.Vector]:
    """The matrices and vectors that a model of this config has."""
    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    for name, shape, required in config.matrices():
        if name not in file.matrices:
            if required:
                raise CheckpointError(f"it has no matrix {name}")
            continue
        dtype, *found = file.matrices[name]
        if dtype not in _core.TYPES:
            raise CheckpointError(f"{name} is of the type {dtype}, which this fastllm has not: convert the model again")
        if tuple(found) != shape:
            raise CheckpointError(f"{name} is {found}, the config needs {list(shape)}")
        tensors[name] = file.matrix(name)
    for name, size, required in config.vectors():
        if name in file.header or required:
            tensors[name] = file.vector(name, size)
    return tensors


def _load(data: memoryview) -> Stored:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(bytes(data[8 : 8 + length]))
    if "fastllm" not in header.get("__metadata__", {}):
        raise CheckpointError("it is a safetensors file that fastllm did not write")
    about = json.loads(header["__metadata__"]["fastllm"])
    if about["version"] not in _READABLE or about["layout"] != LAYOUT:
        raise CheckpointError(
            f"its version is {about['version']}, layout {about['layout']}; "
            f"this fastllm reads {VERSION}, {LAYOUT}: convert the model again"
        )
    config = Config.from_json(about["config"])
    file = _File(header, about["matrices"], about.get("values", {}), data[8 + length :])
    tensors = _tensors(config, file)
    chains = {
        chain: dense.bind(chain, [file.layer(f"{chain}.{i}", act) for i, act in enumerate(acts)])
        for chain, acts in about.get("dense", {}).items()
    }
    embedding = Embedding.from_json(about.get("embedding", {}))
    if embedding.layers != len(chains.get("embedding", ())):
        raise CheckpointError(f"it has not the {embedding.layers} layers of its embedding")
    tokenizer = None
    if "tokenizer" in about:
        kind, size = about["tokenizer"]["kind"], about["tokenizer"]["bytes"]
        tokenizer = (str(kind), file.part("tokenizer")[:size])
    bos = about["bos"]
    return Stored(
        config=config,
        tensors=tensors,
        bos=None if bos is None else int(bos),
        stop=tuple(int(i) for i in about["stop"]),
        chat_stop=tuple(int(i) for i in about["chat_stop"]),
        tokenizer=tokenizer,
        source=str(about.get("source", "")),  # the first files have none
        dense=chains,
        embedding=embedding,
        classifier=Classifier.from_json(about["classifier"]) if "classifier" in about else None,
        ranking=Ranking.from_json(about["ranking"]) if "ranking" in about else Ranking(),
        sampling=dict(about.get("sampling", {})),
        pruning=Pruning.from_json(about["pruning"]) if "pruning" in about else None,
        packed=about.get("packed"),
        ready=file.part("tokenizer.ready")[: about["ready"]] if "ready" in about else b"",
    )
