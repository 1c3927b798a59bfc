"""How a text goes on and where it ends: the options of a draw, and strings that stop it."""

from fastllm.decoding.sampling import DEFAULTS, Sampling
from fastllm.decoding.stops import StopStrings, stop_strings

__all__ = ["DEFAULTS", "Sampling", "StopStrings", "stop_strings"]
