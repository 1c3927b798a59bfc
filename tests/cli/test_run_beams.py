"""Options of beams of fastllm run: each gives what LLM.generate gives."""

import json

import pytest

import fastllm
from fastllm import cli
from helpers.commands import one_sentence
from helpers.data import BUILT_IN

PROMPT = "Once upon a time"


def run(*words, capsys, code=0):
    assert cli.main(["run", str(BUILT_IN), PROMPT, "--max-tokens", "12", *words]) == code
    return capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--num-beams", "3"], {"num_beams": 3}),
        (["--num-beams", "3", "--length-penalty", "0.2"], {"num_beams": 3, "length_penalty": 0.2}),
        (["--num-beams", "3", "--early-stopping", "never"], {"num_beams": 3, "early_stopping": "never"}),
        (["--num-beams", "3", "--early-stopping", "true"], {"num_beams": 3, "early_stopping": True}),
        (
            ["--num-beams", "4", "--num-beam-groups", "2", "--diversity-penalty", "1.5"],
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5},
        ),
        (["--num-beams", "4", "--force-word", "cat|dog"], {"num_beams": 4, "force_words": [["cat", "dog"]]}),
        (["--num-beams", "3", "-t", "1.1", "-s", "4"], {"num_beams": 3, "temperature": 1.1, "seed": 4}),
    ],
)
def test_each_option(words, options, capsys):
    expected = fastllm.load(BUILT_IN).generate(PROMPT, max_tokens=12, **options)
    assert run(*words, capsys=capsys).out == f"{PROMPT}{expected}\n"
    said = json.loads(run(*words, "--json", capsys=capsys).out)
    assert (said["text"], said["score"]) == (expected, expected.score)


def test_several_texts_are_shown_with_their_scores(capsys):
    texts = fastllm.load(BUILT_IN).generate(PROMPT, max_tokens=12, num_beams=4, n=2)
    shown = run("--num-beams", "4", "--n", "2", capsys=capsys).out
    assert shown == "".join(
        f"--- {i} of 2, score {text.score:.4f} ---\n{PROMPT}{text}\n" for i, text in enumerate(texts, 1)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-beams", "0"], "num-beams must be a whole number from 1"),
        (["--num-beams", "4", "--num-beam-groups", "3"], "--num-beam-groups must divide num_beams"),
        (["--length-penalty", "2"], "--length-penalty is of beams"),
        (["--num-beams", "2", "--n", "3"], "num-beams is 2, which does not give 3 texts"),
        (["--num-beams", "2", "--lookup"], "--lookup does not go with num_beams"),
        (["--num-beams", "2", "--chat"], "beams do not go with --chat"),
    ],
)
def test_what_is_impossible_is_one_sentence(words, message, capsys):
    assert message in one_sentence(run(*words, capsys=capsys, code=2).err)
