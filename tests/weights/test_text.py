"""Our own calibration text: what is calibrated, pruned and measured with it unless the user says otherwise."""

from pathlib import Path

import pytest

import fastllm
from fastllm import OptionError
from fastllm.cli import main
from fastllm.weights import packed, store, text
from fastllm.weights.convert import convert
from helpers import writers
from helpers.writers import write_folder

CONFIG = writers.config(64, 96, 4, 2, 300, max_seq=160)
SHIPPED = Path(text.__file__).with_name("calibration.txt")
TOKENS = list(range(3, 45))


def test_it_ships_and_is_small():
    words = SHIPPED.read_text(encoding="utf-8")
    assert 40_000 < len(words.encode()) < 60_000
    assert "def " in words  # code
    assert "User:" in words  # dialogue


def test_four_bits_are_calibrated_with_it(write_model, tmp_path):
    """Converted or loaded, q4 is rounded by it, as it is by a file with the same text; only False leaves it out."""
    source = write_model(CONFIG)
    by_default, by_file, by_itself = (tmp_path / name for name in ("default", "file", "itself"))
    convert(source, by_default, dtype="q4", threads=1)
    convert(source, by_file, dtype="q4", calibrate=SHIPPED, threads=2)
    convert(source, by_itself, dtype="q4", calibrate=False)
    assert by_default.read_bytes() == by_file.read_bytes() != by_itself.read_bytes()
    for cache in (True, False):
        loaded = fastllm.load(source, dtype="q4", cache=cache)
        assert (loaded.logits(TOKENS) == fastllm.load(by_default).logits(TOKENS)).all()
        loaded = fastllm.load(source, dtype="q4", calibrate=False, cache=cache)
        assert (loaded.logits(TOKENS) == fastllm.load(by_itself).logits(TOKENS)).all()


def test_packed_files_of_both_are_apart(tmp_path):
    asked = packed.Asked(tmp_path / "model", None, False, [], "q4")
    assert asked.digest() != asked._replace(calibrated=False).digest()


def test_a_load_takes_no_text(write_model):
    with pytest.raises(OptionError, match="calibrate must be True or False"):
        fastllm.load(write_model(CONFIG), dtype="q4", calibrate="text.txt")


def test_run_can_leave_it_out(write_model, tmp_path, capsys):
    source = str(write_model(CONFIG))
    texts = []
    for options in ([], ["--no-calibrate"]):
        assert main(["run", source, "-i", "the", "-n", "40", "-t", "0", "--dtype", "q4", *options]) == 0
        texts.append(capsys.readouterr().out)
    convert(source, tmp_path / "itself", dtype="q4", calibrate=False)
    main(["run", str(tmp_path / "itself"), "-i", "the", "-n", "40", "-t", "0"])
    assert texts[1] == capsys.readouterr().out != texts[0]


def test_other_types_are_not(write_model, tmp_path):
    source = write_model(CONFIG)
    for dtype in ("q8", "f16"):
        convert(source, tmp_path / "plain", dtype=dtype, calibrate=False)
        convert(source, tmp_path / "default", dtype=dtype)
        assert (tmp_path / "plain").read_bytes() == (tmp_path / "default").read_bytes()


def bert(folder):
    from helpers.architectures import ARCHITECTURES

    config, optional, _ = ARCHITECTURES["bert"]
    tensors = writers.core_tensors(config, writers.random_weights(config, 3, optional=optional), "f32")
    names = {name for name, *_ in (*config.matrices(), *config.vectors())}
    path = folder / "encoder"
    tensors = {name: t for name, t in tensors.items() if name in names}
    store.save(path, store.Stored(config, tensors, bos=1, stop=(), chat_stop=()))
    return path


def bare(folder):
    cfg = writers.config(64, 96, 4, 2, 300)
    return write_folder(folder / "folder", cfg, writers.random_weights(cfg))


def short(folder):
    """A model whose texts end before a piece can begin."""
    path = folder / "short.bin"
    cfg = writers.config(64, 96, 4, 2, 300, max_seq=1)
    path.write_bytes(writers.v0(cfg, writers.random_weights(cfg)))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    return path


@pytest.mark.parametrize(
    ("model", "said"), [(bert, "it is no causal language model"), (bare, "tokenizer"), (short, "too short")]
)
def test_models_that_it_says_nothing_about(tmp_path, capsys, monkeypatch, model, said):
    """They are packed without calibration, in one line; what learns from a text refuses them."""
    monkeypatch.chdir(tmp_path)
    source = model(tmp_path)
    capsys.readouterr()
    convert(source, tmp_path / "default", dtype="q4")
    err = capsys.readouterr().err
    assert err.startswith(f"fastllm: {source} is packed to four bits without calibration: ")
    assert said in err
    assert err.count("\n") == 1
    convert(source, tmp_path / "itself", dtype="q4", calibrate=False)
    assert capsys.readouterr().err == ""
    assert (tmp_path / "default").read_bytes() == (tmp_path / "itself").read_bytes()
    for options in ({"prune": "wanda:0.5"}, {"drop_layers": 1}, {"bits": 8}):
        with pytest.raises(OptionError, match=f"needs a text that it can read: give one with calibrate .*{said}"):
            convert(source, tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("options", [{"prune": "wanda:0.5"}, {"prune": "sparsegpt:2of4"}, {"drop_layers": 1}])
def test_pruning_learns_from_it(write_model, tmp_path, options):
    source = write_model(CONFIG)
    convert(source, tmp_path / "default", **options)
    convert(source, tmp_path / "file", calibrate=SHIPPED, **options)
    assert (tmp_path / "default").read_bytes() == (tmp_path / "file").read_bytes()
    assert store.open_file(tmp_path / "default").pruning.kl > 0


def test_the_command_line(write_model, tmp_path, capsys):
    source, out = str(write_model(CONFIG)), tmp_path / "out"
    assert main(["convert", source, str(out), "--dtype", "q4", "--no-calibrate"]) == 0
    convert(source, tmp_path / "itself", dtype="q4", calibrate=False)
    assert out.read_bytes() == (tmp_path / "itself").read_bytes()
    capsys.readouterr()
    assert main(["convert", source, str(out), "--dtype", "q4", "--no-calibrate", "--calibrate", str(SHIPPED)]) == 2
    assert "not allowed with" in capsys.readouterr().err
    assert main(["convert", source, str(out), "--prune", "wanda:0.5", "--no-calibrate"]) == 2
    assert "not without calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("calibrate", [True, 3, b"text", ["a"]])
def test_what_is_no_text(write_model, tmp_path, calibrate):
    with pytest.raises(OptionError, match="calibrate must be a file of text, False or None, not"):
        convert(write_model(CONFIG), tmp_path / "out", dtype="q4", calibrate=calibrate)


def test_progress_ends(write_model, tmp_path):
    """Reading the text is part of the progress, which never goes back and ends when all is done."""
    seen = []
    convert(write_model(CONFIG), tmp_path / "out", dtype="q4", progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert min(seen) < 0.5
