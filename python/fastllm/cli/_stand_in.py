"""STAND-IN for LLM.chat, until it is there: to be dropped."""

# mypy: ignore-errors
# ruff: noqa

from fastllm.chat import chat_format
from fastllm.llm import LLM


class ChatStream:
    def __init__(self, stream):
        self._stream = stream

    def pieces(self):
        for piece in self._stream:
            yield "text", piece

    def close(self):
        self._stream.close()

    @property
    def message(self):
        return {"role": "assistant", "content": self._stream.text}


def chat(self, messages, *, stream=False, chat_template_kwargs=None, **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    ids = chat_format(self).encode(messages, **(chat_template_kwargs or {}))
    result = ChatStream(self.generate(ids, stop=list(self.chat_stop), stream=True, **options))
    if stream:
        return result
    list(result.pieces())
    return result.message


def apply_chat_template(self, messages, **more):
    return chat_format(self).encode(messages, **more)


LLM.chat = chat
LLM.apply_chat_template = apply_chat_template
