"""precise: activations of 15 bits, where it is asked for and where it is kept."""

import json

import pytest

import fastllm
from fastllm import OptionError
from fastllm.weights.convert import convert
from helpers.commands import fastllm as command

TOKENS = list(range(2, 120))


def logits(path, **options):
    return fastllm.load(path, threads=1, **options).logits(TOKENS)


def test_kept_only_where_asked(write_model, tmp_path):
    checkpoint = write_model()
    plain, kept = tmp_path / "plain.safetensors", tmp_path / "kept.safetensors"
    convert(checkpoint, plain, dtype="q8")
    convert(checkpoint, kept, dtype="q8", precise=True)
    assert (logits(plain, precise=True) == logits(kept)).all()
    assert (logits(plain) == logits(kept, precise=False)).all()
    assert (logits(plain) != logits(kept)).any()
    assert (logits(checkpoint, dtype="q8", precise=True) == logits(kept)).all()
    assert not fastllm.load(checkpoint, dtype="q8", threads=1).config.precise  # no cache has kept it
    assert "precise        True\n" in command("inspect", str(kept))[0]
    assert "precise" not in command("inspect", str(plain))[0]


def test_the_command_line_says_so(write_model, tmp_path):
    path, out = str(write_model()), str(tmp_path / "model.safetensors")
    command("convert", path, out, "--dtype", "q8", "--precise")
    assert ", q8, precise; " in command("run", out, "--max-tokens", "3")[1]
    assert ", q8, precise; " in command("run", path, "--dtype", "q8", "--precise", "--max-tokens", "3")[1]
    assert "precise" not in command("run", path, "--dtype", "q8", "--max-tokens", "3")[1]
    assert "precise" not in command("run", out, "--no-precise", "--max-tokens", "3")[1]


@pytest.mark.parametrize(("option", "precise"), [("--precise", True), ("--no-precise", False), (None, True)])
def test_bench(write_model, tmp_path, option, precise):
    out = tmp_path / "model.safetensors"
    convert(write_model(), out, dtype="q8", precise=True)
    how = ("--batch", "1", "--threads", "1", "--prompt", "4", "--gen", "2", *([option] if option else []))
    assert [row["precise"] for row in json.loads(command("bench", str(out), *how, "--json")[0])] == [precise]
    assert (", precise; " in command("bench", str(out), *how)[0]) == precise


@pytest.mark.parametrize("wrong", [1, "yes", 0.5])
def test_wrong_values(write_model, wrong):
    with pytest.raises(OptionError, match="precise must be True, False or None"):
        fastllm.load(write_model(), precise=wrong)


def test_not_in_other_formats(write_model, tmp_path):
    with pytest.raises(OptionError, match="precise"):
        convert(write_model(), tmp_path / "model.bin", format="llama2c", precise=True)
