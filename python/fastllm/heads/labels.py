"""What a classifier's scores mean (Classifier), and how a query and a document become one score (Ranking)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_POOLINGS = ("cls", "last", "each")
_ACTIVATIONS = ("identity", "relu", "sigmoid", "softmax", "tanh")


class Classifier(NamedTuple):
    """The head of a model that labels texts or tokens: the chain "classifier" gives a score for each label.

    pooling: which hidden states go into the chain: the first token's ("cls"), the last token's ("last"), or every
    token's ("each"), for a row of scores a token. labels: their names, one for each score. activation: what turns
    scores into probabilities. pad: the padding token, which "last" skips.
    """

    pooling: str
    labels: tuple[str, ...]
    activation: str
    pad: int | None = None

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [..., labels] as probabilities of the same shape; a regression's scores stay as they are."""
        return activate(self.activation, scores)

    @classmethod
    def from_json(cls, data: object) -> Classifier:
        """From its JSON, a list of the fields. Raises CheckpointError for anything else."""
        if not isinstance(data, list) or len(data) != len(cls._fields) or not isinstance(data[1], list):
            raise CheckpointError("its classifier is broken")
        self = cls(data[0], tuple(data[1]), *data[2:])
        texts = all(isinstance(label, str) for label in self.labels) and isinstance(self.pooling, str)
        if not texts or self.pooling not in _POOLINGS or self.activation not in _ACTIVATIONS or not _is_id(self.pad):
            raise CheckpointError("its classifier is broken")
        return self


class Ranking(NamedTuple):
    """How a model scores a query and a document: what sentence-transformers' CrossEncoder keeps in its files.

    See https://sbert.net/docs/package_reference/cross_encoder/cross_encoder.html.

    activation: of the score. max_length: how many tokens a text or pair is cut to, None for no limit. truncate_left:
    whether it is cut at its beginning instead of its end. prompt: put before the query; in a chat template, the
    system's message. messages: whether query and document go through the chat template, as messages with these roles;
    None where the files do not say. variables: the template's.
    words: of a judge, a language model whose next token is the answer: the id of the token for a document that fits,
    and of that for one that does not, or None. refused: why fastllm cannot compute the scores that the files describe;
    "" if it can.
    """

    activation: str = "sigmoid"
    max_length: int | None = None
    truncate_left: bool = False
    prompt: str = ""
    messages: bool | None = None
    variables: Mapping[str, object] = {}
    words: tuple[int, int | None] | None = None
    refused: str = ""

    @classmethod
    def from_json(cls, data: object) -> Ranking:
        """From its JSON, a list of the fields. Raises CheckpointError for anything else."""
        if not isinstance(data, list) or len(data) != len(cls._fields):
            raise CheckpointError("its ranking is broken")
        values: dict[str, Any] = dict(zip(cls._fields, data, strict=True))
        words = values["words"]
        self = cls(**(values | {"words": None if words is None else tuple(words)}))
        right = (
            isinstance(self.activation, str)
            and self.activation in _ACTIVATIONS
            and isinstance(self.prompt, str)
            and isinstance(self.variables, dict)
        )
        right = right and _is_id(self.max_length) and self.messages in (None, True, False)
        right = right and isinstance(self.truncate_left, bool) and isinstance(self.refused, str)
        if not right or (self.words is not None and (len(self.words) != 2 or not all(map(_is_id, self.words)))):
            raise CheckpointError("its ranking is broken")
        return self


def _is_id(value: object) -> bool:
    """Whether it is None or a whole number that a token id can be."""
    return value is None or (type(value) is int and 0 <= value < 1 << 31)


def activate(activation: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores [..., labels] through an activation, computed in float64; softmax is over the labels."""
    import numpy

    x = scores.astype(numpy.float64)
    if activation == "sigmoid":
        x = 0.5 * (1 + numpy.tanh(0.5 * x))
    elif activation == "softmax":
        x = numpy.exp(x - x.max(axis=-1, keepdims=True))
        x /= x.sum(axis=-1, keepdims=True)
    elif activation == "tanh":
        x = numpy.tanh(x)
    elif activation == "relu":
        x = numpy.maximum(x, 0)
    out: NDArray[Any] = x.astype(numpy.float32)
    return out
