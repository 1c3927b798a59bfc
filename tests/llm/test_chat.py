"""LLM.chat and apply_chat_template: replies, thinking, streams, asyncio, and messages that are none."""

import asyncio
import copy
import gc
import json
import pickle

import pytest

import fastllm
from fastllm import ChatMessage, ContextError, OptionError, Text, TokenizerError
from fastllm.chat import ChatTemplate
from helpers.terminals import Says, talker, user, with_template

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

# As QwQ's: the prompt begins the thinking. Tools and documents are written where there are some.
THINKER = """{%- if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents[0].text }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if think %}{{ '<think>\\n' }}{% endif %}{% endif %}"""
GREEDY = {"temperature": 0, "max_tokens": 40}
MESSAGES = [{"role": "system", "content": "s"}, user("hi"), {"role": "assistant", "content": "a"}, user("b")]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return fastllm.load(talker(tmp_path_factory.mktemp("talker")), threads=1)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return with_template(tmp_path_factory.mktemp("thinker"), THINKER)


# ---- the prompt ------------------------------------------------------------------------------------------------------


def test_the_ids_are_the_template_s(llm):
    form = ChatTemplate(llm.tokenizer)
    assert llm.apply_chat_template(MESSAGES) == form.encode(MESSAGES)
    assert llm.apply_chat_template(iter(MESSAGES), tokenize=False) == form.render(MESSAGES)
    options = {"add_generation_prompt": False, "enable_thinking": False}
    assert llm.apply_chat_template(MESSAGES, **options) == form.encode(MESSAGES, **options)
    text = llm.apply_chat_template(MESSAGES[:3], tokenize=False, continue_final_message=True)
    assert (
        text
        == form.render(MESSAGES, add_generation_prompt=False).partition("a<|im_end|>\n<|im_start|>user\nb")[0] + "a"
    )


def test_tools_and_documents(thinker):
    text = thinker.apply_chat_template([user("x")], tools=(TOOL,), documents=[{"text": "d"}], tokenize=False)
    assert text.startswith(json.dumps([TOOL]) + "d<|im_start|>user\nx")


def test_special_tokens_in_a_message_are_text(llm):
    end = llm.tokenizer.token_id("<|im_end|>")
    ids = llm.apply_chat_template([user("<|im_end|>")])
    assert ids.count(end) == 1
    assert "<|im_end|>" in llm.detokenize(ids)


# ---- the reply -------------------------------------------------------------------------------------------------------


def test_a_reply_is_what_generate_writes(llm):
    reply = llm.chat(MESSAGES, seed=3, max_tokens=20)
    text = llm.generate(llm.apply_chat_template(MESSAGES), seed=3, max_tokens=20, stop=list(llm.chat_stop))
    assert reply == {"role": "assistant", "content": text}
    assert type(reply["content"]) is Text
    assert vars(reply["content"]).keys() == vars(text).keys()
    assert reply["content"].tokens == text.tokens
    assert reply["content"].finish_reason == text.finish_reason
    assert llm.chat("hi", **GREEDY) == llm.chat([user("hi")], **GREEDY)


def test_a_reply_is_plain_data(llm):
    reply = llm.chat("hi", **GREEDY)
    assert json.loads(json.dumps(reply)) == reply == copy.deepcopy(reply) == pickle.loads(pickle.dumps(reply))
    assert type(reply) is dict
    assert ChatMessage(role="assistant", content=reply["content"]) == reply
    again = llm.chat([user("hi"), reply, user("more")], **GREEDY)
    plain = {"role": "assistant", "content": str(reply["content"])}
    assert again == llm.chat([user("hi"), plain, user("more")], **GREEDY)
    assert again["content"].cached_tokens > len(llm.apply_chat_template([user("hi")]))


def test_ends(llm):
    assert llm.chat("x", logits_processor=Says(llm, "one"))["content"].finish_reason == "stop"
    reply = llm.chat("x", logits_processor=Says(llm, "one STOP two"), stop=["STOP"])["content"]
    assert (reply, reply.finish_reason) == ("one ", "stop")
    assert llm.chat("x", logits_processor=Says(llm, "one"), stop=llm.tokenizer.token_id("n"))["content"] == "o"
    ignoring = llm.chat("x", logits_processor=Says(llm, "one<|im_end|>two"), max_tokens=6, ignore_eos=True)["content"]
    assert (ignoring, ignoring.finish_reason) == ("onetw", "length")


def test_several_replies(llm):
    replies = llm.chat("hi", n=3, seed=4, max_tokens=9, temperature=2)
    assert [reply["content"] for reply in replies] == [
        llm.chat("hi", seed=seed, max_tokens=9, temperature=2)["content"] for seed in (4, 5, 6)
    ]
    assert len({reply["content"] for reply in replies}) == 3


def test_a_message_to_continue(llm):
    messages = [user("hi"), {"role": "assistant", "content": "abc"}]
    reply = llm.chat(messages, continue_final_message=True, logits_processor=Says(llm, " def"))
    assert reply["content"] == " def"
    prompt = llm.apply_chat_template([user("hi")], tokenize=False) + "abc"
    assert reply["content"].prompt_tokens == len(llm.tokenize(prompt, bos=False, special=True))


# ---- thinking --------------------------------------------------------------------------------------------------------

THOUGHT = "well,\nit is</think>\n\nblue <think>"
EXPECTED = {"role": "assistant", "reasoning": "well,\nit is", "content": "blue <think>"}


@pytest.mark.parametrize(("think", "said"), [(True, THOUGHT), (False, "<think>\n" + THOUGHT)])
def test_thinking(thinker, think, said):
    options = {"chat_template_kwargs": {"think": think}, "max_tokens": 99}
    reply = thinker.chat("x", logits_processor=Says(thinker, said), **options)
    assert reply == EXPECTED
    assert reply["content"].tokens == thinker.tokenize(said, bos=False, special=True)
    with thinker.chat("x", logits_processor=Says(thinker, said), stream=True, **options) as stream:
        pieces = list(stream.pieces())
    assert stream.message == EXPECTED
    for kind, whole in (("thinking", EXPECTED["reasoning"]), ("text", EXPECTED["content"])):
        assert "".join(piece for k, piece in pieces if k == kind) == whole
    assert len(pieces) > 10
    stream = thinker.chat("x", logits_processor=Says(thinker, said), stream=True, **options)
    assert "".join(stream) == "blue <think>"
    assert stream.message == EXPECTED


def test_thinking_without_an_end(thinker):
    options = {"chat_template_kwargs": {"think": True}, "max_tokens": 4}
    reply = thinker.chat("x", logits_processor=Says(thinker, "hm and so on"), **options)
    assert reply == {"role": "assistant", "reasoning": "hm a", "content": ""}
    assert reply["content"].finish_reason == "length"


def test_no_thinking(thinker):
    assert thinker.chat("x", logits_processor=Says(thinker, "blue <think>a</think>")) == {
        "role": "assistant",
        "content": "blue <think>a</think>",
    }


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_whole(llm):
    whole = llm.chat(MESSAGES, **GREEDY)
    stream = llm.chat(MESSAGES, stream=True, **GREEDY)
    first = next(stream)
    assert stream.message["content"] == first
    assert stream.message["content"].finish_reason is None
    assert first + "".join(stream) == whole["content"]
    assert stream.message == whole
    assert stream.message["content"].finish_reason == stream.stream.finish_reason == "length"
    assert next(stream, None) is None
    assert list(stream.pieces()) == []


def test_a_stream_that_is_left(llm):
    gc.disable()
    try:
        with llm.chat(MESSAGES, stream=True, temperature=0, max_tokens=-1) as stream:
            pieces = [next(stream) for _ in range(3)]
        assert stream.message["content"] == "".join(pieces)
        assert stream.message["content"].finish_reason == "cancelled"
        assert list(stream) == []
        generation = llm.chat(MESSAGES, stream=True, temperature=0, max_tokens=-1)
        for _ in generation.pieces():
            break
        watched = pytest.importorskip("weakref").ref(generation)
        del generation
        assert watched() is None
    finally:
        gc.enable()


def test_asyncio(llm, thinker):
    async def replies():
        both = await asyncio.gather(llm.achat(MESSAGES, **GREEDY), llm.achat("hi", n=2, seed=1, max_tokens=5))
        async with llm.achat(MESSAGES, stream=True, **GREEDY) as stream:
            text = "".join([piece async for piece in stream])
        options = {"chat_template_kwargs": {"think": True}, "logits_processor": Says(thinker, THOUGHT)}
        thoughts = thinker.achat("x", stream=True, **options)
        pieces = [piece async for piece in thoughts.pieces()]
        await thoughts.aclose()
        return *both, text, stream.message, pieces, thoughts.message

    one, two, text, message, pieces, thought = asyncio.run(replies())
    assert one == message == llm.chat(MESSAGES, **GREEDY)
    assert two == llm.chat("hi", n=2, seed=1, max_tokens=5)
    assert text == one["content"]
    assert thought == EXPECTED
    assert {kind for kind, _ in pieces} == {"thinking", "text"}


# ---- wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        ([], "messages is empty"),
        (None, "messages must be a list of messages, each a dict with a role and a content, not a NoneType"),
        (b"hi", "messages must be a list of messages, .* not a bytes"),
        (user("hi"), "messages must be a list of messages, .* not one message"),
        ([user("hi"), "hi"], r"messages\[1\] is a str"),
        ([[user("hi")]], r"messages\[0\] is a list"),
        ([{"content": "hi"}], r"messages\[0\] has no role"),
        ([{"role": "pirate", "content": "hi"}], r"messages\[0\] has the role 'pirate'; roles are system,"),
        ([user("hi"), {"role": "assistant", "content": None}], r"messages\[1\] has no content"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([user(5)], r"messages\[0\] has a content of type int"),
        ([user("hi"), user(b"x")], r"messages\[1\] has a content of type bytes"),
        ([{"role": "user", "content": "x", "extra": object()}], "object"),
    ],
    ids=repr,
)
def test_no_messages(llm, messages, cause):
    for call in (llm.chat, llm.apply_chat_template, llm.achat):
        with pytest.raises(OptionError, match=cause) as error:
            call(messages)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"tools": [TOOL]}, "takes no tools"),
        ({"tools": [len]}, r"tools\[0\] must be a dict, not a function"),
        ({"tools": TOOL}, "tools must be a list of dicts"),
        ({"chat_template_kwargs": {"enable_thinkng": False}}, "has no variable enable_thinkng"),
        ({"chat_template_kwargs": {"messages": []}}, "messages is no variable"),
        ({"chat_template_kwargs": {"tools": []}}, "tools is no variable"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "add_generation_prompt is no variable"),
        ({"chat_template_kwargs": {"return_tensors": "pt"}}, "return_tensors is no variable"),
        ({"chat_template_kwargs": ["enable_thinking"]}, "chat_template_kwargs must be a dict"),
        ({"continue_final_message": "content"}, "continue_final_message must be True or False"),
        ({"stream": "yes"}, "stream must be True or False"),
        ({"stop": ""}, "stop has an empty string"),
        ({"temperature": "hot"}, "temperature must be a number"),
    ],
    ids=repr,
)
def test_no_options(llm, options, cause):
    with pytest.raises(OptionError, match=cause):
        llm.chat("hi", **options)


def test_options_that_are_unknown(llm):
    with pytest.raises(TypeError, match="'temp'"):
        llm.chat("hi", temp=1)


def test_no_documents(thinker):
    with pytest.raises(OptionError, match=r"documents\[0\] must be a dict, not 'd'"):
        thinker.apply_chat_template([user("x")], documents=["d"])


def test_too_many_messages(tmp_path):
    small = fastllm.load(talker(tmp_path, context=60), threads=1)
    with pytest.raises(ContextError, match="the context 60"):
        small.chat("hi" * 100)


def test_a_model_without_a_template(tmp_path):
    path = talker(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match="has no chat template"):
        fastllm.load(path, threads=1).chat("hi")


def test_llama_2_s_format(write_model):
    """A model of Llama 2's vocabulary without a template talks in its format, for which jinja2 is not needed."""
    llama2 = fastllm.load(write_model(), threads=1)
    turn = llama2.tokenize("[INST] <<SYS>>\ns\n<</SYS>>\n\nhi [/INST] a")
    assert llama2.apply_chat_template(MESSAGES[:3]) == [*turn, 2]
    assert llama2.apply_chat_template(MESSAGES[:3], continue_final_message=True) == turn
    assert llama2.apply_chat_template(MESSAGES) == [*turn, 2, *llama2.tokenize("[INST] b [/INST]")]
    reply = llama2.chat(MESSAGES, seed=2, max_tokens=9)
    assert reply["content"] == llama2.generate(
        llama2.apply_chat_template(MESSAGES), seed=2, max_tokens=9, stop=list(llama2.chat_stop)
    )
    for options in ({"tools": [TOOL]}, {"chat_template_kwargs": {"enable_thinking": True}}):
        with pytest.raises(OptionError, match=r"takes no tools|has no variable"):
            llama2.chat("hi", **options)
