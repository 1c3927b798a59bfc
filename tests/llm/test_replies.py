"""Replies: tool calls, and a bound on thinking, whole and streamed, alone and in company."""

import asyncio
import json

import pytest

import fastllm
from fastllm import FastLLMError, OptionError, TokenizerError
from helpers.replies import TOOL
from helpers.terminals import Says, user, with_template

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
pytest.importorskip("regex")

# Qwen's kind, which thinks where it is asked to.
TEMPLATE = """{%- for t in tools or [] %}{{ t | tojson }}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if think %}{{ '<think>\\n' }}{% endif %}{% endif %}
{#- '</think>\\n\\n' #}"""
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": "3"}}\n</tool_call>'
CLOSED = "</think>\n\n"
THINK = {"chat_template_kwargs": {"think": True}}
HOT = {"temperature": 1.3, "repetition_penalty": 1.2, "max_tokens": 40}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return with_template(tmp_path_factory.mktemp("qwen"), TEMPLATE)


# ---- tool calls ------------------------------------------------------------------------------------------------------


def test_a_call(llm):
    reply = llm.chat("x", tools=[TOOL], logits_processor=Says(llm, f"Well.\n{CALL}\n{CALL}"), max_tokens=300, seed=1)
    one, two = reply["tool_calls"]
    assert reply["content"] == "Well."
    assert one["function"] == two["function"] == {"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}
    assert one["type"] == "function"
    assert one["id"].isalnum()
    assert len(one["id"]) == 9
    assert one["id"] != two["id"]
    assert json.loads(json.dumps(reply)) == reply
    again = llm.chat("x", tools=[TOOL], logits_processor=Says(llm, f"Well.\n{CALL}\n{CALL}"), max_tokens=300, seed=1)
    assert again == reply


def test_a_call_in_a_stream(llm):
    stream = llm.chat(
        "x", tools=[TOOL], logits_processor=Says(llm, f"Well.\n{CALL}"), max_tokens=300, stream=True, seed=1
    )
    pieces = list(stream.pieces())
    whole = llm.chat("x", tools=[TOOL], logits_processor=Says(llm, f"Well.\n{CALL}"), max_tokens=300, seed=1)
    assert [kind for kind, _ in pieces] == ["text"] * 5 + ["tool_call"]
    assert pieces[-1][1] == whole["tool_calls"][0]
    assert stream.message == whole


def test_the_next_turn(llm):
    """The call goes into the template as the model wrote it, whether its arguments are an object or JSON text."""
    reply = llm.chat("x", tools=[TOOL], logits_processor=Says(llm, CALL), max_tokens=300)
    answer = {"role": "tool", "content": "sunny", "tool_call_id": reply["tool_calls"][0]["id"]}
    messages = [user("x"), reply, answer]
    text = llm.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>' in text
    function = reply["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    assert llm.apply_chat_template(messages, tools=[TOOL], tokenize=False) == text
    assert llm.chat(messages, tools=[TOOL], max_tokens=2)["content"].prompt_tokens == len(ids(llm, text))


def test_templates_that_want_text(tmp_path):
    """DeepSeek's templates add the arguments to a text."""
    llm = with_template(tmp_path, "{% for m in messages %}{{ 'a' + m.tool_calls[0].function.arguments }}{% endfor %}")
    function = {"name": "f", "arguments": {"city": "Rome"}}
    message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert llm.apply_chat_template([message], tokenize=False) == 'a{"city": "Rome"}'
    with pytest.raises(FastLLMError, match="only concatenate str"):
        llm.apply_chat_template([{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}])


def test_a_broken_call_is_text(llm):
    said = '<tool_call>\n{"name": "get_weather", "arg'
    assert llm.chat("x", tools=[TOOL], logits_processor=Says(llm, said), max_tokens=300) == {
        "role": "assistant",
        "content": said,
    }


def test_delimiters_that_are_special_tokens(tmp_path):
    spec = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "<|im_start|>",
                "close": "<|im_start|>",
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "mood": {"open": "(", "close": ")"},
            "content": {},
        },
    }
    llm = with_template(tmp_path, TEMPLATE, response_template=spec)
    said = 'a <|im_start|>{"name": "f", "arguments": {}}<|im_start|> (glad)b'
    stream = llm.chat("x", logits_processor=Says(llm, said), max_tokens=99, stream=True, stop=["zz"])
    pieces = list(stream.pieces())
    assert stream.message["content"] == "ab"
    assert stream.message["mood"] == "glad"
    assert [call["function"] for kind, call in pieces if kind == "tool_call"] == [{"name": "f", "arguments": {}}]
    assert "<|" not in stream.stream.text


def test_a_broken_response_template(tmp_path):
    llm = with_template(tmp_path, TEMPLATE, response_template={"fields": 5})
    with pytest.raises(TokenizerError, match="response_template: fields must be an object"):
        llm.chat("x")


# ---- tool_choice -----------------------------------------------------------------------------------------------------

NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


FLY = {
    "name": "fly",
    "parameters": {
        "type": "object",
        "properties": {"to": {"enum": ["Rome", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["to", "days"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", ["required", "fly", {"type": "function", "function": {"name": "fly"}}], ids=str)
@pytest.mark.parametrize("think", [True, False])
def test_forced_calls(llm, choice, think):
    """A random model calls: whatever its weights, the reply is a call with arguments of the schema."""
    pytest.importorskip("llguidance")
    options = {"tool_choice": choice, "chat_template_kwargs": {"think": think}, "max_thinking_tokens": 5}
    options |= {"tools": [FLY] if choice == "required" else [NOW, FLY], "parallel_tool_calls": False}
    for seed in range(4):
        reply = llm.chat("x", temperature=1, top_k=5, seed=seed, max_tokens=500, **options)
        (call,) = reply["tool_calls"]
        assert call["function"]["name"] == "fly"
        assert call["function"]["arguments"]["to"] in ("Rome", "Bonn")
        assert call["function"]["arguments"]["days"] in range(1, 10)
        assert (reply["content"], reply["content"].finish_reason) == ("", "stop")
        assert not think or len(reply["reasoning"].encode()) <= 5
        stream = llm.chat("x", temperature=1, top_k=5, seed=seed, max_tokens=500, stream=True, lookup=True, **options)
        list(stream)
        assert stream.message == reply


def test_no_calls(llm):
    shown = llm.chat("x", tools=[TOOL], tool_choice="auto", max_tokens=1)["content"].prompt_tokens
    assert llm.chat("x", tools=[TOOL], max_tokens=1)["content"].prompt_tokens == shown
    hidden = llm.chat("x", tools=[TOOL], tool_choice="none", max_tokens=1)["content"].prompt_tokens
    assert llm.chat("x", max_tokens=1)["content"].prompt_tokens == hidden < shown


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"tool_choice": "required"}, "tool_choice is 'required', but there are no tools"),
        ({"tool_choice": "other", "tools": [TOOL]}, "tool_choice is 'other', but the tools are get_weather"),
        ({"tool_choice": 5, "tools": [TOOL]}, 'tool_choice must be "auto", "none"'),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice must be"),
        ({"tool_choice": "required", "tools": [TOOL], "regex": "a"}, "tool_choice forces a call, .* with regex"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] has no name"),
        ({"tools": [{"name": "a b"}]}, r"tools\[0\] has no name"),
        ({"tools": [TOOL, TOOL]}, r"tools\[1\] has the name get_weather, as has one before it"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, r"tools\[0\] \(f\): parameters must be the JSON schema"),
        ({"tools": [{"name": "f", "parameters": {"type": "array"}}]}, r"tools\[0\] \(f\): parameters must be"),
        ({"tools": [{"name": "f", "parameters": {"properties": []}}]}, r"tools\[0\] \(f\): properties must be"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be True or False"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens must be 0 or more, not -1"),
        ({"max_thinking_tokens": True}, "max_thinking_tokens must be 0 or more, not True"),
        ({"max_thinking_tokens": "many"}, "max_thinking_tokens must be a whole number"),
    ],
    ids=str,
)
def test_no_options(llm, options, cause):
    for call in (llm.chat, llm.achat):
        with pytest.raises(OptionError, match=cause) as error:
            call("x", **options)
        assert "\n" not in str(error.value)


def test_a_model_that_calls_in_no_known_way(tmp_path, write_model):
    llm = with_template(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}")
    with pytest.raises(OptionError, match=r"nothing is known of how .* writes calls"):
        llm.chat("x", tools=[TOOL], tool_choice="required")
    with pytest.raises(OptionError, match=r"max_thinking_tokens: .* does not think"):
        fastllm.load(write_model(), threads=1).chat("x", max_thinking_tokens=4)


# ---- a bound on thinking ---------------------------------------------------------------------------------------------


def ids(llm, text):
    return llm.tokenize(text, bos=False, special=True)


@pytest.mark.parametrize("most", [0, 1, 7])
def test_thinking_is_closed(llm, most):
    """The tokens are those of the model, what closes the thinking, and what the model writes after both."""
    options = {"temperature": 0, "max_tokens": 30}
    free = llm.chat("x", **THINK, **options)["content"].tokens
    reply = llm.chat("x", **THINK, **options, max_thinking_tokens=most)
    tokens = reply["content"].tokens
    begun = [*free[:most], *ids(llm, CLOSED)]
    assert tokens[: len(begun)] == begun
    prompt = llm.apply_chat_template([user("x")], think=True)
    after = llm.generate([*prompt, *begun], temperature=0, max_tokens=30 - len(begun))
    assert tokens[len(begun) :] == after.tokens
    assert reply.get("reasoning", "") == llm.detokenize(free[:most])
    assert reply["content"] == after


def test_thinking_that_the_model_begins_and_ends(llm):
    said = "<think>\nabc</think>\n\ndef <think>"
    for most in (3, 4, 50):
        reply = llm.chat("x", logits_processor=Says(llm, said), max_tokens=99, max_thinking_tokens=4 + most)
        assert reply == {"role": "assistant", "reasoning": "abc", "content": "def <think>"}
    script = ids(llm, "<think>\nabcdefgh")

    def says(tokens, logits):
        if len(tokens) - start < len(script):
            logits[script[len(tokens) - start]] = 1e4

    start = len(llm.apply_chat_template([user("x")]))
    reply = llm.chat("x", logits_processor=says, temperature=0, max_tokens=30, max_thinking_tokens=4)
    assert reply["reasoning"] == "abc"
    assert reply["content"].tokens[:8] == [*script[:5], *ids(llm, CLOSED)]
    reply = llm.chat("x", logits_processor=says, temperature=0, max_tokens=30, max_thinking_tokens=0)
    assert reply["content"].tokens[:4] == [*script[:1], *ids(llm, CLOSED)]
    assert "reasoning" not in reply


def test_thinking_is_closed_the_same_everywhere(llm):
    options = {**THINK, **HOT, "max_thinking_tokens": 9}
    whole = [llm.chat("x", seed=seed, **options) for seed in (4, 5, 6)]
    assert len({reply["reasoning"] for reply in whole}) == 3
    assert all(len(reply["content"].tokens) == 40 for reply in whole)
    assert llm.chat("x", seed=4, n=3, **options) == whole
    streams = [llm.chat("x", seed=seed, stream=True, **options) for seed in (4, 5, 6)]
    for parts in zip(*(stream.pieces() for stream in streams), strict=False):
        assert len(parts) == 3
    for stream, reply in zip(streams, whole, strict=True):
        list(stream.pieces())
        assert stream.message == reply
    for guesses in ({"lookup": True}, {"draft": llm}):
        found = llm.chat("x", seed=4, **options, **guesses)
        assert found == whole[0]
        assert found["content"].tokens == whole[0]["content"].tokens

    async def together():
        return await asyncio.gather(*(llm.achat("x", seed=seed, **options) for seed in (4, 5, 6)))

    assert asyncio.run(together()) == whole


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 8, 13])
def test_guesses_never_pass_the_end_of_thinking(llm, most):
    """A text that repeats itself, so that lookup guesses many tokens at once."""
    bias = {llm.tokenizer.token_id("a"): 60.0, llm.tokenizer.token_id("b"): 60.0}
    options = {**THINK, "temperature": 0, "max_tokens": 40, "logit_bias": bias, "max_thinking_tokens": most}
    plain, guessed = llm.chat("abababab" * 8, **options), llm.chat("abababab" * 8, lookup=True, **options)
    assert guessed == plain
    assert guessed["content"].tokens == plain["content"].tokens
    assert len(plain.get("reasoning", "")) == most


def test_beams_give_messages(llm):
    options = {"num_beams": 3, "max_tokens": 12, **THINK}
    best = llm.chat("x", **options)
    several = llm.chat("x", num_return_sequences=2, **options)
    assert several[0] == best == {"role": "assistant", "reasoning": best["reasoning"], "content": ""}
    assert len(best["reasoning"]) == 12
    assert asyncio.run(llm.achat("x", **options)) == best
    for more, cause in (
        ({"stream": True}, "stream does not go"),
        ({"max_thinking_tokens": 3}, "max_thinking_tokens does"),
    ):
        with pytest.raises(OptionError, match=cause):
            llm.chat("x", **options, **more)


# ---- grammars after thinking -----------------------------------------------------------------------------------------

GRAMMARS = {
    "json_schema": ({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}, '{"a": 1}'),
    "regex": (r"[a-c]{2,4}/[0-9]", "abc/7"),
    "choice": (["yes", "no", 'per"haps'], 'per"haps'),
    "grammar": ('start: word " start " word\nword: /[a-z]+/', "re start again"),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_is_of_the_answer(llm, name):
    pytest.importorskip("llguidance")
    given, answer = GRAMMARS[name]
    says = f"Hm, [1]?{CLOSED}{answer}"
    reply = llm.chat("x", **{name: given}, logits_processor=Says(llm, says), max_tokens=80, **THINK)
    assert (reply["reasoning"], reply["content"]) == ("Hm, [1]?", answer)
    assert reply["content"].finish_reason == "stop"
    hot = llm.chat("x", **{name: given}, logits_processor=Says(llm, f"{CLOSED}zzz zzzzzzzz"), max_tokens=12, **THINK)
    assert not hot["content"].startswith("zzz zzz"), "what the grammar forbids is not written"
    plain = llm.chat("x", **{name: given}, logits_processor=Says(llm, answer), max_tokens=80)
    assert (plain.get("reasoning"), plain["content"]) == (None, answer)


def test_a_compiled_grammar_is_of_a_whole_text(llm):
    pytest.importorskip("llguidance")
    with pytest.raises(OptionError, match="give its source"):
        llm.chat("x", grammar=llm.grammar(choice=["a"]), **THINK)


@pytest.mark.parametrize("search", [{"dola_layers": "high"}, {"guidance_scale": 1.5}, {"guidance_scale": 0.5, "n": 2}])
def test_searches_close_the_thinking(llm, search):
    replies = llm.chat("x", max_thinking_tokens=5, max_tokens=30, seed=2, **search, **THINK)
    closed = llm.tokenize(CLOSED, bos=False, special=True)
    for reply in replies if isinstance(replies, list) else [replies]:
        assert reply["content"].tokens[5 : 5 + len(closed)] == closed


def test_what_draws_nothing_closes_no_thinking(llm):
    with pytest.raises(OptionError, match="does not go with penalty_alpha"):
        llm.chat("x", max_thinking_tokens=5, penalty_alpha=0.6, top_k=4, **THINK)
