"""Sequences of tokens through the model: one text or several, prompts in chunks, guesses, and what the cache keeps.

batch (texts written together) and guesses (speculative decoding) are imported where they are used: a single text needs
neither.
"""

from fastllm.engine.engine import CHUNK, Engine, Span
from fastllm.engine.generation import Generation

__all__ = ["CHUNK", "Engine", "Generation", "Span"]
