"""Conversations as token ids, by chat templates in a sandbox, and replies as thinking and text."""

from fastllm.chat.conversation import Conversation, Llama2Format, chat_format
from fastllm.chat.template import ChatTemplate, Message, checked, last_text
from fastllm.chat.thinking import Thinking, markers

__all__ = [
    "ChatTemplate",
    "Conversation",
    "Llama2Format",
    "Message",
    "Thinking",
    "chat_format",
    "checked",
    "last_text",
    "markers",
]
