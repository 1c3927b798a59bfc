"""Heads that label texts or tokens, as the transformers library names them.

They go with any family: transformers' ForSequenceClassification and ForTokenClassification classes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from fastllm.families.source import Recipe, Source
from fastllm.heads import Classifier, Layer
from fastllm.tensors import floats

_TOKENS = "token classification"
_HEADS = ("score", "classifier", "classifier.dense", "classifier.out_proj")
# The layers of each kind of head that labels texts; modules of heads that make logits.
_TEXT_HEADS = (("score",), ("classifier.dense", "classifier.out_proj"), ("bert.pooler.dense", "classifier"))
_WORD_HEADS = ("lm_head", "embed_out", "lm_head.dense", "cls.predictions.transform.dense", "output")
_MOST_LABELS = 1 << 20
_PROBLEMS = ("regression", "multi_label_classification", "single_label_classification")


def task_by_tensors(names: Container[str]) -> str:
    """The task of a checkpoint without a class: to label texts, if it has the tensors of such a head and of no other.

    A head that labels tokens has the same names as one that labels texts; both are taken to label texts, as they are by
    sentence-transformers' CrossEncoder.
    """
    whole = any(all(f"{name}.weight" in names for name in head) for head in _TEXT_HEADS)
    words = any(f"{name}.weight" in names for name in _WORD_HEADS)
    return "sequence classification" if whole and not words else ""


def with_classifier(source: Source, recipe: Recipe) -> Recipe:
    """The recipe with its checkpoint's classifier in place of the head that makes logits.

    A checkpoint without a classifier, whatever its class says, is left as it is: it can still make vectors.
    """
    if not any(f"{name}.weight" in source.tensors for name in _HEADS):
        return recipe
    dim, layers, pooling = recipe.config.dim, *_layers(source)
    if layers[0].weight.width != dim:
        raise source.error(f"has a classifier of {layers[0].weight.width} columns, which does not fit a width of {dim}")
    labels = _labels(source, layers[-1].weight.rows)
    pad = source.section("text_config").get("pad_token_id", source.get("pad_token_id"))
    pad = pad if type(pad) is int and 0 <= pad < 1 << 31 else None
    return recipe._replace(
        config=recipe.config._replace(head=False),
        matrices={name: m for name, m in recipe.matrices.items() if not name.startswith("head")},
        vectors={name: v for name, v in recipe.vectors.items() if not name.startswith("head")},
        dense={**recipe.dense, "classifier": layers},
        classifier=Classifier(pooling, labels, _activation(source, len(labels)), pad),
    )


def _layers(source: Source) -> tuple[list[Layer], str]:
    """The dense layers of the classifier, and its pooling, as Classifier has it."""
    if source.task == _TOKENS:
        return [_layer(source, "score" if "score.weight" in source.tensors else "classifier")], "each"
    if "score.weight" in source.tensors:  # decoders
        return [_layer(source, "score", bias=False)], "last"
    if "classifier.out_proj.weight" in source.tensors:  # RoBERTa, ESM
        return [_layer(source, "classifier.dense", "tanh"), _layer(source, "classifier.out_proj")], "cls"
    return [_layer(source, "bert.pooler.dense", "tanh"), _layer(source, "classifier")], "cls"


def _layer(source: Source, name: str, act: str = "identity", *, bias: bool = True) -> Layer:
    """The dense layer of a module. bias: whether the architecture has one, whatever the file has."""
    weight = source.tensor(f"{name}.weight")
    return Layer(weight, floats(source.tensor(f"{name}.bias")).tobytes() if bias else None, act)


def _labels(source: Source, rows: int) -> tuple[str, ...]:
    """The names of the labels, by id2label or LABEL_i, one for each of `rows` rows of the last layer."""
    if not 1 <= rows <= _MOST_LABELS:
        raise source.error(f"has a classifier of {rows:,} labels")
    names = source.get("id2label")
    if names is None:
        if source.integer("num_labels", rows) != rows:
            raise source.error(f"has num_labels {source.get('num_labels')}, its classifier {rows} labels")
        return tuple(f"LABEL_{i}" for i in range(rows))
    if not isinstance(names, Mapping):
        raise source.error(f"has an id2label that is no JSON object: {str(names)[:100]!r}")
    if len(names) != rows:
        raise source.error(f"has {len(names)} labels in its id2label, its classifier {rows}")
    labels = [names.get(str(i)) for i in range(rows)]
    if not all(isinstance(label, (str, int, float)) for label in labels):
        raise source.error(f"has not a label for each of 0 to {rows - 1} in its id2label")
    return tuple(map(str, labels))


def _activation(source: Source, labels: int) -> str:
    """What turns scores into probabilities, as in transformers' pipelines. labels: how many there are."""
    if source.task == _TOKENS:
        return "softmax"
    source.refuse("problem_type", *_PROBLEMS)
    problem = source.get("problem_type")
    if problem == "regression":
        return "identity"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"
