"""Sequences of tokens through the model: one text or several, prompts in chunks, guesses, and what the cache keeps."""

from fastllm.engine.batch import TOGETHER, Batch
from fastllm.engine.costs import MOST, Costs
from fastllm.engine.engine import CHUNK, Engine, Span
from fastllm.engine.generation import Generation
from fastllm.engine.guesses import DraftModel, PromptLookup, Proposer

__all__ = [
    "CHUNK",
    "MOST",
    "TOGETHER",
    "Batch",
    "Costs",
    "DraftModel",
    "Engine",
    "Generation",
    "PromptLookup",
    "Proposer",
    "Span",
]
