"""Texts that follow a grammar: valid or ended by length, and the same alone, in company, guessed, streamed."""

import asyncio
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import fastllm
from fastllm import OptionError, TokenizerError
from fastllm.decoding.grammar import Matcher
from fastllm.engine.generation import Generation
from helpers import writers
from helpers.data import ROOT
from helpers.schemas import schemas

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}
KINDS = [
    {"json_schema": SCHEMA},
    {"regex": "(one|two){2,4}( [a-f]+)?"},
    {"choice": ["yes", "no", "not at all", "naïve 世"]},
    {"grammar": 'start: item ("," item)*\nitem: /[a-z]{1,3}/ "=" NUMBER\nNUMBER: /[0-9]+/'},
    {"grammar": 'root ::= ("yes" | "no") ", " [a-z]+ "."'},
]
# The whole is 500: FASTLLM_TEST_SCHEMAS=500, which takes half a minute.
COUNT = int(os.environ.get("FASTLLM_TEST_SCHEMAS", "40"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random weights whose vocabulary has all bytes, and that ends a text with token 1."""
    folder, cfg = tmp_path_factory.mktemp("grammars"), writers.SMALL
    (folder / "model.bin").write_bytes(writers.v0(cfg, writers.random_weights(cfg)))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words()))
    return fastllm.load(folder / "model.bin", threads=1)


def follows(text, options):
    """Whether a text is what its options ask for."""
    if "json_schema" in options:
        jsonschema.Draft202012Validator(options["json_schema"]).validate(json.loads(text))
        return True
    if "choice" in options:
        return text in options["choice"]
    pattern = options.get("regex") or (
        r"(yes|no), [a-z]+\." if "::=" in options["grammar"] else r"[a-z]{1,3}=[0-9]+(,[a-z]{1,3}=[0-9]+)*"
    )
    return re.fullmatch(pattern, text) is not None


@settings(max_examples=COUNT, suppress_health_check=list(HealthCheck))
@given(schemas())
def test_any_schema(model, schema):
    """Greedy and hot: the text parses and is valid, or ended by length; guesses do not change it."""
    grammar = model.grammar(json_schema=schema)
    for temperature in (0, 1.3):
        options = {"max_tokens": 120, "temperature": temperature, "top_p": 1, "seed": 7, "grammar": grammar}
        text = model.generate("a", **options)
        assert text.finish_reason in ("stop", "length")
        if text.finish_reason == "stop":
            assert follows(text, {"json_schema": schema})
        assert model.generate("a", lookup=True, **options).tokens == text.tokens


def test_schemas_of_real_programs(model):
    """Those that check-jsonschema brings: a text is valid, or the schema is refused by what it uses."""
    vendored = Path(pytest.importorskip("check_jsonschema").__file__).parent / "builtin_schemas" / "vendor"
    files, texts, refused = sorted(vendored.rglob("*.json")), 0, list[str]()
    for file in files:
        schema = json.loads(file.read_text("utf-8"))
        try:
            grammar = model.grammar(json_schema=schema)
        except OptionError as error:
            refused.append(str(error))
            continue
        texts += 1
        for seed in range(3):
            text = model.generate("a", grammar=grammar, seed=seed, temperature=1.2, top_p=1, max_tokens=200)
            assert text.finish_reason == "length" or follows(text, {"json_schema": schema}), file.name
    assert len(files) > 20
    assert texts > 4
    for said in refused:
        assert re.fullmatch("json_schema.*", said), said


@pytest.mark.parametrize("options", KINDS, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("temperature", [0, 1.2])
def test_the_same_in_every_way(model, options, temperature, monkeypatch):
    more = {"temperature": temperature, "top_p": 1, "max_tokens": 100, **options}
    prompts = ["the", " a one", "then the the the the", "é"]
    alone = [model.generate(prompt, seed=3, **more) for prompt in prompts]
    assert any(text.finish_reason == "stop" for text in alone)
    for text in alone:
        assert text.finish_reason == "length" or follows(text, options)
    expected = [text.tokens for text in alone]
    assert [text.tokens for text in model.generate(prompts, seed=[3] * 4, **more)] == expected
    for guesses in ({"lookup": True}, {"draft": model}, {"logprobs": 2}):
        assert [model.generate(prompt, seed=3, **guesses, **more).tokens for prompt in prompts] == expected
    stream = model.generate(prompts[0], seed=3, stream=True, **more)
    assert "".join(stream) == alone[0]
    assert asyncio.run(model.agenerate(prompts[0], seed=3, **more)) == alone[0]
    assert model.generate(prompts[0], seed=2, n=3, **more)[1].tokens == expected[0]
    monkeypatch.setattr(Matcher, "forced", lambda matcher, tokens: [])
    assert [model.generate(prompt, seed=3, **more).tokens for prompt in prompts] == expected


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_masks_of_a_thread(model, monkeypatch, seconds):
    """Where masks take long, a thread computes them while the forward runs: the texts are the same."""
    expected = [model.generate("the", seed=seed, max_tokens=60, json_schema=SCHEMA).tokens for seed in range(4)]
    monkeypatch.setattr("fastllm.engine.masks._WORTH", seconds)
    texts = model.generate("the", seed=0, n=4, max_tokens=60, json_schema=SCHEMA)
    assert [text.tokens for text in texts] == expected


def test_beside_plain_texts(model):
    plain = model.generate("the", seed=5, max_tokens=40).tokens
    ruled = model.generate("the", seed=5, max_tokens=40, json_schema=SCHEMA).tokens
    begun = [model.generate("the", seed=5, max_tokens=40, stream=True, json_schema=schema) for schema in (None, SCHEMA)]
    for text in begun:
        "".join(text)
    assert [text.tokens for text in begun] == [plain, ruled]


@pytest.mark.parametrize("pages", [3, 4, 6])
def test_a_small_limit_gives_the_same_texts(write_model, pages):
    """Texts are preempted and computed again where there are no pages for all."""
    model = fastllm.load(write_model(), threads=1)
    options = {"max_tokens": 90, "temperature": 1.3, "top_p": 1, "grammar": model.grammar(json_schema=True)}
    expected = [model.generate("the", seed=seed, **options).tokens for seed in range(6)]
    engine = model._engine
    engine.kv_bytes = engine.cache.limit = pages * engine.cache.page_bytes[0]
    assert [text.tokens for text in model.generate("the", n=6, seed=0, **options)] == expected


@pytest.mark.parametrize("where", ["follow", "masks", "forced"])
def test_an_interrupt_in_a_step(model, monkeypatch, where):
    """Ctrl-C anywhere in a matcher: the text goes on, and is the same."""
    options = {"seed": 5, "max_tokens": 60, "json_schema": SCHEMA, "lookup": True}
    expected = model.generate("the", **options)
    real, calls = getattr(Matcher, where), []

    def interrupted(matcher, *args):
        calls.append(where)
        if len(calls) in (2, 5):
            matcher._known = -1
            raise KeyboardInterrupt
        return real(matcher, *args)

    monkeypatch.setattr(Matcher, where, interrupted)
    stream, pieces = model.generate("the", stream=True, **options), []
    while stream.generation.finish_reason is None:
        with suppress(KeyboardInterrupt):
            pieces += stream
    assert len(calls) > 5
    assert stream.generation.tokens == expected.tokens
    assert "".join([*pieces, *stream]) == expected


# ---- where a text ends -----------------------------------------------------------------------------------------------


def test_it_ends_where_it_is_complete(model):
    text = model.generate("a", choice=["the"], max_tokens=50)
    assert (text, text.finish_reason) == ("the", "stop")
    # At max_tokens too, and although more tokens, or no end of the model's, were asked for.
    count = len(text.tokens)
    for options in ({"max_tokens": count}, {"min_tokens": 20}, {"ignore_eos": True}, {"logprobs": 0}):
        other = model.generate("a", choice=["the"], **options)
        assert (other, other.finish_reason) == ("the", "stop")
    short = model.generate("a", regex="x{30}", max_tokens=7)
    assert (short, short.finish_reason) == ("x" * 7, "length")
    assert model.generate("a", choice=["the"], max_tokens=0).finish_reason == "length"


def test_the_end_is_allowed_only_where_it_is_complete(model):
    """A token that ends texts, however likely: not before the text is complete, and then at once."""
    eager = {"logit_bias": {model.stop[0]: 1e6}, "temperature": 0}
    assert model.generate("a", regex="ab*", **eager) == "a"
    assert re.fullmatch("ab{5,}", model.generate("a", regex="ab*", min_tokens=6, **eager))
    endless = model.generate("a", regex="ab*", ignore_eos=True, max_tokens=9, **eager)
    assert (endless, endless.finish_reason) == ("a" + "b" * 8, "length")
    never = model.generate("a", regex="ab*", logit_bias={model.stop[0]: -1e6}, temperature=0, max_tokens=9)
    assert (never, never.finish_reason) == ("a" + "b" * 8, "length")


def test_stops_end_it_before(model):
    text = model.generate("a", regex="abc+", stop="c", max_tokens=9)
    assert (text, text.finish_reason) == ("ab", "stop")


def test_what_leaves_no_token(model):
    tokens = model.tokenize("abcd"[:1], bos=False)
    found = {i for i, piece in enumerate(model.tokenizer.stream().pieces) if piece == b"q"}
    assert tokens
    with pytest.raises(OptionError, match="what is forbidden there is no token to draw"):
        model.generate("a", regex="q", suppress_tokens=sorted(found))
    with pytest.raises(OptionError, match="forced_eos_token_id ends a text anywhere"):
        model.generate("a", regex="q", forced_eos_token_id=1)


def test_limits_end_only_their_text(model, monkeypatch):
    """A text whose grammar fails while it is written fails; the others go on."""
    real = Matcher._mask

    def failing(matcher):
        if matcher._name == "regex" and matcher._known != 0:
            raise OptionError("regex: too much")
        return real(matcher)

    expected = model.generate("the", seed=1, max_tokens=30, json_schema=SCHEMA)
    grammar = model.grammar(regex="[a-z]+")
    monkeypatch.setattr(Matcher, "_mask", failing)
    bad = model.generate("the", seed=1, max_tokens=30, grammar=grammar, stream=True)
    good = model.generate("the", seed=1, max_tokens=30, json_schema=SCHEMA, stream=True)
    assert "".join(good) == expected
    with pytest.raises(OptionError, match="regex: too much"):
        "".join(bad)


# ---- what is refused before anything runs ----------------------------------------------------------------------------


def test_refused(model, monkeypatch):
    monkeypatch.setattr(Generation, "__init__", None)  # nothing is begun
    for options, said in [
        ({"regex": "a", "json_schema": True}, "json_schema and regex do not go together"),
        ({"json_schema": {"not": {}}}, "Unimplemented"),
        ({"choice": "yes"}, "choice must be a list of texts"),
        ({"grammar": 5}, "grammar must be the text of a grammar"),
    ]:
        with pytest.raises(OptionError, match=said):
            model.generate("a", **options)


def test_without_a_tokenizer(write_model):
    model = fastllm.load(write_model(tokenizer=False), threads=1)
    with pytest.raises(TokenizerError, match="a grammar needs a tokenizer"):
        model.generate([1, 2], regex="a")


def test_a_pydantic_model(model):
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=5)
        age: int = pydantic.Field(ge=0, lt=150)
        kind: str | None = pydantic.Field(max_length=3)

    for seed in range(5):
        text = model.generate("a", json_schema=Person, seed=seed, max_tokens=100)
        assert text.finish_reason == "stop"
        assert Person.model_validate_json(text)


def test_any_json(model):
    texts = model.generate("a", json_schema=True, n=12, seed=0, max_tokens=60)
    ended = [json.loads(text) for text in texts if text.finish_reason == "stop"]
    assert ended


def test_the_example_of_the_readme():
    text = (ROOT / "python" / "fastllm" / "decoding" / "README.md").read_text("utf-8")
    (code,) = [code for code in re.findall("```python\n(.*?)```", text, re.S) if "json_schema=True" in code]
    lines = [
        f"texts.append({line})" if line.startswith("llm.g") else line for line in re.sub(" +#.*", "", code).split("\n")
    ]
    found: dict[str, Any] = {"texts": []}
    exec("\n".join(lines), found)
    word, year, animals, _, said = found["texts"]
    assert word in ("happy", "sad", "afraid")
    assert re.fullmatch("(19|20)[0-9]{2}", year)
    assert set(json.loads(animals)) <= {"cat", "dog"}
    assert said in ("yes!", "no!")
