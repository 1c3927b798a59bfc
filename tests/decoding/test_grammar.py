"""Grammars: what they allow, in vocabularies of every kind, and what is refused."""

import json
import random
import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import OptionError, TokenizerError
from fastllm.decoding.grammar import Grammars
from fastllm.tokenizer import from_blob
from fastllm.tokenizer.kinds import pack
from fastllm.tokenizer.search import read
from helpers import vocabularies, writers

END = 2  # a special token of the vocabulary of most tests
WORDS = from_blob("llama2.c", writers.tokenizer_bin(writers.tokenizer_words()))
PIECES = WORDS.stream().pieces


@pytest.fixture(scope="module")
def grammars():
    return Grammars(300, WORDS)


def allowed(mask, size=300):
    """The tokens of a mask."""
    assert len(mask) * 8 >= -(-size // 32) * 32
    return {i for i in range(size) if mask[i >> 3] >> (i & 7) & 1}


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def _json(folder):
    return read(folder / "tokenizer.json", vocabularies.llama_json(folder).get_vocab_size())


def _byte_level(folder):
    vocabularies.byte_level(vocabularies.gpt2_split()).save(str(folder / "tokenizer.json"))
    return read(folder / "tokenizer.json", 900)


def _pieces(folder):
    return read(folder / "tokenizer.model", vocabularies.sentence_pieces(folder).vocab_size())


def _unigram(folder):
    vocabularies.unigram(folder / "tokenizer.model")
    return read(folder / "tokenizer.model", 1000)


def _gguf_pieces(folder):
    return from_blob("gguf", vocabularies.gguf_pieces(vocabularies.sentence_pieces(folder), prefix=True))


def _gguf_bytes(_):
    library = vocabularies.byte_level(vocabularies.gpt2_split())
    return from_blob("gguf", vocabularies.gguf_bytes(library, "gpt-2", add_bos_token=True, eot_token_id=3))


def _tekken(folder):
    pytest.importorskip("transformers")
    (folder / "tekken.json").write_bytes(vocabularies.tekken())
    return read(folder / "tekken.json", 1200)


def _llama2c(_):
    return WORDS


KINDS = [_json, _byte_level, _pieces, _unigram, _gguf_pieces, _gguf_bytes, _tekken, _llama2c]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_vocabulary(tmp_path, make):
    """Random tokens that a grammar allows are shown as a text that follows it, with spaces at its start too."""
    words = make(tmp_path)
    size = words.size + 5  # a model's vocabulary may be padded
    grammars, rng = Grammars(size, words), random.Random(1)
    schema = {"type": "array", "items": {"enum": ["the world", "é 世", 12, None]}, "minItems": 1, "maxItems": 3}
    cases = [({"json_schema": schema}, None), ({"regex": " [a-z]{1,5} ?x"}, " [a-z]{1,5} ?x")]
    cases += [({"choice": [" the", "the end", "Привет 👩"]}, " the|the end|Привет 👩")]
    for options, pattern in cases:
        grammar = grammars.compile(**options)
        for _ in range(20):
            text = _shown(words, grammar, _walk(grammar, rng, size))
            if pattern is None:
                assert all(one in schema["items"]["enum"] for one in json.loads(text))
            else:
                assert re.fullmatch(pattern, text), text


def _walk(grammar, rng, size):
    """Random tokens up to the end of a text."""
    matcher, tokens = grammar.matcher((0,)), []
    while not matcher.follow(tokens):
        token = rng.choice(sorted(allowed(matcher.masks(tokens)[0], size)))
        if token == 0:
            break
        tokens.append(token)
        assert len(tokens) < 300
    return tokens


def _shown(words, grammar, tokens):
    stream = words.stream(grammar.previous)
    return "".join(map(stream.push, tokens)) + stream.flush()


def test_special_tokens_have_names(tmp_path):
    words = _byte_level(tmp_path)
    end = words.token_id("<|im_end|>")
    matcher = Grammars(words.size, words).compile(grammar='start: "a" <|im_end|> "b"').matcher(())
    a = words.token_id("a")
    assert allowed(matcher.masks([a])[0], words.size) == {end}
    assert matcher.allowed([a], [end, words.token_id("b")]) == 2


def test_no_vocabulary_for_a_grammar():
    words = vocabularies.by_id(vocabularies.word_pieces(lower=True))
    made = from_blob("wordpiece", pack({"vocab.txt": "\n".join(words).encode(), "tokenizer_config.json": b"{}"}))
    with pytest.raises(TokenizerError, match="tokens are always shown in the same way"):
        Grammars(made.size, made).compile(regex="a")
    with pytest.raises(TokenizerError, match=r"^a grammar needs a tokenizer: there is none$"):
        Grammars(300, TokenizerError("there is none")).compile(regex="a")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(OptionError, match=re.escape("needs the llguidance library: pip install 'fastllm[grammar]'")):
        Grammars(300, WORDS).compile(regex="a")


# ---- the state of a text ---------------------------------------------------------------------------------------------

CHOICES = ["there", "the", "then", "a", "once", "another é", "théâtre"]


def _oracle(text):
    """The tokens that may follow a text: those with which it still begins a choice, and where it is one, the end."""
    found = {i for i, piece in enumerate(PIECES) if piece and any(c.encode().startswith(text + piece) for c in CHOICES)}
    return found | ({END} if text.decode("utf-8", "replace") in CHOICES else set())


@given(st.data())
def test_the_state_follows_from_the_tokens(grammars, data):
    """However a text is taken: at once, token by token, back and on again, interrupted, or in a copy."""
    tokens = _walk(grammars.compile(choice=CHOICES), random.Random(data.draw(st.integers(0, 99))), 300)
    matcher = grammars.compile(choice=CHOICES).matcher((END,))
    for _ in range(6):
        count = data.draw(st.integers(0, len(tokens)))
        text = b"".join(PIECES[token] for token in tokens[:count])
        if data.draw(st.booleans()):
            matcher = matcher.copy()
        if data.draw(st.booleans()):
            matcher._known = -1  # as an interrupt leaves it
        assert matcher.follow(tokens[:count]) == (_oracle(text) == {END})
        guesses = tokens[count : count + data.draw(st.integers(0, 3))]
        assert matcher.allowed(tokens[:count], guesses) == len(guesses)
        masks = matcher.masks(tokens[:count], guesses)
        for i, mask in enumerate(masks):
            expected = _oracle(text + b"".join(PIECES[token] for token in guesses[:i]))
            # Of several tokens for what must follow, the grammar takes the tokenizer's own; of the same bytes, one.
            assert allowed(mask) <= expected
            assert (END in allowed(mask)) == (END in expected)
            assert {PIECES[token][:1] for token in allowed(mask)} == {PIECES[token][:1] for token in expected}
        assert len(masks) == len(guesses) + 1


def test_forced_tokens_are_allowed(grammars):
    matcher = grammars.compile(regex="another one (here|there)").matcher(())
    forced = matcher.forced([])
    assert b"".join(PIECES[token] for token in forced) == b"another one"
    assert matcher.allowed([], forced) == len(forced)
    assert matcher.allowed([], [*forced, PIECES.index(b"x")]) == len(forced)


def test_what_a_grammar_does_not_allow(grammars):
    matcher = grammars.compile(choice=["the"]).matcher(())
    with pytest.raises(OptionError, match=r"^choice: .*satisfy"):
        matcher.follow([PIECES.index(b"x")])


def test_compiled_once(grammars):
    one = grammars.compile(json_schema={"type": "integer"})
    assert grammars.compile(json_schema='{"type": "integer"}') is one
    assert grammars.compile(grammar=one) is one
    assert grammars.compile() is None


# ---- what is refused -------------------------------------------------------------------------------------------------

LOOP: dict[str, object] = {}
LOOP["properties"] = LOOP
DEEP = '{"items":' * 200 + "{}" + "}" * 200
BAD = {
    "two": ({"regex": "a", "choice": ["b"]}, "regex and choice do not go together"),
    "regex number": ({"regex": 3}, "regex must be the text of a regular expression, not 3"),
    "regex empty": ({"regex": ""}, "regex is an empty text"),
    "regex open": ({"regex": "(a"}, "regex is not possible: .*unclosed group"),
    "regex look": ({"regex": "(?=a)b"}, "regex is not possible: .*look-around"),
    "regex nothing": ({"regex": r"[^\s\S]"}, "regex: a text can be begun that can never be completed"),
    "regex bomb": ({"regex": "((a{1000}){1000}){1000}"}, "regex: lexer error: too many"),
    "regex long": ({"regex": "a" * (1 << 21)}, "regex has 2,097,152 characters"),
    "regex surrogate": ({"regex": "\ud800"}, "regex is not UTF-8"),
    "choice text": ({"choice": "yes"}, "choice must be a list of texts, not 'yes'"),
    "choice none": ({"choice": []}, "choice must be a list of texts"),
    "choice empty": ({"choice": ["a", ""]}, "choice has an empty text"),
    "choice number": ({"choice": ["a", 1]}, "choice has 1, which is no text"),
    "lark": ({"grammar": "hello"}, "grammar is not possible: .*Expected"),
    "lark name": ({"grammar": "start: foo"}, "grammar is not possible: .*foo"),
    "lark endless": ({"grammar": 'start: "a" x\nx: x "b"'}, "grammar: a text can be begun that can never be"),
    "gbnf root": ({"grammar": 'rot ::= "a"'}, "grammar is no GBNF: No 'root' rule"),
    "gbnf open": ({"grammar": "root ::= ("}, "grammar is no GBNF: Expected"),
    "gbnf deep": ({"grammar": "root ::= " + "(" * 9999}, "grammar is nested too deeply"),
    "schema false": ({"json_schema": False}, "json_schema must be a dict, JSON text, a pydantic model or True"),
    "schema list": ({"json_schema": "[1]"}, "json_schema must be a dict"),
    "schema text": ({"json_schema": "{"}, "json_schema is no JSON"),
    "schema key": ({"json_schema": {1: 2}}, "json_schema has the key 1, which is no text"),
    "schema set": ({"json_schema": {"enum": {1}}}, "json_schema cannot be written as JSON"),
    "schema nan": ({"json_schema": {"const": float("nan")}}, "json_schema cannot be written as JSON"),
    "schema loop": ({"json_schema": LOOP}, "json_schema is nested more than 100 deep"),
    "schema deep": ({"json_schema": DEEP}, "json_schema is nested more than 100 deep"),
    "schema type": ({"json_schema": {"type": "foo"}}, "json_schema is not possible: Invalid type: foo"),
    "schema not": ({"json_schema": {"not": {}}}, r'Unimplemented keys: \["not"\]'),
    "schema if": ({"json_schema": {"if": {}, "then": {}}}, r'Unimplemented keys: \["if", "then"\]'),
    "schema unique": ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "schema lenient": ({"json_schema": {"not": {}, "x-guidance": {"lenient": True}}}, r'\["not"\]'),
    "schema old": ({"json_schema": {"items": {"divisibleBy": 3}}}, "json_schema has divisibleBy, which is not supp"),
    "schema typo": ({"json_schema": {"type": "string", "minlength": 3}}, "no keyword: is minLength meant"),
    "schema remote": ({"json_schema": {"$ref": "http://example.org/a"}}, "example.org/a' is not present"),
    "schema pattern": ({"json_schema": {"pattern": "("}}, "json_schema is not possible: .*unclosed group"),
    "schema format": ({"json_schema": {"type": "string", "format": "hello"}}, "Unknown format: hello"),
    "schema number": ({"json_schema": {"minimum": 10**30}}, "takes more than 64 bits"),
    "schema multiple": ({"json_schema": {"multipleOf": 1234567}}, "multipleOf of 1234567: its digits may go up to"),
    "schema nothing": ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "Unsatisfiable"),
    "schema enum": ({"json_schema": {"enum": []}}, "Unsatisfiable"),
    "schema all": ({"json_schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "Unsatisfiable"),
    "schema itself": ({"json_schema": {"$ref": "#"}}, "its values would have to hold themselves"),
    "schema endless": (
        {"json_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
        "its values would have to hold themselves",
    ),
    "schema bomb": (
        {"json_schema": {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "abcd"]} for i in range(10)]}},
        "json_schema is not possible: schema too large",
    ),
    "schema long": ({"json_schema": {"title": "x" * (1 << 21)}}, "json_schema has 2,097,16. characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(grammars, name):
    """In one sentence that names the option, and soon."""
    options, said = BAD[name]
    start = time.process_time()
    with pytest.raises(OptionError, match=said) as caught:
        grammars.compile(**options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("a text follows one grammar", *options))
    assert time.process_time() - start < 10


def test_of_another_model(grammars):
    with pytest.raises(OptionError, match="grammar was compiled for another model"):
        Grammars(301, WORDS).compile(grammar=grammars.compile(regex="a"))
    with pytest.raises(OptionError, match="given as grammar, not as regex"):
        grammars.compile(regex=grammars.compile(regex="a"))


def test_values_that_may_end(grammars):
    """A schema may refer to itself where a value need not hold another one."""
    tree = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert grammars.compile(json_schema={**tree, "required": ["b"]}) is not None
    with pytest.raises(OptionError, match="hold themselves"):
        grammars.compile(json_schema={**tree, "required": ["a"]})
