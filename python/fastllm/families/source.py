"""What a family reads, a Source, and what it returns, a Recipe.

A family is a function from a Source to a Recipe. It reads the checkpoint's config, in the words of that kind of
checkpoint, into a Config, and gives every tensor its canonical name (Config.matrices, Config.vectors):

    def family(source: Source) -> Recipe:
        config = Config(dim=source.integer("hidden_size"), ...)
        for i in range(config.n_layers):
            source.linear(f"layers.{i}.attn.wq", f"model.layers.{i}.self_attn.q_proj", bias=False)
            ...
        return source.recipe(config)

Matrices are not read before they are packed; vectors, which are small, are read at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fastllm.config import Config
from fastllm.errors import CheckpointError
from fastllm.families.names import Tensors
from fastllm.formats import Checkpoint
from fastllm.heads import Classifier, Embedding, Layer, Ranking
from fastllm.tensors import Bytes, Tensor, equal, floats

# How transformers' generation_config.json says that tokens are drawn. decoding.Sampling has the same names.
_SAMPLING = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")


class Weight(NamedTuple):
    """A matrix, or a stack of them, in the model's shape. rows: row r of the model is row rows[r] of the tensor."""

    tensor: Tensor
    rows: array[int] | None = None


class Recipe(NamedTuple):
    """How a checkpoint becomes a model.

    matrices, vectors: by canonical name (Config.matrices, Config.vectors); "head" is missing where it is tied to the
    embedding. Vectors are f32 bytes. bos: the token that a text starts with, if any. stop: tokens that end a text.
    chat_stop: tokens that end a turn of a chat. dense: chains of layers after the last hidden states, by purpose:
    "classifier", "embedding". embedding: how a text becomes one vector. classifier: of a model that labels texts or
    tokens. ranking: how a query and a document become a score. sampling: the options of decoding.Sampling that the
    checkpoint recommends. unused: the checkpoint's own names of tensors that nothing uses, but for those that are known
    not to matter.
    """

    config: Config
    matrices: Mapping[str, Weight]
    vectors: Mapping[str, Bytes]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]
    dense: Mapping[str, Sequence[Layer]] = MappingProxyType({})
    embedding: Embedding = Embedding()
    classifier: Classifier | None = None
    ranking: Ranking = Ranking()
    sampling: Mapping[str, float] = MappingProxyType({})
    unused: tuple[str, ...] = ()


class Source:
    """A checkpoint as a family reads it, and the tensors that the family has named so far.

    header: the config. defaults: values for keys that the header lacks, or has as null. tensors: by the names that the
    family has for them (names.py). task: what the model is for, one of architectures.TASKS. matrices, vectors: the
    Recipe's.

    Every value and tensor is checked when it is asked for: methods raise a CheckpointError that names the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, task: str = "") -> None:
        self.path, self.architecture, self.task = checkpoint.path, checkpoint.architecture, task
        self.header, tensors = checkpoint.header, checkpoint.tensors
        self.tensors = tensors if isinstance(tensors, Tensors) else Tensors(checkpoint.path, tensors)
        self.defaults: Mapping[str, object] = {}
        self.matrices: dict[str, Weight] = {}
        self.vectors: dict[str, Bytes] = {}

    # ---- the config

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the header; if that is missing or null, of the family's defaults, then `default`."""
        value = self.header.get(key)
        value = self.defaults.get(key) if value is None else value
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the header. Raises CheckpointError for anything else, and where there is none."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
            raise self.error(f"has no whole number {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number of the header. Raises CheckpointError for anything else, and where there is none."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.error(f"has no number {key} in its config" if value is None else f"has {key} {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false of the header. Raises CheckpointError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"has {key} {value!r}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the header. Raises CheckpointError for anything else, and where there is none."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"has no {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def refuse(self, key: str, *allowed: object) -> None:
        """Raises CheckpointError unless a value is missing, null or one of `allowed`.

        For options that change what the model computes and that fastllm lacks: better an error than a wrong text.
        """
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.error(f"has {key} {value!r}, which fastllm does not support")

    def section(self, key: str, **defaults: object) -> Source:
        """The config under `key` of the header, over `defaults`, as a Source of the same tensors."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"has {key} {value!r}, not a config of its own")
        header = {**defaults, **{k: v for k, v in value.items() if v is not None}}
        return Source(Checkpoint(self.path, "", self.architecture, header, self.tensors), self.task)

    def error(self, what: str) -> CheckpointError:
        """An error to raise: "PATH what"."""
        return CheckpointError(f"{self.path} {what}")

    def rows(self, key: str, *names: str) -> int:
        """A whole number of the header; where it has none, the rows of the first of these tensors that there is."""
        found = next((name for name in names if name in self.tensors), names[0])
        return self.integer(key, None if self.get(key) is not None else self.tensor(found).rows)

    # ---- tensors

    def tensor(self, name: str) -> Tensor:
        """The checkpoint's tensor of that name. Raises CheckpointError where there is none."""
        if name not in self.tensors:
            raise self.error(f"has no tensor {name}")
        return self.tensors[name]

    def matrix(self, name: str, tensor: Tensor | str, rows: array[int] | None = None) -> None:
        """Makes `tensor`, or the checkpoint's tensor of that name, the canonical matrix `name`. rows: Weight.rows."""
        self.matrices[name] = Weight(self.tensor(tensor) if isinstance(tensor, str) else tensor, rows)

    def vector(
        self,
        name: str,
        tensor: Tensor | str,
        *,
        add: float = 0.0,
        repeat: int = 1,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Makes a tensor the canonical vector `name`, in f32.

        add: added to each value. repeat: how many copies stand one after the other. rows: then value r is that of
        rows[r].
        """
        tensor = self.tensor(tensor) if isinstance(tensor, str) else tensor
        if tensor.dtype == "f32" and not add and repeat == 1 and rows is None:
            self.vectors[name] = tensor.all()
            return
        import numpy

        values = numpy.tile(floats(tensor).reshape(-1) + numpy.float32(add), repeat)
        if rows is not None and len(rows) != len(values):
            raise self.error(f"has {len(values)} values for {name}, which needs {len(rows)}")
        self.vectors[name] = (values if rows is None else values[numpy.asarray(rows)]).tobytes()

    def linear(
        self,
        name: str,
        source: str,
        *,
        bias: bool | None,
        rows: array[int] | None = None,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Names a linear layer: `source`.weight is the canonical matrix `name`, `source`.bias the vector `name`.bias.

        bias: whether the architecture has one; None to take one if the file has it. rows: Weight.rows, of the bias too.
        turn: applied to the matrix first, such as tensors.transposed.
        """
        tensor = self.tensor(f"{source}.weight")
        self.matrix(name, turn(tensor) if turn else tensor, rows)
        if f"{source}.bias" in self.tensors if bias is None else bias:
            self.vector(f"{name}.bias", f"{source}.bias", rows=rows)

    def norm(self, name: str, source: str, *, bias: bool = False, add: float = 0.0) -> None:
        """Names a norm: `source`.weight is the canonical vector `name`, `source`.bias the vector `name`.bias.

        bias: whether the architecture has one. add: added to the weights.
        """
        self.vector(name, f"{source}.weight", add=add)
        if bias:
            self.vector(f"{name}.bias", f"{source}.bias")

    def embedding(self, embed: str, head: str, *, tied: bool, needed: bool = False) -> bool:
        """Names embedding and head, the tensors `embed` and `head`; returns whether the model has a head.

        As in transformers, the config ties them (tie_word_embeddings, or `tied` where it does not say): one matrix is
        both, under either name, unless the file has a head with other values. An untied model without a head in the
        file makes vectors only; where a head is `needed`, that is an error.
        """
        if self.flag("tie_word_embeddings", tied):
            if head not in self.tensors:
                self.matrix("embed", embed)
            elif embed not in self.tensors:
                self.matrix("embed", head)
            else:
                self.matrix("embed", embed)
                if not equal(self.tensor(embed), self.tensor(head)):
                    self.matrix("head", head)
            return True
        self.matrix("embed", embed)
        if head in self.tensors or needed:
            self.matrix("head", head)
        return "head" in self.matrices

    def recipe(
        self,
        config: Config,
        *,
        bos: int | None = None,
        stop: Sequence[int] = (),
        chat_stop: Sequence[int] | None = None,
    ) -> Recipe:
        """The recipe of what was named so far. chat_stop: None for the same as `stop`."""
        ends = tuple(dict.fromkeys(stop))
        chat_ends = ends if chat_stop is None else tuple(chat_stop)
        return Recipe(config, self.matrices, self.vectors, bos, ends, chat_ends, sampling=self._sampling())

    def _sampling(self) -> dict[str, float]:
        """Recipe.sampling, from the header's generation_config; "do_sample": false there means the likeliest token."""
        given = self.section("generation_config")
        options: dict[str, float] = {name: given.number(name) for name in _SAMPLING if name in given.header}
        if "top_k" in given.header:
            options["top_k"] = given.integer("top_k")
        if not given.flag("do_sample", True):
            options["temperature"] = 0.0
        return options


def half_split(heads: int, head_dim: int) -> array[int]:
    """Weight.rows of a matrix whose heads rotate pairs (2i, 2i + 1): the core rotates pairs (i, i + head_dim / 2).

    For a head of 8 channels:

        canonical row   0  1  2  3  4  5  6  7
        tensor's row    0  2  4  6  1  3  5  7
    """
    order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return array("i", [head * head_dim + i for head in range(heads) for i in order])
