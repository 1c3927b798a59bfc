"""Files that tests read: small ones in tests/data, published ones where a machine has them."""

from pathlib import Path

import pytest

import fastllm

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"

# What others published, and what is too large, lies beside the repository, on machines that have it.
SHARED = ROOT.parent / "shared" / "fixtures"
STORIES = SHARED / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not here")


def checkpoints(*names):
    """Folders of golden checkpoints as parameters of a test, which needs them to be here."""
    folders = {name: DATA / name if (DATA / name).exists() else SHARED / name for name in names}
    return [
        pytest.param(folder, id=name, marks=pytest.mark.skipif(not folder.exists(), reason=f"{name} is not here"))
        for name, folder in folders.items()
    ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


BUILT_IN = Path(fastllm.__file__).parent / "demo" / "stories.safetensors"
