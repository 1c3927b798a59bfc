"""How a text becomes one vector: prompts, pooling of its hidden states, layers after that, lengths.

The terms are those of sentence-transformers (Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084), whose files
describe it for most models (formats/sentence_transformers.py reads them). Sums are computed in float64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.errors import CheckpointError, OptionError
from fastllm.heads.dense import apply

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm import _core

    Floats = NDArray[np.float32]

POOLINGS = ("mean", "cls", "last", "max", "weighted_mean", "mean_sqrt_len")
STEPS = ("pool", "dense", "residual", "standardize", "normalize")
_EPSILON = 1e-5  # the default of torch.nn.LayerNorm


class _Fields(NamedTuple):
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[str, ...] = ("pool",)
    include_prompt: bool = True
    max_tokens: int = 0
    truncate_left: bool = False
    lower_case: bool = False
    prompts: Mapping[str, str] = MappingProxyType({})
    default_prompt: str = ""
    dimensions: int = 0
    similarity: str = ""
    refused: str = ""


class Embedding(_Fields):
    """How a text's hidden states [T, dim] become its vector; by default their mean.

    pooling: one of POOLINGS, or several whose results are concatenated: "mean"; "cls", the first token's; "last", the
    last token's; "max", of each channel; "weighted_mean", where token i, counted from 1, has the weight i;
    "mean_sqrt_len", the sum divided by the square root of T. include_prompt: whether the prompt's tokens are pooled.

    steps: what is computed, in order: "pool"; "dense", the next layer of the chain "embedding"; "residual", that layer
    plus its input; "standardize", to mean 0 and variance 1; "normalize", to length 1. Steps before "pool" apply to each
    token. dimensions: how many channels of the vector are kept, 0 for all (Matryoshka, Kusupati et al., 2022).
    similarity: how vectors are meant to be compared, for people.

    max_tokens: the longest text, special tokens included, 0 for as many as the model has positions. truncate_left:
    whether a text that is too long loses its beginning instead of its end. lower_case: whether texts are lowercased.
    prompts: name -> text to put before a text. default_prompt: the name of the one that is used, "" for none.

    refused: why fastllm cannot make the vectors that the checkpoint's files describe; "" if it can.

    Raises CheckpointError for values that no embedding can have.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> Embedding:
        self = super().__new__(cls, **values)
        if not self.pooling or not set(self.pooling) <= set(POOLINGS):
            raise CheckpointError(f"an embedding's pooling {list(self.pooling)} is none of {', '.join(POOLINGS)}")
        if not set(self.steps) <= set(STEPS) or self.steps.count("pool") != 1:
            raise CheckpointError(f"an embedding's steps {list(self.steps)} are not {', '.join(STEPS)} with one pool")
        for name in ("max_tokens", "dimensions"):
            if not 0 <= getattr(self, name) < 1 << 31:
                raise CheckpointError(f"an embedding has {name} {getattr(self, name)}")
        if self.default_prompt and self.default_prompt not in self.prompts:
            raise CheckpointError(f"the default prompt {self.default_prompt!r} is none of {_names(self.prompts)}")
        return self

    @property
    def layers(self) -> int:
        """How many layers of the chain "embedding" the steps use."""
        return sum(step in ("dense", "residual") for step in self.steps)

    def chosen(self, pooling: str | None, normalize: bool | None) -> Embedding:
        """The Embedding of a call, whose options replace the files' own values; None and True keep them.

        A pooling that is asked for makes vectors also where the files' own are `refused`. Raises OptionError for a
        pooling that is not known, CheckpointError for a refused embedding.
        """
        if pooling is not None and pooling not in POOLINGS:
            raise OptionError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        if self.refused and pooling is None:
            raise CheckpointError(f"{self.refused}; a pooling that is named makes vectors of the hidden states alone")
        found = self if pooling is None else self._replace(pooling=(pooling,), refused="")
        if normalize is False:
            kept = len(found.steps)
            while found.steps[kept - 1] == "normalize":
                kept -= 1
            found = found._replace(steps=found.steps[:kept])
        return found

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """What goes before each text: the given prompt, the one of that name, or the default. Raises OptionError."""
        if prompt is not None and name is not None:
            raise OptionError("a prompt is given by its text or by its name, not by both")
        if prompt is not None:
            return prompt
        if name is not None and name not in self.prompts:
            raise OptionError(f"there is no prompt {name!r}: the model's are {_names(self.prompts)}")
        return self.prompts[name or self.default_prompt] if name or self.default_prompt else ""

    def lowered(self, text: str, special: Iterable[str] = ()) -> str:
        """The text in lower case where the model wants that, but for the special tokens in it.

        Characters are lowercased one by one, as in the tokenizers library: str.lower looks at their neighbours too.
        """
        if not self.lower_case:
            return text
        tokens = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        parts = re.split(f"({tokens})", text) if tokens else [text]
        return "".join(part if i % 2 else "".join([c.lower() for c in part]) for i, part in enumerate(parts))

    def width(self, dim: int, chain: Sequence[_core.Dense]) -> int:
        """Channels of the vector of hidden states of `dim` channels.

        Raises CheckpointError where a layer of the chain takes another number of channels.
        """
        layers = iter(chain)
        for step in self.steps:
            if step == "pool":
                dim *= len(self.pooling)
            elif step in ("dense", "residual"):
                rows, columns = next(layers).matrix.shape
                if columns != dim or (step == "residual" and rows != dim):
                    raise CheckpointError(f"a layer of its embedding takes {columns} channels, not {dim}")
                dim = rows
        return min(dim, self.dimensions or dim)

    def vector(self, hidden: Floats, chain: Sequence[_core.Dense], *, skip: int = 0, isa: str | None = None) -> Floats:
        """The vector of a text's hidden states [T, dim]. skip: how many tokens, fewer than T, to leave out in front."""
        rows, layers = hidden, iter(chain)
        for step in self.steps:
            if step == "pool":
                rows = _pooled(rows, self.pooling, skip)
            elif step == "dense":
                rows = apply((next(layers),), rows, isa=isa)
            elif step == "residual":
                rows = rows + apply((next(layers),), rows, isa=isa)
            elif step == "standardize":
                rows = _standardized(rows)
            else:
                rows = normalized(rows)
        return rows[0, : self.dimensions or None]

    def to_json(self) -> dict[str, object]:
        """The fields that differ from their defaults."""
        values = self._asdict() | {"prompts": dict(self.prompts)}
        defaults = _Fields()._asdict() | {"prompts": {}}
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_json(cls, data: object) -> Embedding:
        """The inverse of to_json; raises CheckpointError for anything else."""
        if not isinstance(data, dict) or not data.keys() <= set(_Fields._fields):
            raise CheckpointError("the embedding has not the fields that this version knows")
        values: dict[str, Any] = {}
        for name, value in data.items():
            default = _Fields._field_defaults[name]
            if isinstance(default, tuple) and isinstance(value, list) and all(type(item) is str for item in value):
                values[name] = tuple(value)
            elif isinstance(default, Mapping) and isinstance(value, dict):
                values[name] = prompts_by_name(value)
            elif type(value) is type(default):
                values[name] = value
            else:
                raise CheckpointError(f"the embedding's {name} {value!r} is not a value of the right kind"[:200])
        return cls(**values)


def prompts_by_name(prompts: Mapping[Any, Any]) -> dict[str, str]:
    """Prompts of a JSON object; null is "". Raises CheckpointError for one that is not a string."""
    if not all(isinstance(value, str) or value is None for value in prompts.values()):
        raise CheckpointError("a prompt is not a text")
    return {str(name): value or "" for name, value in prompts.items()}


def _names(prompts: Mapping[str, str]) -> str:
    return ", ".join(map(repr, prompts)) or "none"


def _pooled(rows: Floats, pooling: Sequence[str], skip: int) -> Floats:
    """Rows [T, n] pooled in each of these ways, concatenated: [1, n * len(pooling)]."""
    import numpy

    kept, parts = rows[skip:], []
    for how in pooling:
        if how == "cls":
            part = kept[0]
        elif how == "last":
            part = kept[-1]
        elif how == "max":
            part = kept.max(axis=0)
        elif how == "weighted_mean":
            weights = numpy.arange(skip + 1, len(rows) + 1, dtype=numpy.float64)
            part = (kept * weights[:, None]).sum(axis=0) / weights.sum()
        else:
            part = kept.mean(axis=0, dtype=numpy.float64) * (len(kept) ** 0.5 if how == "mean_sqrt_len" else 1.0)
        parts.append(part.astype(numpy.float32))
    return numpy.concatenate(parts)[None]


def _standardized(rows: Floats) -> Floats:
    """Rows with mean 0 and variance 1: LayerNorm without weights."""
    import numpy

    wide = rows.astype(numpy.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    wide /= numpy.sqrt((wide**2).mean(axis=1, keepdims=True) + _EPSILON)
    return wide.astype(numpy.float32)


def normalized(rows: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays."""
    import numpy

    lengths = numpy.sqrt((rows.astype(numpy.float64) ** 2).sum(axis=1, keepdims=True))
    unit: Floats = (rows / numpy.maximum(lengths, 1e-12)).astype(numpy.float32)
    return unit
