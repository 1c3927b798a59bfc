"""A folder as Hugging Face's transformers saves it: config.json and the weights, in one file or in several.

Several files have an index, a JSON object whose weight_map gives for each tensor the name of the file that holds it.
https://huggingface.co/docs/transformers/models
"""

from __future__ import annotations

from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.files import exists, matching, unfinished
from fastllm.formats._files import is_torch_file, tensors_of
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import config, json_of, with_config

# In the order transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
)
# Names that files of torch.save have, and beginnings of the names of those that training saves beside the weights.
_TORCH = ("*.pt", "*.pth", "*.bin")
_NO_WEIGHTS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state", "random_states", "tokenizer")


def read_folder(path: Path) -> Checkpoint:
    """Opens the weights of a folder. Raises CheckpointError for a missing or broken file."""
    name = _weights_or_index(path)
    kind = f"Hugging Face {'safetensors' if '.safetensors' in name else name.partition('.index')[0]}"
    if not name.endswith(".json"):
        tensors = tensors_of(path / name)
        return with_config(path, kind, config(path), tensors)
    places = _index(path / name)
    files = list(dict.fromkeys(places.values()))
    shards = {file: tensors_of(path / file) for file in files}
    for tensor, file in places.items():
        if tensor not in shards[file]:
            raise CheckpointError(f"{path / file} has not the tensor {tensor!r} that {name} says it holds")
    tensors = {tensor: shards[file][tensor] for tensor, file in places.items()}
    return with_config(path, f"{kind}, {len(files)} files", config(path), tensors)


def _weights_or_index(folder: Path) -> str:
    """The name of the folder's only file of weights, or of the index of several. Raises CheckpointError."""
    for name in _WEIGHTS:
        if exists(folder / name):
            return name
    files = other_weights(folder)
    if len(files) == 1:
        return files[0].name
    found = f"{len(files)} {files[0].suffix} files and no index" if files else f"none of {', '.join(_WEIGHTS)}"
    part = next(filter(None, (unfinished(folder / name) for name in _WEIGHTS)), None)
    found += f", only {part.name}: its download has not ended" if part else ""
    raise CheckpointError(f"{folder} has no weights that fastllm can find: {found}")


def other_weights(folder: Path) -> list[Path]:
    """A folder's files of weights, by their suffixes: .safetensors, or if there are none, those of torch.save."""
    files = matching(folder, "*.safetensors")
    if not files:
        files = [file for kind in _TORCH for file in matching(folder, kind) if not file.name.startswith(_NO_WEIGHTS)]
        files = sorted([*files, *filter(is_torch_file, matching(folder, "*.ckpt"))])
    return files


def _index(path: Path) -> dict[str, str]:
    """A tensor's name -> the name of the file in the folder that holds it. Raises CheckpointError."""
    places = json_of(path, dict).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} is broken: it has no weight_map")
    for file in places.values():
        plain = isinstance(file, str) and file not in ("", ".", "..") and not any(c in file for c in "/\\\0")
        if not plain:
            raise CheckpointError(f"{path} is broken: {file!r} is not the name of a file in the folder")
    return places
