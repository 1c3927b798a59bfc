"""The command line, run as a user runs it: in a process of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastllm.cli.options import BUILT_IN
from helpers.data import DATA, STORIES, needs_stories

TINY = DATA / "llama2c_gqa_tied" / "model_v0.bin"


def fastllm(*args: str, code: int = 0, cwd: Path | None = None, stdin: str = "", **env: str) -> tuple[str, str]:
    """Runs the command line and returns what it wrote to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", *args],
        input=stdin.encode(),
        capture_output=True,
        cwd=cwd,
        env=os.environ | env,
        timeout=120,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err
    assert "Traceback" not in err
    return out, err


def one_sentence(err: str) -> str:
    """An error is one line, from fastllm."""
    assert re.fullmatch(r"fastllm[^\n]*\n", err), err
    return err


@needs_stories
@pytest.mark.parametrize(
    "recorded", json.loads((STORIES / "meta.json").read_text())["outputs"] if STORIES.exists() else []
)
def test_llama2c_command_lines_give_run_c_text(recorded: dict[str, str]) -> None:
    """The very command lines that recorded run.c's output, letter for letter."""
    import shlex

    words = shlex.split(recorded["cmd"])
    out, err = fastllm(*words, cwd=STORIES)
    assert out == (STORIES / recorded["file"]).read_text()
    assert "tokens/s" in err
    # Reading alone is measured for an instant: where another program slows that, there is no share to show.
    assert re.search(r"; weights [\d.]+ GB/s(, \d+% of the [\d.]+ that reading alone takes)?; ", err)


@needs_stories
def test_steps_count_the_prompt_and_max_tokens_do_not() -> None:
    words = ("run", "stories260K.bin", "-t", "0", "-i", "Once upon a time", "--json")
    prompt = json.loads(fastllm(*words, "--max-tokens", "0", cwd=STORIES)[0])
    assert prompt["text"] == ""
    assert prompt["generated_tokens"] == 0
    steps = json.loads(fastllm(*words, "-n", "20", cwd=STORIES)[0])
    assert steps["prompt_tokens"] - 1 + steps["generated_tokens"] == 20
    new = json.loads(fastllm(*words, "--max-tokens", "20", cwd=STORIES)[0])
    assert new["generated_tokens"] == 20
    assert new["text"].startswith(steps["text"])
    # llama2.c shows no more than N tokens even of the prompt.
    assert fastllm("run", "stories260K.bin", "-n", "1", "-i", "Once upon a time", cwd=STORIES)[0] == "Once\n"


@needs_stories
def test_json_says_what_was_written_and_how_fast() -> None:
    words = ("run", "stories260K.bin", "-n", "30", "-s", "7", "--threads", "1", "--json")
    out, err = fastllm(*words, cwd=STORIES)
    about = json.loads(out)
    assert err == ""
    assert about["finish_reason"] == "length"
    assert len(about["tokens"]) == about["generated_tokens"] == 30
    assert about["seed"] == 7
    assert about["threads"] == 1
    assert about["dtype"] == "f32"
    for name in ("prompt_tps", "decode_tps", "weight_gbps", "read_gbps"):
        assert about[name] > 0
    assert fastllm(*words[:-1], cwd=STORIES)[0] == about["prompt"] + about["text"] + "\n"


@pytest.mark.parametrize("sampling", [("-t", "0"), ("-t", "0.8")], ids=["greedy", "sampled"])
def test_guesses_change_nothing_but_the_speed(sampling: tuple[str, ...]) -> None:
    words = ("run", str(BUILT_IN), "-i", "Once upon a time", "-n", "150", "-s", "3", "--json", *sampling)
    plain = json.loads(fastllm(*words)[0])
    assert "proposed_tokens" not in plain
    for guesses in (("--lookup",), ("--draft", str(BUILT_IN)), ("--draft", str(BUILT_IN), "--kv", "q8")):
        kv = guesses[2:]
        about = json.loads(fastllm(*words, *guesses)[0])
        same = plain if not kv else json.loads(fastllm(*words, *kv)[0])
        assert about["tokens"] == same["tokens"]
        assert about["text"] == same["text"]
        assert 0 <= about["accepted_tokens"] <= about["proposed_tokens"]
    draft = json.loads(fastllm(*words, "--draft", str(BUILT_IN))[0])
    assert sampling[1] != "0" or draft["accepted_tokens"] == draft["proposed_tokens"]  # it is the model itself


@pytest.mark.parametrize(("used", "read", "said"), [(8.0, 10.0, "80% of the 10.0"), (9.0, 0.01, "")])
def test_a_share_is_said_where_it_means_something(used: float, read: float, said: str) -> None:
    """A machine that was busy while so little was read says nothing."""
    from fastllm.cli.run import speed_line

    speed: dict[str, float | int | str | None] = dict.fromkeys(("prompt_tps", "decode_tps", "prompt_tokens"))
    speed |= {"generated_tokens": 1, "weight_gbps": used, "read_gbps": read, "isa": "avx2", "threads": 1, "dtype": "q8"}
    line = speed_line(speed, 1)
    assert f"weights {used} GB/s" in line
    assert ("%" in line) == bool(said)
    assert said in line


def test_guesses_in_a_line_for_people() -> None:
    words = ("run", str(BUILT_IN), "-n", "60", "-s", "3")
    plain = fastllm(*words)[0]
    out, err = fastllm(*words, "--lookup")
    assert out == plain
    assert re.search(r"guessed \d+, \d+ of them right", err)


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("run", ("--draft", str(TINY)), "needs the same"),
        ("run", ("--draft", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        ("chat", ("--draft", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        ("run", ("--draft", str(TINY.parent)), "3 files of weights and no config.json"),
        ("run", ("--lookup", "--draft", str(TINY)), "not allowed with"),
        ("chat", ("--lookup", "--draft", str(TINY)), "not allowed with"),
        ("run", ("--draft",), "expected one argument"),
        ("run", ("--lookup", "--max-tokens", "-1"), "max_tokens must be 0 or more, not -1"),
        ("run", ("--lookup", "-n", "-1"), "-n must be 0 or more, not -1"),
    ],
)
def test_guesses_that_cannot_be(command: str, options: tuple[str, ...], says: str) -> None:
    assert says in one_sentence(fastllm(command, str(BUILT_IN), *options, code=2)[1])


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize("kv", ["q8", None])
def test_a_draft_keeps_keys_and_values_as_the_model_does(
    command: str, kv: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastllm import cli, llm

    given = []

    def load(path: object, **options: object) -> object:
        given.append(options["kv"])
        return real(path, **options)  # type: ignore[arg-type]

    real = llm.load
    monkeypatch.setattr(llm, "load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = [command, str(BUILT_IN), "--draft", str(BUILT_IN), *(("-n", "2") if command == "run" else ())]
    assert cli.main(words + (["--kv", kv] if kv else [])) in (0, 2)
    assert given == [kv, kv]


def test_built_in_model_tells_the_same_story_on_every_instruction_set() -> None:
    from fastllm import _core

    isas = [name for name, supported in _core.isas() if supported]
    stories = {fastllm("run", "-s", "5", FASTLLM_ISA=isa)[0] for isa in isas}
    assert len(stories) == 1
    story = stories.pop()
    assert len(story.split()) > 60  # a story, not a line
    assert story.rstrip()[-1] in '.!?"'  # and it ends by itself
    assert fastllm("run", "-s", "6")[0] != story


def test_streams_while_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few characters leave the process as they come."""
    from fastllm import cli

    class Out(io.StringIO):
        def flush(self) -> None:
            seen.append(len(self.getvalue()))

    seen: list[int] = []
    out = Out()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["run", str(TINY), "-t", "1", "-s", "1", "-n", "0"]) == 0
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    assert len(out.getvalue()) > 50
    assert max(steps) < 15


@needs_stories
def test_ctrl_c_keeps_what_was_written() -> None:
    # A model that never stops by itself: many stories one after the other, BOS is made impossible by greedy text.
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, "run", "stories260K.bin", "-t", "0", "-n", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=STORIES,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = os.read(process.stdout.fileno(), 1 << 16)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        err = process.stderr.read().decode()
        assert process.wait(60) == 130
    text = (first + rest).decode()
    assert text.endswith("\n")
    assert text.strip()
    whole = (STORIES / "expected_greedy_200.txt").read_text()
    assert whole.startswith(text.rstrip("\n")[: len(whole) - 1])
    assert "Traceback" not in err
    assert "tokens/s" in err


# The command line with a pause after each token, so that there is time to interrupt it.
_SLOW = """
import sys, time
from fastllm import cli
from fastllm.engine import engine
step = engine.Engine.forward
def slow(*args):
    time.sleep(0.02)
    step(*args)
engine.Engine.forward = slow
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m fastllm run -s 1 | head -c 5",
        shell=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert len(done.stdout) == 5
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_chat_answers_each_line() -> None:
    args = ("chat", str(TINY), "-t", "0", "-y", "Be brief.", "--context", "64")
    # Random weights: what matters is that a turn is answered and that the context's end is said, not crashed into.
    out, err = fastllm(*args, stdin="hi\n", code=0)
    assert out.endswith("\n")
    out, err = fastllm(*args, stdin="hi\n\nand again\n", code=2)
    assert "context" in one_sentence(err)


def test_chat_replies_are_as_long_as_asked() -> None:
    args = ("chat", str(TINY), "-t", "0")
    short, longer, whole = (
        fastllm(*args, *more, stdin="hi\nand\n" if more else "hi\n", code=0)[0].split("\n")[0]
        for more in (("-n", "2"), ("--max-tokens", "5"), ())
    )
    assert whole.startswith(longer)
    assert longer.startswith(short)
    assert 0 < len(short) < len(longer) < len(whole)


def test_chat_on_a_terminal_prompts() -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fastllm", "chat", str(TINY), "-t", "0"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        close_fds=True,
    ) as process:
        os.close(follower)
        seen = b""
        while b"> " not in seen:
            seen += os.read(leader, 1024)
        os.write(leader, b"\x04")  # Ctrl-D
        assert process.wait(60) == 0
    os.close(leader)


def test_info_says_what_was_built_found_and_chosen() -> None:
    from fastllm import _core

    out, _ = fastllm("info", FASTLLM_ISA="")
    for name, _supported in _core.isas():
        assert name in out
    assert re.search(rf"chosen: +{_core.best_isa()} ", out)
    assert re.search(r"threads: +\d+ \(", out)
    assert re.search(r"families: AMPLIFY, bert, .*, qwen3, ", out)
    out, _ = fastllm("info", FASTLLM_ISA="scalar")
    assert re.search(r"chosen: +scalar \(FASTLLM_ISA\)", out)
    _, err = fastllm("info", FASTLLM_ISA="mmx", code=2)
    assert "'mmx'" in one_sentence(err)
    assert "scalar" in err


def test_inspect_shows_config_and_every_tensor() -> None:
    out, _ = fastllm("inspect", str(TINY))
    assert "llama2.c v0" in out
    assert re.search(r"n_kv_heads +2\n", out)
    assert re.search(r"layers\.1\.feed_forward\.w2\.weight +f32 +32 x 64 +8,192 bytes", out)
    demo = Path(__import__("fastllm").__file__).parent / "demo" / "stories.safetensors"
    out, _ = fastllm("inspect", str(demo))
    assert "sentencepiece" in out
    assert re.search(r"embed +q8 +1024 x 128 ", out)


def test_inspect_shows_a_folder(tmp_path: Path) -> None:
    import numpy
    import safetensors.numpy

    (tmp_path / "config.json").write_text('{"architectures": ["SomethingModel"], "many": "' + "x" * 1000 + '"}')
    tensors = {"a.weight": numpy.zeros((3, 5), numpy.float16), "b": numpy.zeros(7, numpy.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    out, _ = fastllm("inspect", str(tmp_path))
    assert re.search(r"architecture +SomethingModel\n", out)
    assert re.search(r"a\.weight +f16 +3 x 5 +30 bytes\n", out)
    assert "2 tensors, 22 parameters, 58 bytes\ncannot be run: " in out
    assert max(map(len, out.splitlines())) < 300


def test_convert_then_run(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    said, err = fastllm("convert", str(TINY), str(out), "--dtype", "q8", "--verify")
    assert said == ""
    size, found = err.splitlines()
    assert size == f"{out}: {out.stat().st_size:,} bytes"
    pattern = (
        r"over \d+ tokens: logits differ by at most [\d.e-]+, by [\d.e-]+ in the mean; KL [\d.e-]+; top-1 .* \d+.*%"
    )
    assert re.fullmatch(pattern, found), found
    words = ("-s", "3", "-n", "30", "-i", "a")
    assert fastllm("run", str(out), *words)[0] == fastllm("run", str(TINY), "--dtype", "q8", *words)[0]
    assert "llama2.c v0" in fastllm("inspect", str(out))[0]
    back = tmp_path / "model.bin"
    _, err = fastllm("convert", str(TINY), str(back), "--format", "llama2c", "--version", "1", "--verify")
    assert "KL 0; top-1 agreement 100.0%" in err
    assert back.read_bytes() == (DATA / "llama2c_gqa_tied" / "model_v1.bin").read_bytes()


def test_convert_misses_a_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(TINY.read_bytes())
    _, err = fastllm("convert", str(model), "out", cwd=tmp_path)
    assert "without a tokenizer: no tokenizer fits" in err


def test_embed_prints_a_line_for_each_text() -> None:
    texts = ["hi", "and again", "", "hi"]
    by_argument, _ = fastllm("embed", str(TINY), *texts)
    by_line, _ = fastllm("embed", str(TINY), stdin="".join(f"{text}\n" for text in texts))
    assert by_argument == by_line
    of_windows, _ = fastllm("embed", str(TINY), stdin="".join(f"{text}\r\n" for text in texts))
    assert of_windows == by_line
    vectors = [json.loads(line) for line in by_line.splitlines()]
    assert [len(vector) for vector in vectors] == [32] * 4
    assert vectors[0] == vectors[3] != vectors[1]
    unit, _ = fastllm("embed", str(TINY), "hi", "--normalize", "--pooling", "last", "--text")
    assert abs(sum(float(x) ** 2 for x in unit.split()) - 1) < 1e-5
    import fastllm as package

    expected = package.load(TINY).embed(["hi"], pooling="last", normalize=True)
    assert [float(x) for x in unit.split()] == [float(str(x)) for x in expected[0]]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["convert", str(TINY), "out", "--dtype", "q3"], "dtype must be one of f32, f16, bf16, q8, q4, not 'q3'"),
        (["convert", str(TINY), "."], "cannot be written: it is a folder"),
        (["convert", "nothing.bin", "out"], "nothing.bin does not exist"),
        (["convert", str(TINY), str(TINY)], "it is what would be converted"),
        (["convert", str(TINY), "out", "--version", "1"], "goes with the format llama2c"),
        (["convert", str(TINY)], "OUT"),
        (["embed", str(TINY), "hi", "--pooling", "sum"], "pooling"),
        (["run", str(TINY), "--revision", "main"], "not a name of the hub"),
        (["run", "nothing.bin"], "nothing.bin does not exist"),
        (["run", "."], "folder"),
        (["run", str(TINY), "-z", "nothing.model"], "nothing.model does not exist"),
        (["run", str(TINY), "-z", str(DATA / "llama2c_untied" / "tokenizer.bin")], "264 words, the model 272"),
        (["run", "-t", "-1"], "temperature"),
        (["run", "-t", "nan"], "temperature"),
        (["run", "-t", "warm"], "temperature"),
        (["run", "-p", "1.5"], "top_p"),
        (["run", "--min-p", "2"], "min_p"),
        (["run", "--top-k", "-3"], "top_k"),
        (["run", "-n", "-3"], "-n"),
        (["run", "--max-tokens", "-3"], "max_tokens"),
        (["run", "-n", "3", "--max-tokens", "3"], "not allowed with"),
        (["run", "-s", "-3"], "seed"),
        (["run", "--threads", "0"], "threads"),
        (["run", "--context", "0"], "context"),
        (["run", "--context", "100000"], "context"),
        (["run", "--dtype", "q3"], "dtype"),
        (["run", "--dtype", "f32"], "already converted"),
        (["run", "--context", "8", "-i", "a prompt that is much longer than that"], "context"),
        (["inspect", "nothing.bin"], "does not exist"),
        (["fly"], "fly"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(args: list[str], said: str, tmp_path: Path) -> None:
    out, err = fastllm(*args, code=2, cwd=tmp_path)
    assert out == ""
    assert said in one_sentence(err)


def test_no_tokenizer_names_every_place(tmp_path: Path) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    model = beside / "model.bin"
    model.write_bytes(TINY.read_bytes())
    _, err = fastllm("run", str(model), code=2, cwd=here)
    one_sentence(err)
    for folder in (beside, here):
        assert f"{folder} has no tokenizer.bin, tok272.bin, tokenizer.model, tokenizer.json" in err
    # A file that does not fit is passed over, one that fits is taken.
    (beside / "tokenizer.bin").write_bytes((DATA / "llama2c_untied" / "tokenizer.bin").read_bytes())
    (here / "tok272.bin").write_bytes((DATA / "llama2c_gqa_tied" / "tokenizer.bin").read_bytes())
    fastllm("run", str(model), "-n", "5", cwd=here)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    for version in ("v0", "v1", "v2_q80"):
        whole = (DATA / "llama2c_gqa_tied" / f"model_{version}.bin").read_bytes()
        model.write_bytes(whole[: len(whole) * 2 // 3])
        _, err = fastllm("run", str(model), code=2)
        assert str(model) in one_sentence(err)
        assert "truncated" in err


def test_start_is_quick() -> None:
    """No library that a run without a prompt can do without is loaded: that is what keeps the start short."""
    code = "import sys; from fastllm import cli; cli.main(['run', '-n', '2', '-s', '1']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    loaded = done.stdout.decode().split()
    assert "fastllm._core" in loaded
    for heavy in _HEAVY:
        assert heavy not in loaded


_HEAVY = ("numpy", "sentencepiece", "safetensors", "tokenizers", "dataclasses", "tempfile", "rich", "huggingface_hub")


@pytest.mark.parametrize("name", ["model_v0.bin", "model_v2_q80.bin", "model.safetensors"])
def test_files_start_as_quickly(tmp_path: Path, name: str) -> None:
    """So it is for llama2.c's files and converted ones."""
    model = DATA / "llama2c_gqa_tied" / name
    if name == "model.safetensors":
        model = tmp_path / name
        fastllm("convert", str(TINY), str(model), "--dtype", "q8")
    code = f"import sys; from fastllm import cli; cli.main(['run', {str(model)!r}, '-n', '2']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert not set(_HEAVY) & set(done.stdout.decode(errors="replace").split())


def test_time_to_interrupt_is_short() -> None:
    """Ctrl-C before the first token ends the process too."""
    with subprocess.Popen(
        [sys.executable, "-m", "fastllm", "chat", str(TINY)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, -signal.SIGINT)


def test_readme_shows_stories_unedited() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    quoted = "\n".join(line[2:] for line in readme.splitlines() if line.startswith(">"))
    for seed in "123":
        assert fastllm("run", "-s", seed)[0].rstrip("\n") in quoted


def test_stdin_that_is_no_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", "embed", str(DATA / "amplify_tiny")],
        input=b"MKV\n\xff\xfe\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastllm", "run", str(TINY), "-n", "3"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left" in one_sentence(done.stderr.decode().splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr.decode()
