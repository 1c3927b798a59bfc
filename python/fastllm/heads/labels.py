"""What a classifier's rows mean, and how a query and a document become a score: data that converted files keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POOLINGS = ("cls", "last", "each")
ACTIVATIONS = ("identity", "relu", "sigmoid", "softmax", "tanh")


class Classifier(NamedTuple):
    """The head of a model that labels texts, or their tokens: a chain of dense layers, a row of scores for each.

    pooling: what of the last hidden states goes in: that of the first token ("cls"), that of the last ("last"), or each
    ("each"), for a row a token. labels: one for each score. activation: makes probabilities of scores. pad: the token
    that is never the last.
    """

    pooling: str
    labels: tuple[str, ...]
    activation: str
    pad: int | None = None

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [..., labels] as probabilities of the same shape; of a regression, the scores themselves."""
        return activate(self.activation, scores)

    @classmethod
    def from_json(cls, data: object) -> Classifier:
        """From the list that json makes of it. Raises CheckpointError for anything else."""
        if not isinstance(data, list) or len(data) != len(cls._fields) or not isinstance(data[1], list):
            raise CheckpointError("its classifier is broken")
        self = cls(data[0], tuple(data[1]), *data[2:])
        texts = all(isinstance(label, str) for label in self.labels) and isinstance(self.pooling, str)
        if not texts or self.pooling not in POOLINGS or self.activation not in ACTIVATIONS or not _is_id(self.pad):
            raise CheckpointError("its classifier is broken")
        return self


class Ranking(NamedTuple):
    """What sentence-transformers' CrossEncoder keeps beside a model that scores a query and a document.

    activation: of the one label's score. max_length: tokens that a text, or a pair, is cut to;
    truncate_left: what is too long loses its beginning. prompt: goes before the
    query; in a chat template it is what the system says. messages: whether query and document go through the chat
    template, as messages of these roles; None where the files do not say. variables: what the template is given.
    words: the tokens of a judge, a model whose logits are the answer: for a document that fits, and for one that does
    not, where there is one. refused: why there are no scores as the files say; "" where there are.
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
        """From the list that json makes of it. Raises CheckpointError for anything else."""
        if not isinstance(data, list) or len(data) != len(cls._fields):
            raise CheckpointError("its ranking is broken")
        values: dict[str, Any] = dict(zip(cls._fields, data, strict=True))
        words = values["words"]
        self = cls(**(values | {"words": None if words is None else tuple(words)}))
        right = (
            isinstance(self.activation, str)
            and self.activation in ACTIVATIONS
            and isinstance(self.prompt, str)
            and isinstance(self.variables, dict)
        )
        right = right and _is_id(self.max_length) and self.messages in (None, True, False)
        right = right and isinstance(self.truncate_left, bool) and isinstance(self.refused, str)
        if not right or (self.words is not None and (len(self.words) != 2 or not all(map(_is_id, self.words)))):
            raise CheckpointError("its ranking is broken")
        return self


def _is_id(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 31)


def activate(activation: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores [..., labels] through an activation, computed in float64; softmax over the labels."""
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
