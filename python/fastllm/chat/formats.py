"""How models write thinking and tool calls: response templates for checkpoints that bring none.

Which one a model has is seen in its chat template and its tokens. Each is transformers' format (see response.py), so
that it could stand in a tokenizer_config.json; white space around delimiters belongs to no field.

A way to write calls also says how to write one, for grammars that force it (calls.py), with $name and $arguments, or
$tags for arguments that are not JSON.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fastllm.chat.response import ResponseTemplate
from fastllm.tokenizer import Tokenizer


class Thinking(NamedTuple):
    """What models write around their thinking, which precedes the answer."""

    opens: str
    closes: str


class CallFormat(NamedTuple):
    """A way to write tool calls.

    signs: texts that a chat template for it has, all of them, in itself or in the names of the added tokens. field:
    of the response template. written: a call; between: what is between two, None: there is only one; around: what is
    before and after all. tag: how $tags writes an argument, with $key and $value.
    """

    signs: tuple[str, ...]
    field: dict[str, Any]
    written: str = ""
    between: str | None = None
    around: tuple[str, str] = ("", "")
    tag: str = ""
    thinking: Thinking | None = None
    content: dict[str, Any] | None = None


class Format(NamedTuple):
    """How a model writes its replies. thinking: None: not, or in an unknown way. calls: None: in an unknown way."""

    template: ResponseTemplate
    thinking: Thinking | None
    calls: CallFormat | None


_THINKING = (
    Thinking("<think>", "</think>"),
    Thinking("<thinking>", "</thinking>"),
    Thinking("<thought>", "</thought>"),
    Thinking("<reasoning>", "</reasoning>"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
)


def _call(arguments: str = "{content}", name: str = "{name}") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _json(opens: str, closes: str | None, transform: dict[str, Any], **more: Any) -> dict[str, Any]:
    ends = {} if closes is None else {"close_pattern": closes}
    return {"open_pattern": opens, **ends, "content": "json", "repeats": True, "transform": transform, **more}


def _tags(opens: str, closes: str, tag: str) -> dict[str, Any]:
    return _json(opens, closes, _call(), content="xml-inline", content_args={"tag_pattern": tag})


# DeepSeek's special tokens, which have a full-width bar and a block for a space in their names.
_CALLS, _BEGIN, _SEP, _END, _ENDS = (
    f"<\uff5ctool\u2581{name}\uff5c>"
    for name in ("calls\u2581begin", "call\u2581begin", "sep", "call\u2581end", "calls\u2581end")
)
_NAME = r"(?P<name>[^\s<>\[\]{}()]+)"
_START, _CONTENT = r"(?:<\|start\|>assistant)?", {"content_args": {"strip": False}, "repeats": True, "join": "\n\n"}
# gpt-oss: a header "<|start|>assistant<|channel|>NAME<|message|>" before each message, where NAME is analysis,
# commentary or final, and a function that is called stands after the role or the channel.
_HARMONY = CallFormat(
    ("<|channel|>", "<|message|>"),
    _json(
        rf"{_START}(?: ?to=functions\.{_NAME}<\|channel\|>\w+|<\|channel\|>\w+ to=functions\.{_NAME})"
        r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        r"<\|(?:call|end)\|>",
        _call(),
    ),
    "<|channel|>commentary to=functions.$name <|constrain|>json<|message|>$arguments",
    thinking=Thinking("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    content={
        **_CONTENT,
        "close_pattern": rf"{_START}<\|channel\|>(?:final|commentary)(?! to=)[^<]*(?:<\|constrain\|>[^<]*)?"
        r"<\|message\|>"
        r"|<\|(?:end|return)\|>",
    },
)
_FORMATS = (
    _HARMONY,
    CallFormat(  # Gemma 4
        ("<|tool_call>", "<tool_call|>"),
        _json(
            r"\s*<\|tool_call>call:" + _NAME,
            r"<tool_call\|>\s*",
            _call(),
            content_args={"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
        ),
        thinking=Thinking("<|channel>thought\n", "<channel|>"),
    ),
    CallFormat(  # Command R7B, Command A
        ("<|START_ACTION|>",),
        _json(
            r"\s*<\|START_ACTION\|>",
            r"<\|END_ACTION\|>\s*",
            {**_call("{parameters}", "{tool_name}"), "id": "{tool_call_id}"},
            transform_each=True,
        ),
        '{"tool_call_id": "0", "tool_name": "$name", "parameters": $arguments}',
        around=("<|START_ACTION|>[\n    ", "\n]<|END_ACTION|>"),
        content={**_CONTENT, "close_pattern": r"\s*<\|(?:START|END)_RESPONSE\|>\s*"},
    ),
    CallFormat(  # DeepSeek V3, R1
        (_BEGIN, "```json"),
        _json(
            rf"\s*(?:{_CALLS}\s*)?{_BEGIN}\w+{_SEP}(?P<name>[^\n]+)\n```json\n",
            rf"\n?```\s*{_END}(?:\s*{_ENDS})?\s*",
            _call(),
        ),
        f"{_BEGIN}function{_SEP}$name\n```json\n$arguments\n```{_END}",
        "\n",
        (_CALLS, _ENDS),
    ),
    CallFormat(  # DeepSeek V3.1 and later
        (_BEGIN,),
        _json(
            rf"\s*(?:{_CALLS}\s*)?{_BEGIN}(?P<name>[^\s<]+){_SEP}",
            rf"{_END}(?:\s*{_ENDS})?\s*",
            _call(),
        ),
        f"{_BEGIN}$name{_SEP}$arguments{_END}",
        "",
        (_CALLS, _ENDS),
    ),
    CallFormat(  # GLM-4.5 and later
        ("<arg_key>", "<arg_value>"),
        _tags(
            r"\s*<tool_call>\s*" + _NAME + r"\s*(?=<)",
            r"\s*</tool_call>\s*",
            r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
        ),
        "<tool_call>$name\n$tags</tool_call>",
        "\n",
        tag="<arg_key>$key</arg_key>\n<arg_value>$value</arg_value>\n",
    ),
    CallFormat(  # Qwen3-Coder, Qwen3.5, Nemotron 3; Seed-OSS
        ("<function=", "<parameter="),
        _tags(
            r"\s*<(?:seed:)?tool_call>\s*<function=(?P<name>[^>\n]+)>\s*",
            r"\s*</function>\s*</(?:seed:)?tool_call>\s*",
            r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>",
        ),
        "<tool_call>\n<function=$name>\n$tags</function>\n</tool_call>",
        "\n",
        tag="<parameter=$key>\n$value\n</parameter>\n",
    ),
    CallFormat(  # Hermes, Qwen 2.5 and 3, SmolLM3, Granite
        ("<tool_call>",),
        _json(r"\s*<tool_call>\s*", r"\s*</tool_call>\s*", _call("{content.arguments}", "{content.name}")),
        '<tool_call>\n{"name": "$name", "arguments": $arguments}\n</tool_call>',
        "\n",
    ),
    CallFormat(  # Mistral from version 11 of its tokenizer on
        ("[TOOL_CALLS]", "[ARGS]"),
        _json(
            r"\s*\[TOOL_CALLS\]\s*" + _NAME + r"\s*(?:\[CALL_ID\]\s*\w+\s*)?\[ARGS\]\s*",
            r"\s*(?=\[TOOL_CALLS\])",
            _call(),
        ),
        "[TOOL_CALLS]$name[ARGS]$arguments",
        "",
    ),
    CallFormat(  # Mistral until then
        ("[TOOL_CALLS]",),
        _json(r"\s*\[TOOL_CALLS\]\s*(?=\[)", None, _call("{arguments}"), transform_each=True),
        '{"name": "$name", "arguments": $arguments}',
        ", ",
        ("[TOOL_CALLS] [", "]"),
    ),
    CallFormat(  # Llama 3.1 and later
        ("<|start_header_id|>", '"parameters": '),
        _json(
            r'(?:\A\s*|\s*<\|python_tag\|>\s*)(?=\{\s*"(?:type|name)")',
            None,
            _call("{content.parameters}", "{content.name}"),
        ),
        '{"name": "$name", "parameters": $arguments}',
    ),
    CallFormat(  # Gemma 1 to 3, as its makers have it call functions
        ("<start_of_turn>",),
        _json(
            r"\s*```tool_code\s*(?:print\()?(?P<name>[A-Za-z_][\w.]*)\(",
            r"\s*```\s*",
            _call(),
            content="python-arguments",
        ),
    ),
)


def reply_format(tokenizer: Tokenizer) -> Format | None:
    """How a model writes its replies; None where all of them is text.

    Raises TokenizerError for a response template of its own that is broken.
    """
    written = f"{tokenizer.chat_template or ''}{tokenizer.tool_template or ''}"
    names = {*tokenizer.added, *tokenizer.special}
    signs = written + "\n".join(name for name in names if name.strip())
    calls = next((each for each in _FORMATS if all(sign in signs for sign in each.signs)), None)
    thinking = calls.thinking if calls is not None else None
    if thinking is None:
        thinking = next((one for one in _THINKING if one.closes in written or one.closes in names), None)
    if tokenizer.response_template is not None:
        template = ResponseTemplate(tokenizer.response_template)
        return Format(template, _thinking_of(tokenizer.response_template, thinking), calls)
    if calls is None and thinking is None:
        return None
    return Format(ResponseTemplate(_template(calls, thinking)), thinking, calls)


def _template(calls: CallFormat | None, thinking: Thinking | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"content": _CONTENT if calls is None or calls.content is None else calls.content}
    anchor = r"\A.*"
    if calls is _HARMONY:
        opens = rf"{_START}<\|channel\|>analysis(?! to=)[^<]*<\|message\|>"
        fields["thinking"] = {"open_pattern": opens, "close": "<|end|>", **_CONTENT}
        anchor = r"\A.*<\|start\|>assistant"
    elif thinking is not None:
        opens, closes = (re.escape(marker.strip()) for marker in thinking)
        fields["thinking"] = {"open_pattern": rf"\A\s*{opens}", "close": thinking.closes}
        # White space after the thinking ends the content, which has not begun, and so belongs to neither.
        ends = [
            rf"(?<={closes})\s+",
            *([] if calls is None or calls.content is None else [calls.content["close_pattern"]]),
        ]
        fields["content"] = {**_CONTENT, "close_pattern": "|".join(ends)}
        # The prompt may begin the thinking, or begin and end it, which keeps a model from thinking.
        anchor = rf"\A(?:.*(?={opens}\s*(?:{closes}\s*)?\Z)|.*)"
    if calls is not None:
        fields["tool_calls"] = dict(calls.field)
        if thinking is not None:  # what is at the start of a reply may be after its thinking
            start = rf"(?:\A|(?<={re.escape(thinking.closes)}))"
            fields["tool_calls"]["open_pattern"] = calls.field["open_pattern"].replace(r"\A", start)
    return {"start_anchor_pattern": anchor, "defaults": {"role": "assistant"}, "fields": fields}


THINKING_FIELDS = ("thinking", "reasoning", "reasoning_content")


def _thinking_of(spec: Any, known: Thinking | None) -> Thinking | None:
    """What a checkpoint's own response template says about the delimiters of thinking, if they are texts."""
    for name in THINKING_FIELDS:
        about = spec["fields"].get(name)
        if about is not None:
            opens, closes = (about.get(key) for key in ("open", "close"))
            opens, closes = (one[0] if isinstance(one, list) else one for one in (opens, closes))
            return Thinking(opens, closes) if opens and closes else known
    return None


def closing(tokenizer: Tokenizer, thinking: Thinking) -> str:
    """What ends a thought that has no end yet: the delimiter, with the line breaks around it in the chat template."""
    written = f"{tokenizer.chat_template or ''}{tokenizer.tool_template or ''}"
    breaks = r"((?:\\n|\n){0,4})"
    found = re.findall(breaks + re.escape(thinking.closes) + breaks, written)
    before, after = (max((ends[i] for ends in found), key=len, default="").replace("\\n", "\n") for i in (0, 1))
    return before + thinking.closes + after
