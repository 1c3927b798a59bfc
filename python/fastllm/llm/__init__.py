"""What users of the API meet: a model with its tokenizer, which writes, scores, labels and embeds texts."""

from fastllm.llm.llm import LLM
from fastllm.llm.loading import KV_DTYPES, load
from fastllm.llm.stream import TextStream

__all__ = ["KV_DTYPES", "LLM", "TextStream", "load"]
