"""Families' ways to write replies: a small chat template of the kind of each, and random messages."""

import re
from types import SimpleNamespace

from hypothesis import strategies as st

from fastllm.tokenizer import from_blob

DEEPSEEK = {name: f"<\uff5ctool\u2581{name}\uff5c>" for name in ("calls\u2581begin", "call\u2581begin", "sep")}
BEGINS, BEGIN, SEP = DEEPSEEK.values()
END, ENDS = (f"<\uff5ctool\u2581{name}\u2581end\uff5c>" for name in ("call", "calls"))
_THINK = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
_BEFORE = "{% if m.content and m.tool_calls %}\n{% endif %}"
_CALLS = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"

# Name -> what the template writes of the assistant's message `m`, what it ends with, and the special tokens.
FAMILIES = {
    "qwen3": (
        _THINK + _BEFORE + _CALLS + "{% if not loop.first %}\n{% endif %}<tool_call>\n"
        '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}',
        "<|im_end|>",
        (),
    ),
    "qwen3-coder": (
        "{{ m.content }}" + _BEFORE + _CALLS + "<tool_call>\n<function={{ f.name }}>\n"
        "{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n"
        "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
        "<|im_end|>",
        (),
    ),
    "glm": (
        _THINK + _BEFORE + _CALLS + "<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}"
        "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}"
        "</tool_call>\n{% endfor %}",
        "<|user|>",
        (),
    ),
    "mistral-v3": (
        "{{ m.content }}{% if m.tool_calls %}[TOOL_CALLS] [" + _CALLS + '{"name": "{{ f.name }}", "arguments": '
        '{{ f.arguments | tojson }}, "id": "abcdefghi"}{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}',
        "</s>",
        ("[TOOL_CALLS]",),
    ),
    "mistral-v11": (
        "{{ m.content }}" + _CALLS + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}{% endfor %}",
        "</s>",
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    "gpt-oss": (
        "{% if m.reasoning_content %}<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|><|start|>assistant"
        "{% endif %}{% for c in m.tool_calls or [] %}{% set f = c.function %}<|channel|>commentary to=functions."
        "{{ f.name }} <|constrain|>json<|message|>{{ f.arguments | tojson }}<|call|>{% if not loop.last %}<|start|>"
        "assistant{% endif %}{% endfor %}"
        "{% if not m.tool_calls %}<|channel|>final<|message|>{{ m.content }}{% endif %}",
        "<|return|>",
        ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>", "<|call|>", "<|return|>"),
    ),
    "gemma4": (
        "{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}<channel|>{% endif %}{{ m.content }}"
        + _CALLS
        + "<|tool_call>call:{{ f.name }}{ {%- for k, v in f.arguments.items() %}{{ k }}:{% if v is string %}"
        '<|"|>{{ v }}<|"|>{% else %}{{ v | tojson }}{% endif %}{% if not loop.last %},{% endif %}{% endfor -%} }'
        "<tool_call|>{% endfor %}",
        "<turn|>",
        ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "command-a": (
        "{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}"
        "{% if m.tool_calls %}<|START_ACTION|>[\n" + _CALLS + '    {"tool_call_id": "{{ c.id }}", "tool_name": '
        '"{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% if not loop.last %},\n{% endif %}{% endfor %}'
        "\n]<|END_ACTION|>{% else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}",
        "<|END_OF_TURN_TOKEN|>",
        tuple(f"<|{end}_{part}|>" for end in ("START", "END") for part in ("THINKING", "ACTION", "RESPONSE")),
    ),
    "deepseek-v3": (
        "{{ m.content }}{% if m.tool_calls %}" + BEGINS + _CALLS + "{% if not loop.first %}\n{% endif %}"
        f"{BEGIN}function{SEP}{{{{ f.name }}}}\n```json\n{{{{ f.arguments | tojson }}}}\n```{END}{{% endfor %}}{ENDS}"
        "{% endif %}",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        (BEGINS, BEGIN, SEP, END, ENDS),
    ),
    "deepseek-v3.1": (
        _THINK + "{% if m.tool_calls %}" + BEGINS + _CALLS + f"{BEGIN}{{{{ f.name }}}}{SEP}"
        f"{{{{ f.arguments | tojson }}}}{END}{{% endfor %}}{ENDS}{{% endif %}}",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        (BEGINS, BEGIN, SEP, END, ENDS),
    ),
    "llama3": (
        _CALLS + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% endfor %}{{ m.content }}'
        "{# <|start_header_id|> #}",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|python_tag|>"),
    ),
    "gemma3": (
        "{{ m.content }}" + _BEFORE + _CALLS + "```tool_code\nprint({{ f.name }}({% for k, v in f.arguments.items() %}"
        "{% if not loop.first %}, {% endif %}{{ k }}={{ v | tojson }}{% endfor %}))\n```{% endfor %}"
        "{# <start_of_turn> #}",
        "<end_of_turn>",
        ("<start_of_turn>",),
    ),
}
# What families cannot write: thinking, several calls, text beside calls, values that are not flat.
THINK = {"qwen3", "glm", "gpt-oss", "gemma4", "command-a", "deepseek-v3.1"}
ONE = {"llama3"}
APART = {"gpt-oss", "command-a", "llama3"}
FLAT = {"qwen3-coder", "glm", "gemma4", "gemma3"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "wind": {"type": "boolean"},
                "more": {"type": "object"},
            },
            "required": ["city", "days", "wind"],
        },
    },
}


def tokenizer(template=None, added=(), special=(), response_template=None):
    """What reply_format looks at of a tokenizer."""
    words = from_blob("letters", b"<unk>\na")
    return SimpleNamespace(
        chat_template=template,
        tool_template=None,
        added=added,
        special=[*words.special, *special],
        response_template=response_template,
        roles={},
        ends=(),
    )


def template_of(family):
    said, end, _ = FAMILIES[family]
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]" + said + end + "{% else %}"
        "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )


def pieces_of(text, special):
    """A reply as the engine hands it out: (text, whether it is a special token)."""
    if not special:
        return [(text, False)]
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


_LETTERS = "aZ \n'\"\\:,.{}()é\u4e2d\U0001f600&%$#/-_1"
_texts = st.text(_LETTERS, min_size=1, max_size=30).map(str.strip).filter(bool)
_flat = st.text("aZ '\":,.é\u4e2d\U0001f6001", min_size=1, max_size=12).map(str.strip).filter(bool)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(_LETTERS + "<>|", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"'", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def messages(draw, family):
    """An assistant's message that the family can write: thinking, text and calls, as far as there are such."""
    arguments = st.fixed_dictionaries(
        {"city": _flat if family in FLAT else st.text(_LETTERS + "<>|"), "days": st.integers(-9, 99)},
        optional={"wind": st.booleans()} | ({} if family in FLAT else {"more": st.dictionaries(_flat, _json)}),
    )
    count = draw(st.integers(0, 1 if family in ONE else 3))
    message = {"role": "assistant", "content": draw(_texts)}
    if count:
        if family in APART or draw(st.booleans()):
            message["content"] = ""
        message["tool_calls"] = [
            {"id": str(i), "type": "function", "function": {"name": "get_weather", "arguments": draw(arguments)}}
            for i in range(count)
        ]
    if family in THINK and draw(st.booleans()):
        message["reasoning"] = draw(_texts)
    return message
