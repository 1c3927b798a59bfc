"""How a sentence-transformers model (6.x and older) makes a vector of a text: modules.json, a folder for each module.

    modules.json                        [{"type": "sentence_transformers.models.Transformer", "path": ""}, ...]
    config_sentence_transformers.json   prompts, similarity, how many dimensions are kept
    1_Pooling/config.json               each module's config, and its weights if it has any

The list of modules (Transformer, Pooling, Dense, Normalize, ...) becomes an Embedding and the weights of its dense
layers. A module that fastllm cannot compute is refused only when vectors are asked for, by its name: the model's
logits and hidden states do not depend on it. https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.files import exists
from fastllm.formats import huggingface
from fastllm.formats._files import tensors_of
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import json_if_any, json_of
from fastllm.heads import Embedding, Layer, prompts_by_name
from fastllm.tensors import Tensor, floats

_FILE = "modules.json"
_POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Older files have flags instead of names. Several vectors are concatenated in this order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_ACTS = {
    "Tanh": "tanh",
    "Identity": "identity",
    "Sigmoid": "sigmoid",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
# Names of the first module's config, in the order in which the library looks for them.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Options for loading the model there, which do not change vectors.
_HARMLESS = {"trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_fast"}
_HARMLESS |= {"device_map", "low_cpu_mem_usage", "use_safetensors", "padding_side", "clean_up_tokenization_spaces"}
_LAST, _TOKENS, _VECTOR = "last_hidden_state", "token_embeddings", "sentence_embedding"
_NORM = ("norm.weight", "norm.bias")
_NOT_SUPPORTED = "which fastllm does not support"
_MOST_MODULES = 16  # all may name one small file, and each then takes the memory of a matrix
_WIDEST = 1 << 12  # channels of a LayerNorm, which becomes a matrix of their square
_LONGEST = 1 << 31  # tokens; a tokenizer without a limit says 10^30


class Found(NamedTuple):
    """layers: the weights of the embedding's steps that have weights, in their order."""

    embedding: Embedding
    layers: tuple[Layer, ...] = ()


class Module(NamedTuple):
    """kind: the name of its class; with its library's, if that is not sentence-transformers."""

    kind: str
    folder: Path


def read_folder(path: Path) -> Checkpoint:
    """The model of a folder whose first module has a folder of its own, as older versions of the library wrote it.

    Raises CheckpointError.
    """
    first = modules(path)[0]
    if first.kind != "Transformer" or not exists(first.folder / "config.json"):
        raise CheckpointError(f"{path} is a sentence-transformers model of the module {first.kind}, {_NOT_SUPPORTED}")
    return huggingface.read_folder(first.folder)


def read(folder: Path) -> Found | None:
    """The embedding that a folder describes; None if it has no modules.json.

    Broken or unsupported files do not raise: the embedding then carries the reason as `refused`.
    """
    if not exists(folder / _FILE):
        return None
    try:
        return _read(folder)
    except CheckpointError as error:
        return Found(Embedding(refused=str(error)))


def _read(folder: Path) -> Found | None:
    about = json_if_any(folder / "config_sentence_transformers.json")
    kind = about.get("model_type") or "SentenceTransformer"
    if kind == "CrossEncoder":  # it scores pairs and makes no vectors; cross_encoder.py reads it
        return None
    if kind != "SentenceTransformer":
        raise CheckpointError(
            f"{folder} is a {_shown(kind)} of sentence-transformers, whose vectors fastllm cannot make"
        )
    first, *others = modules(folder)
    if first.kind != "Transformer":
        raise CheckpointError(f"{folder} begins with the sentence-transformers module {first.kind}, {_NOT_SUPPORTED}")
    if len(others) > _MOST_MODULES:
        raise CheckpointError(f"{folder / _FILE} has {len(others)} modules after the first, more than {_MOST_MODULES}")
    values = _transformer(first.folder) | _settings(folder, about)
    steps: list[str] = []
    layers: list[Layer] = []
    for module in others:
        if module.kind == "Pooling":
            values |= _pooling(module.folder)
            steps.append("pool")
        elif module.kind == "Dense":
            step, layer = _dense(module.folder, pooled="pool" in steps)
            steps.append(step)
            layers.append(layer)
        elif module.kind == "LayerNorm":
            steps += ["standardize", "dense"]
            layers.append(_layer_norm(module.folder))
        elif module.kind == "Normalize":
            if _takes(module, json_if_any(module.folder / "config.json"), pooled="pool" in steps, may_miss=True):
                steps.append("normalize")
        elif module.kind != "Dropout":
            raise CheckpointError(f"{folder} takes the sentence-transformers module {module.kind}, {_NOT_SUPPORTED}")
    if steps.count("pool") != 1:
        raise CheckpointError(f"{folder / _FILE} has {steps.count('pool')} Pooling modules, not one")
    return Found(Embedding(**values, steps=tuple(steps)), tuple(layers))


def modules(folder: Path) -> list[Module]:
    """The modules in modules.json, in its order. Raises CheckpointError."""
    path = folder / _FILE
    listed = json_of(path, list)
    found = []
    for entry in listed:
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not re.fullmatch(r"[\w.]{1,200}", kind) or not isinstance(place, str):
            raise CheckpointError(f"{path} is broken: a module has no type or no path")
        windows = PureWindowsPath(place)
        if windows.anchor or ".." in windows.parts or "\0" in place:
            raise CheckpointError(f"{path} names the place {_shown(place)}, which is not within the folder")
        library, _, name = kind.rpartition(".")
        own = library.split(".")[0] == "sentence_transformers"
        found.append(Module(name if own else kind, folder / place))
    if not found:
        raise CheckpointError(f"{path} is broken: it has no modules")
    return found


def _settings(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Of config_sentence_transformers.json: prompts, how many dimensions of a vector are kept, how two are compared."""
    path = folder / "config_sentence_transformers.json"
    prompts = about.get("prompts") or {}
    default, dimensions = about.get("default_prompt_name") or "", about.get("truncate_dim") or 0
    similarity = about.get("similarity_fn_name") or ""
    if not isinstance(prompts, dict) or not isinstance(default, str) or not isinstance(similarity, str):
        raise CheckpointError(f"{path} has prompts or names that are no texts")
    if type(dimensions) is not int or not 0 <= dimensions < 1 << 31:
        raise CheckpointError(f"{path} has truncate_dim {_shown(dimensions)}")
    return {
        "prompts": prompts_by_name(prompts),
        "default_prompt": default,
        "dimensions": dimensions,
        "similarity": similarity,
    }


def _transformer(folder: Path) -> dict[str, Any]:
    """Of the first module's config: how texts are cut. Checks that it gives the last hidden states and nothing else."""
    config, path = transformer_config(folder)
    task = config.get("transformer_task", "feature-extraction")
    modalities = config.get("modality_config", {"text": {"method": "forward", "method_output_name": _LAST}})
    text = modalities.get("text") if isinstance(modalities, dict) else None
    plain = isinstance(text, dict) and text.get("method") == "forward" and text.get("method_output_name") == _LAST
    if task != "feature-extraction" or not plain or config.get("module_output_name", _TOKENS) != _TOKENS:
        raise CheckpointError(f"{path} takes other outputs of the model than {_LAST} of a plain text, {_NOT_SUPPORTED}")
    if "message" in modalities:
        raise CheckpointError(f"{path} puts texts into a chat template, {_NOT_SUPPORTED}")
    tokenizer = _options(path, config, "tokenizer_args", "processor_kwargs")
    limit = tokenizer.pop("model_max_length", config.get("max_seq_length"))
    for name in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
        tokenizer |= _options(path, config, name)
    if unknown := sorted(tokenizer.keys() - _HARMLESS):
        raise CheckpointError(f"{path} has the option {_shown(unknown[0])}, {_NOT_SUPPORTED}")
    beside = json_if_any(folder / "tokenizer_config.json")
    if limit is None:
        limit = beside.get("model_max_length")
    limit = _processing(path, config).get("max_length", limit)
    if limit is not None and not (type(limit) in (int, float) and limit >= 1):
        raise CheckpointError(f"{path} allows texts of {_shown(limit)} tokens")
    side, lower = beside.get("truncation_side", "right"), config.get("do_lower_case") or False
    if side not in ("left", "right") or not isinstance(lower, bool):
        raise CheckpointError(f"{path} has do_lower_case {_shown(lower)}, or texts cut at the {_shown(side)}")
    return {
        "max_tokens": 0 if limit is None or limit >= _LONGEST else int(limit),
        "truncate_left": side == "left",
        "lower_case": lower,
    }


def transformer_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """The first module's config and its path; an empty one if there is none. Raises CheckpointError."""
    path = next((folder / name for name in _TRANSFORMER_CONFIGS if json_if_any(folder / name)), folder / "none")
    return json_if_any(path), path


def _options(path: Path, config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options in a config under the first of several names that has any."""
    value: object = next((config[name] for name in names if config.get(name)), {})
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} has {names[0]} {_shown(value)}, not options")
    return dict(value)


def _processing(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options for tokenizing texts, in processing_kwargs."""
    options = _options(path, config, "processing_kwargs")
    text = _options(path, options, "text")
    if unknown := sorted((options.keys() - {"text"}) | (text.keys() - {"max_length", "padding"})):
        raise CheckpointError(f"{path} has the option {_shown(unknown[0])} of processing_kwargs, {_NOT_SUPPORTED}")
    return text


def _pooling(folder: Path) -> dict[str, Any]:
    """The kinds of pooling, by the names in pooling_mode or the flags of older files; without either, the mean."""
    path = folder / "config.json"
    config = json_of(path, dict)
    names = config.get("pooling_mode")
    if names is None:
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag)) or ("mean",)
    else:
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in _POOLINGS for n in names):
            raise CheckpointError(f"{path} has the pooling {_shown(names)}, {_NOT_SUPPORTED}")
        modes = tuple(_POOLINGS[name] for name in names)
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        raise CheckpointError(f"{path} has include_prompt {_shown(include)}")
    return {"pooling": modes, "include_prompt": include}


def _dense(folder: Path, *, pooled: bool) -> tuple[str, Layer]:
    """The step and the layer of a Dense module."""
    path = folder / "config.json"
    config = json_if_any(path)
    _takes(Module("Dense", folder), config, pooled=pooled)
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    act = _ACTS.get(name.rpartition(".")[2]) if isinstance(name, str) and name.startswith("torch.nn.") else None
    if act is None:
        raise CheckpointError(f"{path} has the activation function {_shown(name)}, {_NOT_SUPPORTED}")
    tensors = _weights(folder)
    biased, residual = config.get("bias", True), config.get("use_residual", False)
    names = {"linear.weight", "linear.bias"} if biased else {"linear.weight"}
    shape = (config.get("out_features"), config.get("in_features"))
    if residual and shape[0] != shape[1]:
        raise CheckpointError(f"{path} adds its input through a matrix (use_residual), {_NOT_SUPPORTED}")
    if tensors.keys() != names or tensors["linear.weight"].shape != shape:
        raise CheckpointError(f"{folder} has not just {' and '.join(sorted(names))} of {shape[0]} x {shape[1]} values")
    bias = floats(tensors["linear.bias"]).tobytes() if biased else None
    return "residual" if residual else "dense", Layer(tensors["linear.weight"], bias, act)


def _layer_norm(folder: Path) -> Layer:
    """The scales and biases of a LayerNorm module, as a dense layer with a diagonal matrix.

    The step before it, "standardize", gives rows the mean 0 and the variance 1.
    """
    import numpy

    tensors = _weights(folder)
    scale, bias = (floats(tensors[name]).reshape(-1) if name in tensors else None for name in _NORM)
    if scale is None or bias is None or len(scale) != len(bias) or tensors.keys() != set(_NORM) or len(scale) > _WIDEST:
        raise CheckpointError(f"{folder} has not {' and '.join(_NORM)} of one length")
    n = len(scale)

    def rows(begin: int, end: int) -> Any:
        out = numpy.zeros((end - begin, n), numpy.float32)
        out[numpy.arange(end - begin), numpy.arange(begin, end)] = scale[begin:end]
        return out

    return Layer(Tensor("f32", (n, n), rows), bias.tobytes())


def _takes(module: Module, config: Mapping[str, Any], *, pooled: bool, may_miss: bool = False) -> bool:
    """Whether a module reads the output of the one before it, and writes its own under the same name.

    pooled: whether that output is one vector, rather than a vector for each token. may_miss: False instead of an error
    if the module reads the other of the two: the library then lets it do nothing. Raises CheckpointError.
    """
    now = _VECTOR if pooled else _TOKENS
    takes = config.get("module_input_name", _VECTOR)
    gives = config.get("module_output_name") or takes
    if takes == gives == now:
        return True
    if may_miss and takes == gives and takes in (_VECTOR, _TOKENS):
        return False
    raise CheckpointError(
        f"{module.folder} makes {_shown(gives)} of {_shown(takes)} where there is {now!r}, {_NOT_SUPPORTED}"[:300]
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if exists(folder / name):
            return tensors_of(folder / name)
    raise CheckpointError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin")


def _shown(value: object) -> str:
    return repr(value)[:100]
