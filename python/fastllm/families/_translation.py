"""For checkpoints that are read by translating their config and tensor names to those of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping

from fastllm.families.architectures import family, split
from fastllm.families.source import Recipe, Source
from fastllm.formats import Checkpoint
from fastllm.tensors import Tensor


def translated(
    source: Source,
    architecture: str,
    header: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    origins: Mapping[str, str],
) -> Recipe:
    """The recipe that the family of `architecture`, a class of the transformers library, makes of a translation.

    header, tensors: `source` in the names of that library. origins: the translated name of each tensor -> its name in
    the file. The tensors that the family uses are marked as used in `source`.
    """
    name, task = split(architecture)
    target = Source(Checkpoint(source.path, "", architecture, header, tensors), task)
    found = family(name)(target)
    unused = target.tensors.unused()
    source.tensors.mark(*(theirs for ours, theirs in origins.items() if ours not in unused))
    return found
