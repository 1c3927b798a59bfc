"""Options of grammars at the command line: the texts of LLM.generate, and errors in one sentence with exit code 2."""

import json
from contextlib import suppress

import pytest

import fastllm
from fastllm import cli
from helpers.data import BUILT_IN

SCHEMA = {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 1, "maxItems": 3}


def run(*words, capsys):
    assert cli.main(["run", str(BUILT_IN), "Once", "--seed", "3", *words]) == 0
    return capsys.readouterr()


def test_options(tmp_path, capsys):
    llm, gbnf = fastllm.load(BUILT_IN), 'root ::= ("yes" | "no") "!"\n'
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), "utf-8")
    (tmp_path / "rules.gbnf").write_text(gbnf, "utf-8")
    for words, options in [
        (["--json-schema", str(tmp_path / "schema.json")], {"json_schema": SCHEMA}),
        (["--json-schema", json.dumps(SCHEMA)], {"json_schema": SCHEMA}),
        (["--regex", "[a-z]{2,5}x"], {"regex": "[a-z]{2,5}x"}),
        (["--choice", "a", "--choice", "b\\nc"], {"choice": ["a", "b\nc"]}),
        (["--grammar", str(tmp_path / "rules.gbnf")], {"grammar": gbnf}),
    ]:
        text = json.loads(run(*words, "--json", capsys=capsys).out)
        expected = llm.generate("Once", seed=3, **options)
        assert (text["text"], text["tokens"], text["finish_reason"]) == (expected, expected.tokens, "stop")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regex", "("], "--regex is not possible"),
        (["--regex", "a", "--choice", "b"], "--choice: not allowed with argument --regex"),
        (["--json-schema", "/nowhere/at/all"], "/nowhere/at/all cannot be read: No such file"),
        (["--json-schema", '{"not": {}}'], '--json-schema is not possible: Unimplemented keys: ["not"]'),
        (["--json-schema", "{"], "--json-schema is no JSON"),
        (["--grammar", str(BUILT_IN)], "is not UTF-8"),
        (["--choice", ""], "--choice has an empty text"),
    ],
)
def test_refused(words, said, capsys):
    with suppress(SystemExit):  # argparse's
        assert cli.main(["run", str(BUILT_IN), "Once", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
