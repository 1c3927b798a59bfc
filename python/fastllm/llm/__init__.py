"""What users of the API meet: a model with its tokenizer, which writes, scores, labels and embeds texts."""

from fastllm.llm.llm import LLM
from fastllm.llm.loading import load
from fastllm.llm.reply import AsyncChatStream, ChatMessage, ChatStream
from fastllm.llm.stream import AsyncTextStream, TextStream
from fastllm.llm.text import Text

__all__ = [
    "LLM",
    "AsyncChatStream",
    "AsyncTextStream",
    "ChatMessage",
    "ChatStream",
    "Text",
    "TextStream",
    "load",
]
