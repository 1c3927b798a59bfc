"""What a family reads, a Source, and what it returns, a Recipe.

A family is a function from a Source to a Recipe: it reads the checkpoint's config, in whatever words its authors chose,
into a Config, and gives every tensor its canonical name (Config.matrices, Config.vectors). Nothing is read from disk
before weights are packed, but for vectors and what a family compares.
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


class Weight(NamedTuple):
    """A matrix, or a stack of them, in the model's shape. Row r of the model is row rows[r] of the tensor."""

    tensor: Tensor
    rows: array[int] | None = None


class Recipe(NamedTuple):
    """How a checkpoint becomes a model.

    matrices, vectors: by canonical name (Config.matrices, Config.vectors); "head" is missing where it is tied. Vectors
    are f32 bytes. bos: the token a text starts with, if any; stop: tokens that end a text; chat_stop: that end a turn
    of a chat. dense: chains of layers after the stream, by what they are for: "classifier", "embedding". embedding:
    what becomes of the stream where a text is to be one vector.
    classifier: of a model that labels texts or tokens; ranking: how it scores pairs of texts. unused: the
    checkpoint's names of tensors that have no effect and might be expected to.
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
    unused: tuple[str, ...] = ()


class Source:
    """A checkpoint as a family reads it, and the recipe it writes.

    task: what the model is for, one of architectures.TASKS. defaults: values of the header where it has none or null.
    tensors: by the family's names (see names.py).

    Values and tensors are checked as they are asked for; every error names the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, task: str = "") -> None:
        self.path, self.architecture, self.task = checkpoint.path, checkpoint.architecture, task
        self.header, tensors = checkpoint.header, checkpoint.tensors
        self.tensors = tensors if isinstance(tensors, Tensors) else Tensors(checkpoint.path, tensors)
        self.defaults: Mapping[str, object] = {}
        self.matrices: dict[str, Weight] = {}
        self.vectors: dict[str, Bytes] = {}
        self.dense: dict[str, Sequence[Layer]] = {}

    # ---- the header

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the header; null counts as missing, for which the family's defaults come before `default`."""
        value = self.header.get(key)
        value = self.defaults.get(key) if value is None else value
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
            raise self.error(f"has no whole number {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.error(f"has no number {key} in its config" if value is None else f"has {key} {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"has {key} {value!r}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"has no {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def refuse(self, key: str, *allowed: object) -> None:
        """Raises unless the value is missing or one of `allowed`: for options of the family that are not built."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.error(f"has {key} {value!r}, which fastllm does not support")

    def section(self, key: str, **defaults: object) -> Source:
        """The config that the header has under `key` over `defaults`, as a Source with the same tensors."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"has {key} {value!r}, not a config of its own")
        header = {**defaults, **{k: v for k, v in value.items() if v is not None}}
        return Source(Checkpoint(self.path, "", self.architecture, header, self.tensors), self.task)

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}")

    def rows(self, key: str, *names: str) -> int:
        """A whole number of the header, or where it has none the rows of the first of these tensors that is there."""
        found = next((name for name in names if name in self.tensors), names[0])
        return self.integer(key, None if self.get(key) is not None else self.tensor(found).rows)

    # ---- tensors

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.error(f"has no tensor {name}")
        return self.tensors[name]

    def matrix(self, name: str, tensor: Tensor | str, rows: array[int] | None = None) -> None:
        """The canonical matrix `name` is `tensor`, or the checkpoint's tensor of that name."""
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
        """The canonical vector `name`: (the tensor + add), repeated, its values in the order of `rows`."""
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
        """The canonical matrix `name`, and its bias, from `source`.weight and `source`.bias.

        bias: whether the architecture has one; None where only the file says.
        turn: what to do to the matrix first, such as tensors.transposed.
        """
        tensor = self.tensor(f"{source}.weight")
        self.matrix(name, turn(tensor) if turn else tensor, rows)
        if f"{source}.bias" in self.tensors if bias is None else bias:
            self.vector(f"{name}.bias", f"{source}.bias", rows=rows)

    def norm(self, name: str, source: str, *, bias: bool = False, add: float = 0.0, repeat: int = 1) -> None:
        """The canonical norm `name`, and its bias if it has one, from `source`.weight and `source`.bias."""
        self.vector(name, f"{source}.weight", add=add, repeat=repeat)
        if bias:
            self.vector(f"{name}.bias", f"{source}.bias", repeat=repeat)

    def embedding(self, embed: str, head: str, *, tied: bool, needed: bool = False) -> bool:
        """The canonical embedding from the tensor `embed` and head from `head`; returns whether there is a head.

        As in transformers: a config that ties them (tie_word_embeddings, or `tied` where it does not say) means one
        matrix for both, under either name, but a head that is in the file and has other values counts. A model that
        ties nothing and has no head makes vectors only, as some of a language model's class do, unless one is `needed`.
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
        ends = tuple(dict.fromkeys(stop))
        chat_ends = ends if chat_stop is None else tuple(chat_stop)
        return Recipe(config, self.matrices, self.vectors, bos, ends, chat_ends, self.dense)


def half_split(heads: int, head_dim: int, rotary_dim: int | None = None) -> array[int]:
    """Rows that bring rotary pairs (2i, 2i + 1) of each head to (i, i + rotary_dim / 2)."""
    r = head_dim if rotary_dim is None else rotary_dim
    order = [*range(0, r, 2), *range(1, r, 2), *range(r, head_dim)]
    return array("i", [head * head_dim + i for head in range(heads) for i in order])
