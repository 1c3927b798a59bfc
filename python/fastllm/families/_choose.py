"""From a checkpoint to the recipe of its family."""

from __future__ import annotations

from fastllm.errors import CheckpointError
from fastllm.families.architectures import family, nearest, split
from fastllm.families.source import Recipe, Source
from fastllm.formats import Checkpoint


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of the checkpoint's family, with the classifier that is in the file where its task is to classify.

    Raises CheckpointError for a family that is not known, and for what the family finds wrong.
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
    path, name = checkpoint.path, checkpoint.architecture[:100]
    if not name:
        nor = (
            "and its config names no model_type" if checkpoint.header else "and has no config.json beside it that does"
        )
        return CheckpointError(f"{path} does not say what family it is of, {nor}")
    like = nearest(name)
    hint = f"the nearest are {', '.join(like)}; " if like else ""
    return CheckpointError(f"{path} is of the family {name!r}, which is not known: {hint}fastllm info lists all")
