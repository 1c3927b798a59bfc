"""The turns of a conversation, and the format in which a model without a chat template reads them."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError, TokenizerError
from fastllm.chat import ChatTemplate, Conversation, Llama2Format, chat_format
from fastllm.tokenizer import from_blob
from helpers import writers

# The template of the repository meta-llama/Llama-2-7b-chat-hf, which Meta's chat_completion was turned into. It writes
# a space before EOS; llama2.c and we do not, so that an answer keeps the tokens with which it was written.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def model(tokenizer):
    def tokenize(text):
        return [1, *tokenizer.encode(text)]

    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenize, path="model")


@pytest.fixture(scope="module")
def llama2():
    return model(from_blob("llama2.c", writers.tokenizer_bin(writers.tokenizer_words())))


contents = st.text("ab \n<>[]/", max_size=8)
messages = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), contents).map(
        lambda pair: {"role": pair[0], "content": pair[1]}
    ),
    max_size=6,
)


# ---- Llama 2's format ------------------------------------------------------------------------------------------------


@given(st.none() | contents, st.lists(contents, min_size=1, max_size=5))
def test_llama_2_is_what_its_template_writes(llama2, system, texts):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    tokenizer = from_blob("letters", b"<unk>\na")
    tokenizer.roles = {"bos_token": "{", "eos_token": "}"}
    expected = ChatTemplate(tokenizer, LLAMA2).render(turns).replace(" }", "}")
    ours = chat_format(llama2)
    assert isinstance(ours, Llama2Format)
    assert ours.render(turns) == expected.replace("{", "").replace("}", "")
    ids = []
    for text in expected.split("{")[1:]:
        ids += [*llama2.tokenize(text.removesuffix("}")), *[2] * text.endswith("}")]
    assert ours.encode(turns) == ids


@given(messages)
def test_llama_2_refuses_what_its_template_refuses(llama2, turns):
    roles = [turn["role"] for turn in turns if turn is not turns[0] or turn["role"] != "system"]
    good = roles and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))
    if good:
        assert chat_format(llama2).encode(turns)[0] == 1
    else:
        with pytest.raises(OptionError, match=r"take turns|at least one message"):
            chat_format(llama2).encode(turns)


def test_llama_2_knows_no_variables(llama2):
    with pytest.raises(OptionError, match="model has no chat template, and Llama 2's format knows no enable_thinking"):
        chat_format(llama2).encode([{"role": "user", "content": "hi"}], enable_thinking=False)
    with pytest.raises(OptionError, match="content is a list"):
        chat_format(llama2).encode([{"role": "user", "content": []}])


def test_a_template_comes_first(llama2):
    tokenizer = from_blob("llama2.c", writers.tokenizer_bin(writers.tokenizer_words()))
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert isinstance(chat_format(model(tokenizer)), ChatTemplate)


def test_no_template():
    with pytest.raises(TokenizerError, match=r"model has no chat template: neither tokenizer_config\.json, .*GGUF"):
        chat_format(model(from_blob("letters", b"<unk>\na")))


# ---- turns -----------------------------------------------------------------------------------------------------------


@given(messages)
def test_turns_go_from_both_ends(turns):
    """forget takes the oldest turn, undo the last one, and both leave the system prompt."""
    talk = Conversation(turns)
    questions = sum(turn["role"] == "user" for turn in turns)
    system, last = talk.system, [turn for turn in turns if turn["role"] == "user"][-1:]
    left = questions
    while talk.forget():
        left -= 1
        assert talk.system == system
        assert talk.messages[system is not None :][0]["role"] == "user"
        assert sum(turn["role"] == "user" for turn in talk.messages) == left
        assert turns[-len(talk.messages) + (system is not None) :] == talk.messages[system is not None :]
    assert left == min(questions, 1)
    assert talk.undo()[:1] == last
    assert talk.undo() == []
    assert talk.system == system


@given(messages)
def test_undo_takes_back_a_question(turns):
    talk = Conversation(turns)
    talk.say("so?")
    talk.messages.append({"role": "assistant", "content": "so."})
    assert talk.undo() == [{"role": "user", "content": "so?"}, {"role": "assistant", "content": "so."}]
    assert talk.messages == turns


@given(messages, contents)
def test_a_system_prompt_is_replaced(turns, text):
    talk = Conversation(turns)
    rest = turns[talk.system is not None :]
    talk.system = text
    assert talk.messages == [{"role": "system", "content": text}, *rest]
    talk.system = None
    assert talk.messages == rest
