"""What becomes of the stream where a text is to be one vector: prompts, pooling, layers after it, lengths.

The words are those of sentence-transformers (Reimers and Gurevych, 2019), whose files say it for most models; see
formats/sentence_transformers.py. Sums are in double precision.
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
_EPSILON = 1e-5  # of torch's LayerNorm


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
    """How a text's hidden states become its vector; by default their mean.

    pooling: of POOLINGS: the mean, the first token's, the last one's, the largest of each channel, the mean in which
    token i, from 1, counts i times, the sum over the square root of the count; several one after the other.
    include_prompt: whether the prompt's tokens are pooled.

    steps: what is done, in order: "pool"; "dense": the next layer of the chain "embedding"; "residual": that layer,
    plus what goes into it; "standardize": to mean 0 and variance 1; "normalize": to length 1. What stands before "pool"
    is done to every token. dimensions: how many channels of the vector are kept, 0 for all. similarity: how vectors are
    meant to be compared, for people.

    max_tokens: of a text with what belongs around it, 0 for as many as the model has positions; truncate_left: what is
    too long loses its beginning, not its end. lower_case: texts are made lower case first. prompts: what may go before
    a text, by name; default_prompt: the name of the one that does, "" for none.

    refused: why vectors cannot be made as the checkpoint's files say; "" where they can.

    Raises CheckpointError for what cannot be.
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
        """How many layers its steps have."""
        return sum(step in ("dense", "residual") for step in self.steps)

    def chosen(self, pooling: str | None, normalize: bool | None) -> Embedding:
        """It with what a call asks for in place of what the files say. Raises OptionError, CheckpointError.

        A pooling that is asked for also makes plain vectors where the files' own cannot be made.
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
        """What goes before each text: a prompt that is given, one by name, or the default. Raises OptionError."""
        if prompt is not None and name is not None:
            raise OptionError("a prompt is given by its text or by its name, not by both")
        if prompt is not None:
            return prompt
        if name is not None and name not in self.prompts:
            raise OptionError(f"there is no prompt {name!r}: the model's are {_names(self.prompts)}")
        return self.prompts[name or self.default_prompt] if name or self.default_prompt else ""

    def lowered(self, text: str, special: Iterable[str] = ()) -> str:
        """The text as the tokenizer gets it, with the special tokens in it as they are.

        Lower case goes character by character, as in the tokenizers library.
        """
        if not self.lower_case:
            return text
        tokens = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        parts = re.split(f"({tokens})", text) if tokens else [text]
        return "".join(part if i % 2 else "".join([c.lower() for c in part]) for i, part in enumerate(parts))

    def width(self, dim: int, chain: Sequence[_core.Dense]) -> int:
        """Channels of the vectors of a stream of `dim`. Raises CheckpointError where its layers take others."""
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

    def vector(self, stream: Floats, chain: Sequence[_core.Dense], *, skip: int = 0, isa: str | None = None) -> Floats:
        """The vector of a text's hidden states [T, dim], without the first `skip` tokens, which are fewer than T."""
        rows, layers = stream, iter(chain)
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
        """The fields that are not what they are by default."""
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
    """Prompts by name; null is an empty one. Raises CheckpointError for what is no text."""
    if not all(isinstance(value, str) or value is None for value in prompts.values()):
        raise CheckpointError("a prompt is not a text")
    return {str(name): value or "" for name, value in prompts.items()}


def _names(prompts: Mapping[str, str]) -> str:
    return ", ".join(map(repr, prompts)) or "none"


def _pooled(rows: Floats, pooling: Sequence[str], skip: int) -> Floats:
    """The vectors of rows [T, n], one after the other: [1, n * poolings]."""
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
    import numpy

    wide = rows.astype(numpy.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    wide /= numpy.sqrt((wide**2).mean(axis=1, keepdims=True) + _EPSILON)
    return wide.astype(numpy.float32)


def normalized(rows: Floats) -> Floats:
    """Rows of length 1; zeros stay."""
    import numpy

    lengths = numpy.sqrt((rows.astype(numpy.float64) ** 2).sum(axis=1, keepdims=True))
    unit: Floats = (rows / numpy.maximum(lengths, 1e-12)).astype(numpy.float32)
    return unit
