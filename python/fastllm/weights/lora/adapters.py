"""Adapters that a user names, and adapters where a model was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.files import exists
from fastllm.formats import Checkpoint, peft
from fastllm.weights.lora._merge import Merge

_PEFT_ONLY = "fastllm applies adapters of the PEFT library (adapter_config.json and its weights) to their model"


def check_is_model(path: Path, *, with_adapters: bool = False) -> None:
    """Raises CheckpointError where `path` is an adapter, or a folder of a model with an adapter beside it.

    with_adapters: whether the user named adapters as well; one beside the model is then no oversight.
    """
    folder = peft.folder_of(path)
    if folder is None:
        return
    only = path != folder or peft.holds_only_adapter(folder)
    if not only and (with_adapters or not peft.holds_adapter(folder)):
        return
    base = _base_of(folder)
    of_base = f"an adapter of {base}" if base else "an adapter"
    if not only:
        raise CheckpointError(
            f"{path} holds a model and {of_base}: name the file of the model's weights, or add --lora {folder}"
        )
    raise CheckpointError(
        f"{path} is not a model but {of_base}: name {base or 'the model it was made for'} and add --lora {folder}"
    )


def check_has_no_factors(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a checkpoint that holds the factors of an adapter among its tensors."""
    if checkpoint.header.get("general.type") == "adapter":
        raise CheckpointError(f"{checkpoint.path} is not a model but an adapter in a GGUF file: {_PEFT_ONLY}")
    for name in checkpoint.tensors:
        if ".lora_" in name:
            raise CheckpointError(
                f"{checkpoint.path} holds the factors of an adapter, such as {name}, apart from its weights: merge "
                "them with the program that made it, or save them as a PEFT adapter and name that with --lora"
            )


def merged(checkpoint: Checkpoint, adapters: Sequence[Path]) -> Checkpoint:
    """The checkpoint with adapters added, one after the other.

    Raises CheckpointError for an adapter that is broken, is not LoRA, or was made for another model.
    """
    for path in adapters:
        if checkpoint.architecture.startswith("gguf:"):
            raise CheckpointError(
                f"{path} cannot be applied to {checkpoint.path}: a GGUF file has its own names and order of rows; "
                "apply it to the Hugging Face checkpoint that was made into it"
            )
        checkpoint = Merge(checkpoint, _open(path)).result()
    return checkpoint


def _open(path: Path) -> Checkpoint:
    """The adapter at a path. Raises CheckpointError if there is none."""
    folder = peft.folder_of(path)
    if folder is None:
        if not exists(path):
            raise CheckpointError(f"{path} does not exist")
        raise CheckpointError(f"{path} is not an adapter that fastllm can apply: {_PEFT_ONLY}")
    return peft.read_folder(folder)


def _base_of(folder: Path) -> str | None:
    """The name of the model that an adapter was made for, by its config; None where that does not say."""
    from fastllm.formats.configs import json_of

    try:
        name = json_of(folder / peft.CONFIG, dict).get("base_model_name_or_path")
    except CheckpointError:
        return None
    return name if isinstance(name, str) and name else None
