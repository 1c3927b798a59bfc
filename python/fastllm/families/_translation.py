"""Checkpoints whose names and config are translated to Hugging Face's, and then read as those."""

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
    """The recipe of `source` as the family of `architecture`, a class of the transformers library, reads it.

    header, tensors: under Hugging Face's names. origins: the file's own name for each of these tensors; what the family
    uses of them counts as used in `source`.
    """
    name, task = split(architecture)
    target = Source(Checkpoint(source.path, "", architecture, header, tensors), task)
    found = family(name)(target)
    unused = target.tensors.unused()
    source.tensors.mark(*(theirs for ours, theirs in origins.items() if ours not in unused))
    return found
