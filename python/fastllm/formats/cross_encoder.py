"""How a CrossEncoder of sentence-transformers (6.x and older) scores a document for a query.

The settings are in config.json and tokenizer_config.json, and in files of newer versions also in
config_sentence_transformers.json and the modules' configs (see sentence_transformers.py).
https://sbert.net/docs/cross_encoder/usage/usage.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError
from fastllm.files import exists
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import json_if_any
from fastllm.formats.sentence_transformers import Module, modules, transformer_config
from fastllm.heads import Ranking

_ACTIVATIONS = {"Identity": "identity", "ReLU": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_NO_LIMIT = 1 << 31  # tokens; a tokenizer without a limit says 10^30


def read(folder: Path, checkpoint: Checkpoint) -> Ranking:
    """The scoring that a folder's files and a checkpoint's config describe; the defaults if they say nothing.

    Broken or unsupported files do not raise: the ranking then carries the reason as `refused`.
    """
    try:
        return Ranking(**_read(folder, checkpoint.header))
    except CheckpointError as error:
        return Ranking(refused=str(error))


def _read(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    beside = config.get("tokenizer_config")
    tokenizer = beside if isinstance(beside, dict) else {}
    older = config.get("sentence_transformers")
    named = (older if isinstance(older, dict) else {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function")
    limit, values = tokenizer.get("model_max_length"), dict[str, Any]()
    about = json_if_any(folder / "config_sentence_transformers.json")
    if exists(folder / "modules.json") and about.get("model_type") == "CrossEncoder":
        named = about.get("activation_fn") or named
        first, *others = modules(folder)
        found, path = transformer_config(first.folder)
        values = _transformer(found, path) | _settings(folder, about) | _words(folder, first, others)
        limit = values.pop("limit") or limit
    values["truncate_left"] = tokenizer.get("truncation_side") == "left"
    if named is not None:
        values["activation"] = _activation(folder, named)
    if limit is not None and not (type(limit) in (int, float) and limit >= 1):
        raise CheckpointError(f"{folder} cuts texts to {str(limit)[:100]} tokens")
    return values | {"max_length": None if limit is None or limit >= _NO_LIMIT else int(limit)}


def _settings(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Of config_sentence_transformers.json: the default prompt."""
    name, prompts = about.get("default_prompt_name"), about.get("prompts") or {}
    prompt = "" if not name else prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise CheckpointError(f"{folder} has no prompt {str(name)[:100]!r}, which is to be the default")
    return {"prompt": prompt}


def _transformer(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Of the first module's config: the limit of tokens, and whether texts go through the chat template."""
    options = config.get("processing_kwargs") or {}
    text = (options.get("text") or {}) if isinstance(options, dict) else None
    chat = (options.get("chat_template") or {}) if isinstance(options, dict) else None
    if not isinstance(text, dict) or not isinstance(chat, dict) or not options.keys() <= {"text", "chat_template"}:
        raise CheckpointError(f"{path} has processing_kwargs that fastllm does not support")
    if unknown := sorted(text.keys() - {"max_length", "padding", "logits_to_keep"}):
        raise CheckpointError(
            f"{path} has the option {unknown[0]!r} of processing_kwargs, which fastllm does not support"
        )
    if config.get("do_lower_case"):
        raise CheckpointError(f"{path} makes texts lower case, which fastllm does not support")
    modalities = config.get("modality_config") or {}  # versions that do not write one have no messages
    return {
        "limit": text.get("max_length") or config.get("max_seq_length"),
        "messages": "message" in modalities,
        "variables": {name: value for name, value in chat.items() if name != "restore_suffix"},
    }


def _words(folder: Path, first: Module, others: list[Module]) -> dict[str, Any]:
    """Of a LogitScore module: the tokens for yes and no, whose logits make the score; None for no if it is not used."""
    if first.kind != "Transformer" or [module.kind for module in others] not in ([], ["LogitScore"]):
        kinds = ", ".join(module.kind for module in (first, *others))
        raise CheckpointError(f"{folder} is a CrossEncoder of the modules {kinds}, which fastllm does not support")
    if not others:
        return {}
    config = json_if_any(others[0].folder / "config.json")
    words = config.get("true_token_id"), config.get("false_token_id")
    for token, needed in zip(words, (True, False), strict=True):
        if not (token is None and not needed) and not (type(token) is int and 0 <= token < 1 << 31):
            raise CheckpointError(f"{others[0].folder} has the token {str(token)[:100]} to answer with")
    return {"words": words}


def _activation(folder: Path, named: object) -> str:
    """fastllm's name of an activation function such as torch.nn.modules.activation.Sigmoid. Raises CheckpointError."""
    name = named.rpartition(".")[2] if isinstance(named, str) and named.startswith("torch.nn.") else ""
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"{folder} scores with the function {str(named)[:100]!r}; known are torch's {known}")
    return _ACTIVATIONS[name]
