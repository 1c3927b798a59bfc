"""What families' chat templates write of a message is read back as the same message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.chat import ChatTemplate, ResponseParser, reply_format
from fastllm.chat.calls import schemas, typed
from fastllm.chat.formats import THINKING_FIELDS, closing
from helpers.replies import FAMILIES, TOOL, messages, pieces_of, template_of, tokenizer

pytest.importorskip("jinja2")
pytest.importorskip("regex")
TOOLS = schemas([TOOL])


def read(parser, pieces):
    """The message of a reply in pieces."""
    parts = [part for text, special in pieces for part in parser.feed(text, special=special)] + parser.end()
    message = {"role": "assistant", "content": ""}
    for field, text, value in parts:
        if field == "tool_calls":
            calls = value if isinstance(value, list) else [value]
            message.setdefault("tool_calls", []).extend(calls)
        else:
            name = "reasoning" if field in THINKING_FIELDS else field
            message[name] = message.get(name, "") + text
    for call in message.get("tool_calls", []):
        call["function"]["arguments"] = typed(call["function"]["arguments"], TOOLS[call["function"]["name"]])
    return message


def shuffled(data, pieces):
    """The same pieces, texts cut further at random."""
    for text, special in pieces:
        cuts = [] if special else sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            if text[start:end]:
                yield text[start:end], special


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_back(family):
    _, end, special = FAMILIES[family]
    words = tokenizer(template_of(family), special=special)
    chat, form = ChatTemplate(words), reply_format(words)
    user = {"role": "user", "content": "hi"}

    @given(message=messages(family), data=st.data())
    def check(message, data):
        prompt = chat.render([user])
        reply = chat.render([user, message], add_generation_prompt=False)[len(prompt) :].removesuffix(end)
        pieces = pieces_of(reply, special)
        found = read(ResponseParser(form.template, prompt), pieces)
        for i, call in enumerate(found.get("tool_calls", [])):
            call.setdefault("id", str(i))
        assert found == message
        cut = read(ResponseParser(form.template, prompt), shuffled(data, pieces))
        for i, call in enumerate(cut.get("tool_calls", [])):
            call.setdefault("id", str(i))
        assert cut == message

    check()


def test_families_are_told_apart():
    seen = {family: reply_format(tokenizer(template_of(family), special=FAMILIES[family][2])) for family in FAMILIES}
    assert len({id(form.calls) for form in seen.values()}) == len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "reply", "expected"),
    [
        (
            "qwen3",
            '<tool_call>\n{"name": "get_weather", "argu',
            {"content": '<tool_call>\n{"name": "get_weather", "argu'},
        ),
        ("qwen3", "<tool_call>[1]</tool_call> so", {"content": "<tool_call>[1]</tool_call> so"}),
        ("qwen3", '<tool_call>{"name": "f", "arguments": 5}</tool_call>', None),
        ("llama3", '{"name": "Bob", "age": 3}', {"content": '{"name": "Bob", "age": 3}'}),
        ("gemma3", "```tool_code\nprint('hi')\n```", {"content": "```tool_code\nprint('hi')\n```"}),
        ("gpt-oss", "just text", {"content": "just text"}),
        ("qwen3", "a < b and <tool", {"content": "a < b and <tool"}),
    ],
)
def test_what_is_no_call_is_text(family, reply, expected):
    form = reply_format(tokenizer(template_of(family), special=FAMILIES[family][2]))
    found = read(ResponseParser(form.template), [(character, False) for character in reply])
    assert found == {"role": "assistant", **(expected or {"content": reply})}


def test_special_tokens_are_not_shown():
    form = reply_format(tokenizer(template_of("mistral-v11"), special=FAMILIES["mistral-v11"][2]))
    pieces = [("a", False), ("<unk>", True), ("b", False), ("[TOOL_CALLS]", True), ("c", False)]
    assert read(ResponseParser(form.template), pieces)["content"] == "abc"


def test_how_thinking_is_closed():
    thinks = reply_format(tokenizer("</think>")).thinking
    assert closing(tokenizer("</think>"), thinks) == "</think>"
    assert closing(tokenizer(r"{{ '<think>\n' + m.r + '\n</think>\n\n' + m.content }}"), thinks) == "\n</think>\n\n"
    assert closing(tokenizer("x\n</think>\n{{ a }}"), thinks) == "\n</think>\n"
