"""Texts through the model: steps that write all of them together, and what is kept of earlier ones.

guesses (speculative decoding) and disk (prompts that survive a restart) are imported where they are used.
"""

from fastllm.engine.engine import CHUNK, Engine, Span
from fastllm.engine.generation import Generation, Logprob
from fastllm.engine.scheduler import Scheduler

__all__ = ["CHUNK", "Engine", "Generation", "Logprob", "Scheduler", "Span"]
