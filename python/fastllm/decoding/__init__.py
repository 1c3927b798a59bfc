"""How a text goes on and where it ends: the options of a draw, and what stops it."""

from fastllm.decoding._checks import is_list
from fastllm.decoding.sampling import DEFAULTS, Sampling, checkpoint_defaults
from fastllm.decoding.stops import Scan, Stops, listed
from fastllm.decoding.watermark import Detection, Watermark

__all__ = [
    "DEFAULTS",
    "Detection",
    "Sampling",
    "Scan",
    "Stops",
    "Watermark",
    "checkpoint_defaults",
    "is_list",
    "listed",
]
