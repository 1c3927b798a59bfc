"""From a checkpoint's own config and tensor names to the canonical ones: a file a family, none of which knows a format.

`recipe` chooses the family by the name that the checkpoint gives itself (architectures.py) and returns what it makes of
the checkpoint. CONTRIBUTING.md, "Adding a family", walks through one.
"""

from fastllm.families._choose import recipe
from fastllm.families.source import Recipe, Source, Weight, half_split

__all__ = ["Recipe", "Source", "Weight", "half_split", "recipe"]
