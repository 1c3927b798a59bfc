"""Files that tests read: small ones lie in tests/data, large and published ones only on some machines."""

from pathlib import Path

import pytest

import fastllm

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
BUILT_IN = Path(fastllm.__file__).parent / "demo" / "stories.safetensors"

# Checkpoints that others published, or that are too large for the repository. Tests of them are skipped elsewhere.
SHARED = ROOT.parent / "shared" / "fixtures"
STORIES = SHARED / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not here")


def checkpoints(*names):
    """Folders of golden checkpoints as parameters of a test, which is skipped for those that this machine lacks."""
    folders = {name: DATA / name if (DATA / name).exists() else SHARED / name for name in names}
    return [
        pytest.param(folder, id=name, marks=pytest.mark.skipif(not folder.exists(), reason=f"{name} is not here"))
        for name, folder in folders.items()
    ]


def names(folder):
    """The names of the files in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
