"""Reads checkpoints of every format, one module a format: a path becomes tensors by name and a config.

Nothing here knows a model family. To add a format of a file, see the table in _files.py; to add a layout of a folder,
the one in opening.py; to add a way of quantizing weights, the one in quantized/_schemes.py.
"""

from fastllm.formats._files import is_safetensors
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.opening import open_checkpoint

__all__ = ["Checkpoint", "is_safetensors", "open_checkpoint"]
