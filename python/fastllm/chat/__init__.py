"""Conversations as token ids, by chat templates in a sandbox, and replies read back into messages."""

from fastllm.chat.conversation import Conversation, Llama2Format, chat_format
from fastllm.chat.formats import Format, reply_format
from fastllm.chat.response import ResponseParser, ResponseTemplate
from fastllm.chat.template import ChatTemplate, Message, checked, last_text

__all__ = [
    "ChatTemplate",
    "Conversation",
    "Format",
    "Llama2Format",
    "Message",
    "ResponseParser",
    "ResponseTemplate",
    "chat_format",
    "checked",
    "last_text",
    "reply_format",
]
