"""Conversations, rendered with a chat template by fastllm and by transformers."""

import copy
import json

from fastllm import FastLLMError
from fastllm.chat import ChatTemplate
from fastllm.tokenizer import from_blob

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> & 'here'\nor é there",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city", "enum": ["Rome", "Bonn"]},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1]},
                "more": {"type": "object", "properties": {"deep": {"type": ["number", "null"]}}},
            },
            "required": ["city"],
        },
        "return": {"type": "string"},
    },
}
SYSTEM = {"role": "system", "content": "  Be <b>brief</b> & kind.\n"}
USER = {"role": "user", "content": "Hello\r\nworld  "}
REPLY = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi 'there'"}


def called(arguments):
    call = {"type": "function", "id": "call_1abc", "function": {"name": "get_weather", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def with_objects(messages):
    """The same messages, with the arguments of calls as objects."""
    found = copy.deepcopy(messages)
    for message in found:
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
    return found


ANSWER = {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "call_1abc", "name": "get_weather"}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "?"}],
}
ARGUMENTS = {"city": "Rome", "days": [1, 2], "more": {"deep": 1.5, "no": None, "yes": True}}
# Name -> messages, and the other variables of the template.
CONVERSATIONS = {
    "user": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, REPLY, {"role": "user", "content": "And?"}], {}),
    "said": ([USER, REPLY], {"add_generation_prompt": False}),
    "no prompt": ([SYSTEM, USER], {"add_generation_prompt": False}),
    "not alternating": ([USER, USER, REPLY, REPLY], {}),
    "parts": ([PARTS], {}),
    "tools": ([SYSTEM, USER], {"tools": [WEATHER]}),
    "no tools": ([USER], {"tools": []}),
    "call": ([USER, called(ARGUMENTS), ANSWER], {"tools": [WEATHER, WEATHER]}),
    "call, text": ([USER, called('{"city": "Rome"}'), ANSWER, REPLY, USER], {"tools": [WEATHER]}),
    "null": ([USER, {**called(ARGUMENTS), "content": None}, ANSWER], {"tools": [WEATHER]}),
    "thinking": ([USER, {**REPLY, "content": "Hi", "reasoning": "Hm."}, USER], {"enable_thinking": True}),
    "not thinking": ([USER], {"enable_thinking": False, "reasoning_effort": "low"}),
    "developer": ([{"role": "developer", "content": "Do."}, USER], {}),
    "documents": ([USER], {"documents": [{"title": "One", "text": "First"}, {"title": "<2>", "text": "Second\n"}]}),
}


def ours(source, messages, variables):
    """The text that fastllm renders, or its error."""
    tokenizer = from_blob("letters", b"<unk>\na")
    tokenizer.chat_template, tokenizer.roles = source, ROLES
    try:
        return ChatTemplate(tokenizer).render(messages, **variables)
    except FastLLMError as error:
        return error


def theirs(source, messages, variables):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **ROLES)
    tokenizer.chat_template = source
    variables = {"add_generation_prompt": True, **variables}
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except Exception as error:
        return error
