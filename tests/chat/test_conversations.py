"""Conversations become the ids of transformers' apply_chat_template; templates are found, and turns end."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import OptionError, TokenizerError
from fastllm.chat import ChatTemplate
from fastllm.tokenizer import decode, find, from_blob
from helpers import vocabularies

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = """{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% for m in messages %}{% if m['role'] == 'user' and loop.last %}[{{ loop.index0 ~ '/' ~ loop.length }}]{% endif %}
<|im_start|>{{ m['role'] | upper }}<|im_end|>

{{ m['content'].split('#')[-1].lstrip() }}{% generation %}{{ eos_token }}{% endgeneration %}{% endfor %}"""
ALTERNATING = """{% set ns = namespace(system='') %}
{% if messages[0].role == 'system' %}
{% set ns.system = messages[0].content %}{% set messages = messages[1:] %}
{% endif %}
{{ bos_token }}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{%- if m.role == 'user' %}[INST] {{ ns.system if loop.first }}{{ m.content }} [/INST]
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}
{%- if loop.last %}{% break %}{% endif %}
{%- endfor -%}"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "alternating": ALTERNATING}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {}}


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request, tmp_path_factory):
    """Our template and transformers' tokenizer for the same folder."""
    folder = tmp_path_factory.mktemp(request.param)
    vocabularies.byte_level(vocabularies.gpt2_split()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": TEMPLATES[request.param]}))
    library = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return ChatTemplate(find(folder, 2000)), library


contents = st.lists(st.sampled_from([*vocabularies.WORDS, " ", "\n", "#", "  "]), max_size=12).map("".join)


@settings(max_examples=15)
@given(data=st.data())
def test_ids_are_those_of_transformers(pair, data):
    ours, library = pair
    texts = data.draw(st.lists(contents, min_size=1, max_size=4))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if data.draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": data.draw(contents)})
    for prompt in (True, False):
        text = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(messages, add_generation_prompt=prompt) == text
        expected = library(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(messages, add_generation_prompt=prompt) == expected


@settings(max_examples=40)
@given(data=st.data())
def test_a_message_to_continue(pair, data):
    """The text ends where transformers cuts it, or both refuse: where a template drops a part of the message."""
    ours, library = pair
    texts = data.draw(st.lists(contents, min_size=1, max_size=3))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        text = library.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    except ValueError:
        with pytest.raises(OptionError, match=r"^continue_final_message: "):
            ours.render(messages, continue_final_message=True)
        with pytest.raises(OptionError, match=r"^continue_final_message: "):
            ours.encode(messages, continue_final_message=True)
        return
    assert ours.render(messages, continue_final_message=True) == text
    expected = library(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(messages, continue_final_message=True) == expected


def test_parts_to_continue(tmp_path):
    """The last part that is a text is continued."""
    vocabularies.byte_level(vocabularies.gpt2_split()).save(str(tmp_path / "tokenizer.json"))
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text or part.type }}|{% endfor %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    ours, library = ChatTemplate(find(tmp_path, 2000)), transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b "}, {"type": "x"}]}
    ]
    text = library.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ours.render(messages, continue_final_message=True) == text == "a |b "
    for content in ([{"type": "x"}], [], None):
        with pytest.raises(OptionError, match="continue_final_message: the last message has no text"):
            ours.render([{"role": "user", "content": content, "name": "n"}], continue_final_message=True)


@settings(max_examples=25)
@given(data=st.data())
def test_a_continued_message_writes_no_special_tokens(pair, data):
    ours, library = pair
    text = data.draw(st.lists(st.sampled_from([*HOSTILE, "\ufdd2", "\ufdd2 "]), max_size=8).map("".join))
    special = {library.convert_tokens_to_ids(text) for text in vocabularies.SPECIAL}

    def written(content):
        ids = ours.encode([{"role": "user", "content": content}], continue_final_message=True)
        return [i for i in ids if i in special]

    assert written(f"x{text}x") == written("x")


def test_what_the_template_reads(pair):
    """A template gets tools in the form in which transformers passes them."""
    ours, library = pair
    messages = [{"role": "user", "content": "é <b>"}]
    tools = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {}}}]
    text = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, tools=tools)
    assert ours.render(messages, tools=tools) == text


HOSTILE = [
    "<|im_end|>",
    "<|im_start|>",
    "</s>",
    "<s>",
    "<|im_",
    "end|>",
    "<|im_end|",
    "|>",
    " ",
    "x",
    "<",
    ">",
    "\ufdd0",
]


@settings(max_examples=25)
@given(data=st.data())
def test_messages_write_no_special_tokens(pair, data):
    """Special tokens come from the template only, never from a message, whose text is complete."""
    ours, library = pair
    hostile = st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)
    texts = data.draw(st.lists(hostile, min_size=1, max_size=3))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    special = {library.convert_tokens_to_ids(text) for text in vocabularies.SPECIAL}
    harmless = [{**message, "content": "x"} for message in messages]
    ids = ours.encode(messages)
    assert [i for i in ids if i in special] == [i for i in ours.encode(harmless) if i in special]
    shown = ours.render([{**m, "content": m["content"].replace("\ufdd0", "\ufffd")} for m in messages])
    assert library.decode(ids, clean_up_tokenization_spaces=False) == shown


def test_control_tokens_that_are_not_special(tmp_path):
    """<think>, a control token only because of the template: text in a user's message, a token in the assistant's."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.add_tokens(["<think>", "<other>"])
    library.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }};{% endfor %}<think>"
    (tmp_path / "chat_template.jinja").write_text(template)
    ours = ChatTemplate(find(tmp_path, 2000))
    think, other = library.token_to_id("<think>"), library.token_to_id("<other>")
    ids = ours.encode([{"role": "user", "content": "<think><other>"}])
    assert [i for i in ids if i in (think, other)] == [other, think]
    ids = ours.encode([{"role": "assistant", "content": "<think>"}])
    assert ids.count(think) == 2


def test_no_second_bos(tmp_path):
    """If the template writes BOS, the tokenizer adds no second one."""
    vocabularies.llama_json(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "add_bos_token": True}))
    (tmp_path / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    )
    tokenizer = find(tmp_path, 900)
    ids = ChatTemplate(tokenizer).encode([{"role": "user", "content": "the ocean"}])
    assert tokenizer.prefix == (1,)
    assert ids == [1, *tokenizer.encode("the ocean")]


# ---- where the template is, what ends a turn -------------------------------------------------------------------------


def test_where_templates_are(tmp_path):
    vocabularies.byte_level(vocabularies.gpt2_split()).save(str(tmp_path / "tokenizer.json"))
    assert find(tmp_path, 2000).chat_template is None
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}]
    for name, text, found in (
        ("tokenizer_config.json", json.dumps({"chat_template": "config"}), "config"),
        ("tokenizer_config.json", json.dumps({"chat_template": named}), "list"),
        ("chat_template.json", json.dumps({"chat_template": "json"}), "json"),
        ("chat_template.jinja", "jinja", "jinja"),
    ):
        (tmp_path / name).write_text(text)
        tokenizer = find(tmp_path, 2000)
        assert tokenizer.chat_template == found
        assert from_blob(tokenizer.kind, tokenizer.blob).chat_template == found
    level = vocabularies.byte_level(vocabularies.gpt2_split())
    metadata = json.loads(vocabularies.gguf_bytes(level, "gpt-2"))
    metadata["tokenizer.chat_template"] = CHATML
    assert from_blob("gguf", json.dumps(metadata).encode()).chat_template == CHATML


def test_ends_of_a_turn(tmp_path):
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": CHATML}))
    ends = {library.token_to_id(text) for text in ("</s>", "<|im_end|>", "<|endoftext|>")}
    assert set(ChatTemplate(find(tmp_path, 2000)).stop) == ends
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5]}))
    assert set(ChatTemplate(find(tmp_path, 2000)).stop) == {7, 5, *ends}
    blob = vocabularies.gguf_bytes(library, "gpt-2", eot_token_id=9)
    assert set(from_blob("gguf", blob).ends) == {9, *ends}


@pytest.mark.parametrize("other", ["<|eot_id|>", "<end_of_turn>", "<|fim_pad|>", "<|end|>"])
def test_ends_that_no_file_names(other):
    """A token that ends turns in some family does so if it is special or added, but not if it is a normal token."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.add_special_tokens([other])
    metadata = json.loads(vocabularies.gguf_bytes(library, "gpt-2"))
    end, kinds = library.token_to_id(other), metadata["tokenizer.ggml.token_type"]
    for kind in (1, 3, 4):  # normal, control, user-defined
        kinds[end] = kind
        tokenizer = from_blob("gguf", json.dumps(metadata).encode())
        assert (end in tokenizer.ends) == (kind != 1)
        assert (decode(tokenizer, [end]) == "") == (kind != 1)


def test_an_end_of_another_type():
    """Old files give all tokens one type; a token with a role counts as special."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    metadata = json.loads(vocabularies.gguf_bytes(library, "gpt-2"))
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = from_blob("gguf", json.dumps(metadata).encode())
    assert tokenizer.encode("a</s>", special=True) == [library.token_to_id("a"), library.token_to_id("</s>")]
    assert decode(tokenizer, [library.token_to_id("</s>")]) == ""


def test_an_end_that_is_text(tmp_path):
    """A role's token that is an ordinary word is not made special."""
    metadata = json.loads(vocabularies.gguf_pieces(vocabularies.sentence_pieces(tmp_path), prefix=True))
    tokens = metadata["tokenizer.ggml.tokens"]
    end = tokens.index("\u2581the")
    tokenizer = from_blob("gguf", json.dumps(metadata | {"tokenizer.ggml.eos_token_id": end}).encode())
    assert end in tokenizer.ends
    assert tokenizer.encode("the") == [end]
    assert decode(tokenizer, [end]) == "the"


def test_a_template_that_is_no_text(tmp_path):
    vocabularies.byte_level(vocabularies.gpt2_split()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_bytes("{{ messages }}".encode("utf-16"))
    with pytest.raises(TokenizerError, match="its chat template's file is no UTF-8 text: byte 0 is not"):
        find(tmp_path, 2000)


def test_ends_that_are_not_special(tmp_path):
    """Added tokens that are not special: Qwen 2.5's <|fim_pad|>, and a </s> that is HTML."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.add_tokens(["<|fim_pad|>", "<|eot_id|>"])
    state = json.loads(library.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "</s>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    ends = [library.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|eot_id|>")]
    assert set(find(tmp_path, 2000).ends) == set(ends)


def test_pieces_that_are_taken_whole(tmp_path):
    """SentencePiece recognizes user-defined pieces everywhere. Gemma's end turns, so messages must not write them."""
    library = vocabularies.sentence_pieces(tmp_path)
    template = "{% for message in messages %}<start_of_turn>{{ message.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    start = library.piece_to_id("<start_of_turn>")
    metadata = json.loads(vocabularies.gguf_pieces(library, prefix=True)) | {"tokenizer.chat_template": template}
    for tokenizer in (find(tmp_path, 2000), from_blob("gguf", json.dumps(metadata).encode())):
        ids = ChatTemplate(tokenizer).encode([{"role": "user", "content": "a<start_of_turn>b"}])
        assert ids.count(start) == 1
        assert decode(tokenizer, ids).count("<start_of_turn>") == 2


def test_an_end_that_is_none():
    """gpt-oss ends each message with <|end|>, which is no end of the turn: <|return|> and <|call|> are."""
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    library.add_special_tokens(["<|end|>", "<|return|>", "<|call|>"])
    ends = from_blob("gguf", vocabularies.gguf_bytes(library, "gpt-2")).ends
    found = [library.token_to_id(text) in ends for text in ("<|end|>", "<|return|>", "<|call|>")]
    assert found == [False, True, True]
