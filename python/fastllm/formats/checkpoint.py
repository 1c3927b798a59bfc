"""What opening a file or a folder gives: its tensors by name, and what it says about the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastllm.tensors import Tensor


class Checkpoint(NamedTuple):
    """The contents of a checkpoint, as its files have them.

    path: the file or folder. format: the format's name, shown to users. architecture: the key under which families/
    registers a family: the name that the checkpoint gives (Hugging Face's "architectures", GGUF's
    "gguf:<general.architecture>"), or the format's own where the format holds one family only ("meta.llama", "grok-1",
    "mindformers.llama"); empty where nothing names one. header: the config, with the source's own keys and values.
    tensors: by their names in the checkpoint; each is read when it is asked for. tokenizer: its kind and bytes, as
    fastllm.tokenizer.from_blob takes them, where the checkpoint itself contains a tokenizer.
    """

    path: Path
    format: str
    architecture: str
    header: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    tokenizer: tuple[str, bytes] | None = None
