"""What users of the API meet: a model with its tokenizer, which writes, scores, labels and embeds texts."""

from fastllm.llm.llm import LLM
from fastllm.llm.loading import load
from fastllm.llm.stream import AsyncTextStream, TextStream
from fastllm.llm.text import Text

__all__ = ["LLM", "AsyncTextStream", "Text", "TextStream", "load"]
