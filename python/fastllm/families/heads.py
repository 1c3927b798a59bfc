"""Heads that label texts or tokens, as the transformers library names them, and what sentence-transformers adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastllm.dense import Layer
from fastllm.families import Recipe, Source
from fastllm.heads import Classifier, Ranking
from fastllm.tensors import floats

# What an architecture's name ends with -> what its head is for.
TASKS = {"ForSequenceClassification": "classify", "ForTokenClassification": "token_classify"}
_LABELS = 1 << 20  # more than any classifier has
_ACTIVATIONS = {"Identity": "identity", "ReLU": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_NO_LIMIT = 1 << 31  # transformers writes 10^30 for a length without limit


def with_head(source: Source, recipe: Recipe) -> Recipe:
    """A recipe with the classifier of its checkpoint, if it is one, and with what ranks documents."""
    recipe = recipe._replace(ranking=_ranking(source))
    if not source.task:
        return recipe
    layers, pooling = _layers(source)
    if layers[0].weight.width != recipe.config.dim:
        raise source.error(
            f"has a classifier of {layers[0].weight.width} columns, which does not fit a width of {recipe.config.dim}"
        )
    labels = _labels(source, layers[-1].weight.rows)
    pad = source.section("text_config").get("pad_token_id", source.get("pad_token_id"))
    classifier = Classifier(
        pooling, labels, _activation(source, len(labels)), pad if type(pad) is int and 0 <= pad < 1 << 31 else None
    )
    return recipe._replace(classifier=classifier, dense={**recipe.dense, "classifier": layers})


def _layers(source: Source) -> tuple[list[Layer], str]:
    """The dense layers of a head, and the pooling before them."""
    tensors = source.tensors
    if source.task == "token_classify":
        return [_layer(source, "score" if "score.weight" in tensors else "classifier")], "each"
    if "score.weight" in tensors:  # decoders
        return [_layer(source, "score")], "last"
    if "classifier.out_proj.weight" in tensors:  # RoBERTa, ESM
        return [_layer(source, "classifier.dense", "tanh"), _layer(source, "classifier.out_proj")], "cls"
    return [_layer(source, "bert.pooler.dense", "tanh"), _layer(source, "classifier")], "cls"


def _layer(source: Source, name: str, act: str = "identity") -> Layer:
    bias = source.tensors.get(f"{name}.bias")
    return Layer(source.tensor(f"{name}.weight"), None if bias is None else floats(bias).tobytes(), act)


def _labels(source: Source, rows: int) -> tuple[str, ...]:
    """The names of the labels, one for each row of the last layer."""
    if not 1 <= rows <= _LABELS:
        raise source.error(f"has a classifier of {rows:,} labels")
    names = source.get("id2label")
    if names is None:
        count = source.integer("num_labels", rows)
        names = {str(i): f"LABEL_{i}" for i in range(min(count, rows + 1))}
    if not isinstance(names, Mapping):
        raise source.error(f"has an id2label that is no JSON object: {str(names)[:100]!r}")
    if len(names) != rows:
        raise source.error(f"has {source.get('num_labels', len(names))} labels in its config, its classifier {rows}")
    labels = tuple(names.get(str(i)) for i in range(rows))
    if not all(isinstance(label, (str, int, float)) for label in labels):
        raise source.error(f"has not a label for each of 0 to {rows - 1} in its id2label")
    return tuple(map(str, labels))


def _activation(source: Source, labels: int) -> str:
    """What makes probabilities of scores, as transformers' pipelines choose it."""
    if source.task == "token_classify":
        return "softmax"
    known = ("regression", "multi_label_classification", "single_label_classification")
    source.refuse("problem_type", *known)
    kind = source.get("problem_type")
    if kind == "regression":
        return "identity"
    return "sigmoid" if kind == "multi_label_classification" or labels == 1 else "softmax"


# ---- sentence-transformers


def _ranking(source: Source) -> Ranking:
    """How a CrossEncoder of the checkpoint scores pairs; the defaults where its files say nothing."""
    beside, old = source.section("config_sentence_transformers"), source.section("sentence_transformers")
    text, words = source.section("sentence_bert_config"), None
    modules = source.get("modules", [])
    for module in modules if beside.get("model_type") == "CrossEncoder" else ():
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "LogitScore":
            words = _words(source, module.get("config"))
        elif kind != "Transformer":
            raise source.error(f"is a CrossEncoder with a module {kind}, which fastllm does not support")
    named = (
        beside.get("activation_fn") or old.get("activation_fn") or source.get("sbert_ce_default_activation_function")
    )
    variables = dict(text.section("processing_kwargs").section("chat_template").header)
    variables.pop("restore_suffix", None)
    # Files without a modality_config are of a version that knew no messages.
    messages = "message" in text.section("modality_config").header if modules and text.header else None
    return Ranking(
        "sigmoid" if named is None else _torch_name(source, named),
        _max_length(source, text),
        _prompt(beside),
        messages,
        variables,
        words,
    )


def _torch_name(source: Source, named: object) -> str:
    """The activation function behind a name such as torch.nn.modules.activation.Sigmoid."""
    name = named.rpartition(".")[2] if isinstance(named, str) and named.startswith("torch.") else ""
    if name not in _ACTIVATIONS:
        raise source.error(f"scores with the function {named!r}; known are torch's {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _max_length(source: Source, text: Source) -> int | None:
    """Tokens that a text may have by the tokenizer's files or sentence-transformers'; None where neither says."""
    longest = text.get("max_seq_length", source.section("tokenizer_config").get("model_max_length"))
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or longest >= _NO_LIMIT:
        return None
    if longest < 1:
        raise source.error(f"cuts texts to {longest} tokens")
    return int(longest)


def _prompt(beside: Source) -> str:
    """The prompt that is used where none is asked for."""
    name = beside.get("default_prompt_name")
    return "" if name is None else beside.section("prompts").text(str(name))


def _words(source: Source, config: Any) -> tuple[int, int | None]:
    """The tokens whose logits are a judge's answer."""
    values = config if isinstance(config, Mapping) else {}
    true: Any = values.get("true_token_id")
    false: Any = values.get("false_token_id")
    for token in (true, 0 if false is None else false):
        if type(token) is not int or not 0 <= token < 1 << 31:
            raise source.error(f"has the token {token!r} in its LogitScore")
    return int(true), None if false is None else int(false)
