"""Finds a checkpoint's family and applies it."""

from __future__ import annotations

from fastllm.errors import CheckpointError
from fastllm.families.architectures import family, nearest, split
from fastllm.families.source import Recipe, Source
from fastllm.formats import Checkpoint


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe that a checkpoint's family makes, with its classifier if it is a model that labels texts or tokens.

    Raises CheckpointError for a family that is not known, and for a config or tensors that are not the family's.
    """
    name, task = split(checkpoint.architecture, checkpoint.header.get("model_type"))
    if not name:
        from fastllm.families import _multimodal, mingpt

        if (text := _multimodal.language_model(checkpoint)) is not None:
            checkpoint, name = text, text.architecture
        elif mingpt.matches(checkpoint.tensors):
            name = "minGPT"  # its files do not name their architecture
        else:
            raise _unknown(checkpoint)
    source = Source(checkpoint, task)
    if not task:
        from fastllm.families._classifiers import task_by_tensors

        source.task = task_by_tensors(source.tensors)
    found = family(name)(source)
    if "classification" in source.task:
        from fastllm.families._classifiers import with_classifier

        found = with_classifier(source, found)
    return found._replace(unused=source.tensors.unused())


def _unknown(checkpoint: Checkpoint) -> CheckpointError:
    """The error for a family that is not known, with the names that are most like it."""
    path, name = checkpoint.path, checkpoint.architecture[:100]
    if not name:
        nor = (
            "and its config names no model_type" if checkpoint.header else "and has no config.json beside it that does"
        )
        return CheckpointError(f"{path} does not say what family it is of, {nor}")
    like = nearest(name)
    hint = f"the nearest are {', '.join(like)}; " if like else ""
    return CheckpointError(f"{path} is of the family {name!r}, which is not known: {hint}fastllm info lists all")
