"""Conversations as token ids: chat templates, run in a sandbox, and the turns of a talk."""

from fastllm.chat.conversation import Conversation, Llama2Format, chat_format
from fastllm.chat.template import ChatTemplate, Message

__all__ = ["ChatTemplate", "Conversation", "Llama2Format", "Message", "chat_format"]
