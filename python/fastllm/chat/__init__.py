"""Conversations as token ids: chat templates, run in a sandbox, and the turns of a talk."""

from fastllm.chat.conversation import Chat, Llama2Chat, TemplateChat, start_chat
from fastllm.chat.template import ChatTemplate, Message

__all__ = ["Chat", "ChatTemplate", "Llama2Chat", "Message", "TemplateChat", "start_chat"]
