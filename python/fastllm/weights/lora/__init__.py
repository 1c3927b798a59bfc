"""LoRA (Hu et al., 2021): an adapter, as the PEFT library saves it, added to the weights of the model it was made for.

A matrix W becomes W + scale * B A; both factors are thin, and the sum is computed for the rows that are read. Tensors
are matched by the checkpoint's own names, before a family reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint, peft
from fastllm.weights.lora.merge import Merge

_PEFT_ONLY = "fastllm applies adapters of the PEFT library (adapter_config.json and its weights) to their model"


def check_is_model(path: Path, *, with_adapters: bool = False) -> None:
    """Raises CheckpointError for an adapter that is named instead of its model, or would be overlooked beside one.

    with_adapters: whether adapters are named too, so that one beside the model is not overlooked.
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
    """Raises CheckpointError for a checkpoint with unmerged factors among its tensors."""
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

    Raises CheckpointError for an adapter that is broken, of another kind than LoRA, or of another model.
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
    folder = peft.folder_of(path)
    if folder is None:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
        raise CheckpointError(f"{path} is not an adapter that fastllm can apply: {_PEFT_ONLY}")
    return peft.read_folder(folder)


def _base_of(folder: Path) -> str | None:
    """What an adapter's config says it was made for."""
    from fastllm.formats.configs import json_of

    try:
        name = json_of(folder / peft.CONFIG, dict).get("base_model_name_or_path")
    except CheckpointError:
        return None
    return name if isinstance(name, str) and name else None
