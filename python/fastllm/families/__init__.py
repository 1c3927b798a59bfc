"""Names and config of a checkpoint to the canonical ones: one file a family. They know no file format."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import NamedTuple

from fastllm.config import Config
from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint, Tensor


class Weight(NamedTuple):
    """A matrix of the checkpoint under its canonical name. Row r of the model is row rows[r] of the tensor."""

    tensor: Tensor
    rows: array[int] | None = None


class Recipe(NamedTuple):
    """How a checkpoint becomes a model.

    matrices, vectors: by canonical name (Config.matrices, Config.vectors); "head" is missing where it is tied.
    bos: the token a text starts with, if any; stop: tokens that end a text; chat_stop: that end a turn of a chat.
    """

    config: Config
    matrices: Mapping[str, Weight]
    vectors: Mapping[str, memoryview | bytes]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of the checkpoint's family. Raises CheckpointError for a family that is not known."""
    from fastllm.families import llama

    families = {"llama": llama.recipe}
    if checkpoint.architecture not in families:
        raise CheckpointError(
            f"{checkpoint.path} is of the family {checkpoint.architecture!r}; known are {', '.join(families)}"
        )
    return families[checkpoint.architecture](checkpoint)
