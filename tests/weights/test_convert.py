"""Conversion: the file says what the checkpoint says, the same bytes each time, whole or not at all."""

import errno
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import fastllm
from fastllm import CheckpointError, OptionError, TokenizerError
from fastllm.config import rope_freqs
from fastllm.files import map_file
from fastllm.llm.verify import verify
from fastllm.weights import packing, source, store
from fastllm.weights.convert import convert
from fastllm.weights.store import DTYPES
from helpers import oracle, writers
from helpers.calls import run
from helpers.data import DATA

MODELS = ("llama2c_gqa_tied", "llama2c_untied")
TOKENS = list(range(3, 45))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- to fastllm's file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, None])
@pytest.mark.parametrize("version", [0, 2])
def test_the_file_is_what_load_makes(write_model, tmp_path, dtype, version):
    """Loaded or converted, with any threads: the same logits and text to the bit, and nothing else beside the file."""
    source = write_model(writers.config(64, 96, 4, 2, 300), version=version)
    before = names(tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert(source, out, dtype=dtype, threads=1) is None
    assert names(tmp_path) == sorted([*before, out.name])
    loaded, mapped = fastllm.load(source, dtype=dtype), fastllm.load(out)
    assert mapped.dtypes == loaded.dtypes
    assert (mapped.logits(TOKENS) == loaded.logits(TOKENS)).all()
    assert mapped.generate("the ocean", seed=3) == loaded.generate("the ocean", seed=3)
    assert (mapped.bos, mapped.stop, mapped.chat_stop) == (loaded.bos, loaded.stop, loaded.chat_stop)
    again = tmp_path / "again"
    convert(source, again, dtype=dtype, threads=2)
    assert again.read_bytes() == out.read_bytes()


def test_the_same_bytes_in_any_chunks(write_model, tmp_path, monkeypatch):
    source = write_model()
    convert(source, tmp_path / "whole", dtype="q8")
    for size in (1, 1 << 12):
        monkeypatch.setattr(packing, "_CHUNK", size)
        convert(source, tmp_path / "parts", dtype="q8")
        assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_experts_in_any_chunks(tmp_path, monkeypatch):
    """A stack of matrices, whose rows are no multiple of a panel's, read a few at a time."""
    cfg = writers.config(40, 0, 4, 2, 300, n_experts=3, n_experts_used=2, expert_dim=41)
    weights = writers.random_weights(cfg)
    source = tmp_path / "f32.safetensors"
    tensors = writers.core_tensors(cfg, weights, "f32")
    del tensors["rope.freqs_local"]
    store.save(source, store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    monkeypatch.setattr(packing, "_CHUNK", 1 << 11)
    convert(source, tmp_path / "again", dtype="f32")
    assert np.abs(fastllm.load(tmp_path / "again").logits(TOKENS) - oracle.forward(cfg, weights, TOKENS)).max() < 1e-4
    again = store.load(source, map_file(tmp_path / "again")).tensors
    assert all(again[name].data == tensor.data for name, tensor in tensors.items())


def test_converted_floats_can_be_converted(write_model, tmp_path):
    """f32 holds everything; int8 is not turned into floats that claim more."""
    source, f32, q8 = write_model(), tmp_path / "f32", tmp_path / "q8"
    for dtype in ("f32", "bf16"):
        convert(source, f32, dtype=dtype)
        convert(f32, q8)
        assert q8.read_bytes() == f32.read_bytes()
    convert(source, f32)
    convert(f32, q8, dtype="q8")
    assert (fastllm.load(q8).logits(TOKENS) == fastllm.load(source, dtype="q8").logits(TOKENS)).all()
    assert fastllm.load(q8).generate("the", seed=1) == fastllm.load(source, dtype="q8").generate("the", seed=1)
    with pytest.raises(OptionError, match=r"already converted to q8: convert the checkpoint it was made from"):
        convert(q8, tmp_path / "no", dtype="f16")


def test_a_tokenizer_travels_or_is_missed(write_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    source, out = write_model(), tmp_path / "bare" / "out"
    convert(source, out)
    (tmp_path / "tokenizer.bin").rename(tmp_path / "other")
    assert fastllm.load(out).detokenize(fastllm.load(out).tokenize("the ocean")) == "the ocean"
    missing = convert(source, out)
    assert isinstance(missing, TokenizerError)
    with pytest.raises(TokenizerError):
        fastllm.load(out).tokenize("the")
    assert convert(source, out, tokenizer=tmp_path / "other") is None
    assert fastllm.load(out).tokenize("the")
    with pytest.raises(TokenizerError, match="nothing does not exist"):
        convert(source, tmp_path / "no", tokenizer=tmp_path / "nothing")


def test_the_first_version_s_files_load():
    """The built-in model was written before there was a source in the header."""
    llm = fastllm.load(os.path.join(os.path.dirname(fastllm.__file__), "demo", "stories.safetensors"))
    assert llm.generate("Once", max_tokens=5, temperature=0)


@pytest.mark.parametrize("dtype", ["f16", "q8"])
def test_verify(write_model, tmp_path, dtype):
    """Against the definitions, over both models' logits."""
    source, out = write_model(writers.config(64, 96, 4, 2, 300, max_seq=50)), tmp_path / "out"
    convert(source, out, dtype=dtype)
    found = verify(source, out)
    assert found.tokens == 50
    ids = np.random.default_rng(0).integers(0, 300, 50).tolist()
    p, q = (fastllm.load(path).logits(ids).astype(np.float64) for path in (source, out))
    assert found.largest == np.abs(p - q).max()
    assert np.isclose(found.mean, np.abs(p - q).mean())
    sp, sq = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (p, q))
    assert np.isclose(found.kl, (sp * np.log(sp / sq)).sum(axis=1).mean())
    assert found.top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    exact = verify(source, source)
    assert (exact.largest, exact.kl, exact.top1) == (0, 0, 1)


# ---- to llama2.c's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_llama2c_s_own_files_come_back(tmp_path, name, version):
    """From its version 0, what its export.py wrote: byte for byte, but for version 0's tables of rotations."""
    folder, out = DATA / name, tmp_path / "model.bin"
    convert(folder / "model_v0.bin", out, format="llama2c", version=version)
    expected = (folder / ("model_v2_q80.bin" if version == 2 else f"model_v{version}.bin")).read_bytes()
    found = out.read_bytes()
    if version:
        assert found == expected
        return
    llm = fastllm.load(out)
    cfg = llm.config
    begin = 28 + 4 * (cfg.vocab_size * cfg.dim + cfg.n_layers * 2 * cfg.dim + cfg.dim)
    begin += 4 * cfg.n_layers * cfg.dim * (2 * cfg.dim + 2 * cfg.head_dim * cfg.n_kv_heads + 3 * cfg.hidden_dim)
    end = begin + 4 * cfg.max_seq * cfg.head_dim
    assert (found[:begin], found[end:]) == (expected[:begin], expected[end:])
    ours, theirs = (np.frombuffer(blob[begin:end], "<f4") for blob in (found, expected))
    assert np.abs(ours - theirs).max() < 2e-7  # one unit in the last place of a cosine
    assert np.abs(ours).max() == 1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_llama2c_there_and_back(write_model, tmp_path, version, tied):
    """Also by way of a converted file, which has its rows in another order."""
    source = write_model(tied=tied)
    expected = fastllm.load(source).logits(TOKENS)
    convert(source, tmp_path / "f32", dtype="f32")
    for path in (source, tmp_path / "f32"):
        convert(path, tmp_path / "back.bin", format="llama2c", version=version)
        assert (fastllm.load(tmp_path / "back.bin").logits(TOKENS) == expected).all()


HF_NAMES = {
    "attn_norm": "input_layernorm", "attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj",
    "attn.wv": "self_attn.v_proj", "attn.wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj", "ffn.w2": "mlp.down_proj", "ffn.w3": "mlp.up_proj",
    "embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
}  # fmt: skip


def write_folder(folder, cfg, weights):
    """A Llama as transformers saves it: rotary pairs are half a head apart."""
    tensors = {}
    for name, w in weights.items():
        start, _, rest = name.partition(".")
        number, _, short = rest.partition(".")
        theirs = f"model.layers.{number}.{HF_NAMES[short]}" if start == "layers" else HF_NAMES[name]
        heads = {"attn.wq": cfg.n_heads, "attn.wk": cfg.n_kv_heads}.get(short)
        tensors[f"{theirs}.weight"] = w[writers.half_split(heads, cfg.head_dim, cfg.head_dim)] if heads else w
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": cfg.dim,
        "intermediate_size": cfg.hidden_dim, "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "vocab_size": cfg.vocab_size, "rms_norm_eps": 1e-5,
        "max_position_embeddings": cfg.max_seq, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": "head" not in weights,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_one_model_in_two_formats(write_model, tmp_path, tied):
    """A Hugging Face folder and a llama2.c file of the same weights: equal logits, and equal bytes as llama2.c's."""
    cfg = writers.config(40, 56, 4, 2, 300, max_seq=64)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg, tied=tied))
    source = write_model(cfg, tied=tied)
    assert (fastllm.load(folder).logits(TOKENS) == fastllm.load(source).logits(TOKENS)).all()
    for version in (1, 2):
        made = []
        for path in (folder, source):
            convert(path, tmp_path / "made.bin", format="llama2c", version=version)
            made.append((tmp_path / "made.bin").read_bytes())
        assert made[0] == made[1]
    for path in (folder, source):
        convert(path, tmp_path / "made.q8", dtype="q8")
        made.append(fastllm.load(tmp_path / "made.q8").logits(TOKENS))
    assert (made[2] == made[3]).all()


def test_a_folder_s_own_files_are_not_written_over(tmp_path):
    cfg = writers.config(40, 56, 4, 2, 300)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg))
    for target in (folder / "model.safetensors", folder / "config.json"):
        with pytest.raises(CheckpointError, match="a part of it"):
            convert(folder, target)
    convert(folder, folder / "new.safetensors")
    assert fastllm.load(folder / "new.safetensors").config == fastllm.load(folder).config


@pytest.mark.parametrize(("stored", "dtype"), [(None, None), ("Q4_1", "q8"), ("int8", "q8")])
def test_weights_of_a_few_bits_become_int8(tmp_path, monkeypatch, stored, dtype):
    """As f32, which its tensors are read as, the model would take several times the memory."""
    path = tmp_path / "model.bin"
    cfg = writers.config(40, 56, 4, 2, 300)
    path.write_bytes(writers.v0(cfg, writers.random_weights(cfg)))
    plain = source.open_checkpoint(path)
    changed = plain._replace(tensors={k: t._replace(stored=stored) for k, t in plain.tensors.items()})
    monkeypatch.setattr(source, "open_checkpoint", lambda _: changed)
    assert fastllm.load(path).dtypes == [dtype or "f32"]
    assert fastllm.load(path, dtype="f16").dtypes == ["f16"]
    convert(path, tmp_path / "out")
    assert fastllm.load(tmp_path / "out").dtypes == [dtype or "f32"]
    # Compared with what the file says, not with what was made of it.
    assert verify(path, tmp_path / "out").largest == 0 if dtype is None else verify(path, tmp_path / "out").largest > 0


@pytest.mark.parametrize(("dim", "hidden", "group"), [(128, 192, 64), (96, 128, 32), (40, 56, 8), (36, 50, 4)])
def test_llama2c_s_groups_divide(write_model, tmp_path, dim, hidden, group):
    """As export.py has it, 64 halved until dim is a multiple."""
    cfg = writers.config(dim, hidden, 2, 1, 300)
    source = write_model(cfg)
    convert(source, tmp_path / "out.bin", format="llama2c", version=2)
    blob = (tmp_path / "out.bin").read_bytes()
    assert struct.unpack_from("<i", blob, 37) == (group,)
    weights = writers.random_weights(cfg)
    assert blob == writers.v2(cfg, weights, group)


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        ("norm_eps is 1e-06", {"norm_eps": 1e-6}),
        ("act is relu", {"act": "relu"}),
        ("gated is False", {"gated": False}),
        ("norm is layer", {"norm": "layer"}),
        ("rotary_dim is 4", {"rotary_dim": 4}),
        ("head_dim is 16", {"head_dim": 16}),
        ("windows is", {"windows": (0, 7)}),
        ("causal is False", {"causal": False}),
        ("embed_scale is 2", {"embed_scale": 2.0}),
        ("n_experts is 2", {"n_experts": 2, "n_experts_used": 1, "expert_dim": 8}),
        ("it has layers.0.attn_norm.bias", {}),
        ("theta", {"theta": 5e5}),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_what_llama2c_cannot_hold(tmp_path, said, changed):
    theta = changed.pop("theta", 1e4)
    cfg = writers.config(32, 40, 4, 2, 300, **changed)
    optional = (*writers.LLAMA, "bias") if "bias" in said else writers.LLAMA
    tensors = writers.core_tensors(cfg, writers.random_weights(cfg, optional=optional), "f32")
    del tensors["rope.freqs_local"]
    freqs = rope_freqs(theta, cfg.rotary_dim)
    tensors["rope.freqs"] = type(tensors["rope.freqs"])(freqs)
    store.save(tmp_path / "model", store.Stored(cfg, tensors, bos=1, stop=(), chat_stop=()))
    with pytest.raises(CheckpointError, match=f"llama2.c cannot hold this model.*{said}"):
        convert(tmp_path / "model", tmp_path / "out", format="llama2c")
    assert not (tmp_path / "out").exists()


# ---- mistakes, and what happens to a file meanwhile ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("dtype must be one of f32, f16, bf16, q8, q4, not 'q3'", {"dtype": "q3"}),
        ("format must be one of", {"format": "gguf"}),
        ("version says the dtype", {"format": "llama2c", "dtype": "q8"}),
        ("versions are 0, 1, 2", {"format": "llama2c", "version": 3}),
        ("goes with the format llama2c", {"version": 1}),
        ("threads", {"threads": 0}),
        ("only those have revisions", {"revision": "main"}),
    ],
)
def test_options_that_are_none(write_model, tmp_path, said, options):
    with pytest.raises(OptionError, match=said):
        convert(write_model(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_read_is_written_over(write_model, tmp_path):
    source = write_model()
    blob, link = source.read_bytes(), tmp_path / "link"
    link.symlink_to(source)
    for target in (source, link, tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written") as error:
            convert(source, target)
        assert str(target) in str(error.value)
    assert source.read_bytes() == blob
    with pytest.raises(CheckpointError, match=r"a part of it"):
        convert(tmp_path, source)


def test_places_that_cannot_be_written(write_model, tmp_path):
    source = write_model()
    before = names(tmp_path)
    for target in (tmp_path / "missing" / "out", source / "out"):
        for options in ({}, {"format": "llama2c"}):
            with pytest.raises(CheckpointError, match=f"{target} cannot be written"):
                convert(source, target, **options)
    assert names(tmp_path) == before


def test_only_regular_files_are_replaced(write_model, tmp_path):
    """As root, anything could be: /dev/null would become a file."""
    source = write_model()
    places = dict.fromkeys(("pipe", "socket", "link"), "no regular file") | {"loop": "Too many levels"}
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if os.geteuid() == 0:
        with suppress(PermissionError):  # in some containers
            os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            places["null"] = "no regular file"
    before = {name: os.lstat(tmp_path / name) for name in places}
    for name, said in places.items():
        for options in ({}, {"format": "llama2c"}):
            with pytest.raises(CheckpointError, match=f"{tmp_path / name} cannot be written: .*{said}"):
                convert(source, tmp_path / name, **options)
        now = os.lstat(tmp_path / name)
        assert (now.st_ino, now.st_mode) == (before[name].st_ino, before[name].st_mode)
    listener.close()


def test_a_link_s_target_is_replaced(write_model, tmp_path):
    """Also one that does not exist yet; the link stays."""
    source, other = write_model(), tmp_path / "other"
    other.mkdir()
    convert(source, tmp_path / "plain")
    expected = (tmp_path / "plain").read_bytes()
    (other / "old").write_bytes(b"old")
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(Path("other", name))
        convert(source, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (other / name).read_bytes() == expected
    assert names(other) == ["new", "old"]


def test_nothing_that_is_read_is_written_over_by_another_name(tmp_path):
    """Hard and symbolic links to files of the checkpoint, its tokenizer and the calibration text."""
    cfg = writers.config(40, 56, 4, 2, 300)
    folder = write_folder(tmp_path / "folder", cfg, writers.random_weights(cfg))
    (tmp_path / "tok.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    (tmp_path / "text").write_text("the ocean " * 300)
    options = {"tokenizer": tmp_path / "tok.bin", "calibrate": tmp_path / "text", "dtype": "q4"}
    files = [folder / "model.safetensors", folder / "config.json", tmp_path / "tok.bin", tmp_path / "text"]
    before = [file.read_bytes() for file in files]
    for i, file in enumerate(files):
        hard, soft = tmp_path / f"hard{i}", tmp_path / f"soft{i}"
        hard.hardlink_to(file)
        soft.symlink_to(file)
        for target in (hard, soft, *([file] if file.parent == tmp_path else [])):
            with pytest.raises(CheckpointError, match=f"{target} cannot be written: it is .*a part of it"):
                convert(folder, target, **options)
    assert [file.read_bytes() for file in files] == before


def test_long_names(write_model, tmp_path):
    source = write_model()
    convert(source, tmp_path / ("x" * 250))
    assert fastllm.load(tmp_path / ("x" * 250))
    with pytest.raises(CheckpointError, match="cannot be written: File name too long"):
        convert(source, tmp_path / ("x" * 256))


def test_permissions(write_model, tmp_path):
    """A new file has those of any new file; one that takes another's place has that one's."""
    source, out = write_model(), tmp_path / "out"
    mask = os.umask(0o027)
    try:
        convert(source, out)
        assert stat.S_IMODE(out.stat().st_mode) == 0o640
        for mode in (0o600, 0o666):
            out.chmod(mode)
            convert(source, out)
            assert stat.S_IMODE(out.stat().st_mode) == mode
    finally:
        os.umask(mask)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["reserving", "writing", "syncing"])
def test_disks_that_fail(write_model, tmp_path, monkeypatch, number, when):
    source, out = write_model(), tmp_path / "out"
    out.write_bytes(b"before")
    before = names(tmp_path)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if when == "writing":
        monkeypatch.setattr("fastllm.weights.convert.pack", fail)  # stands for the write that follows
    else:
        monkeypatch.setattr(f"fastllm.files.os.{'fsync' if when == 'syncing' else 'posix_fallocate'}", fail)
    takes = r", it takes [\d,]+ bytes" if number != errno.EIO else ""
    with pytest.raises(CheckpointError, match=f"^{out} cannot be written: {os.strerror(number)}{takes}$"):
        convert(source, out)
    assert names(tmp_path) == before
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize("options", [{}, {"format": "llama2c"}])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_interrupted(write_model, tmp_path, error, options):
    source, out = write_model(), tmp_path / "out"
    out.write_bytes(b"what was there before")
    before = names(tmp_path)

    def stop(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(type(error)):
        convert(source, out, progress=stop, **options)
    assert names(tmp_path) == before
    assert out.read_bytes() == b"what was there before"


@pytest.mark.parametrize("options", [{}, {"format": "llama2c"}])
def test_a_source_truncated_meanwhile(write_model, tmp_path, options):
    source = write_model()
    before = names(tmp_path)

    def shrink(done, total):
        if done == total:
            os.truncate(source, source.stat().st_size - 1)

    def shrink_first(done, total):
        shrink(total, total)

    with pytest.raises(CheckpointError, match=f"{source} was truncated while it was in use"):
        convert(source, tmp_path / "out", progress=shrink_first, **options)
    source.write_bytes(source.read_bytes() + b"\0")
    assert convert(source, tmp_path / "out", progress=None, **options) is None
    (tmp_path / "out").unlink()
    assert names(tmp_path) == before


FULL_DISK = """
import resource, sys
from fastllm import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
raise SystemExit(cli.main(["convert", *sys.argv[1:]]))
"""


def test_out_of_disk(write_model, tmp_path):
    """A file system that takes no more bytes: it says so before anything is packed."""
    source = write_model()
    before = names(tmp_path)
    done = run(FULL_DISK, source, tmp_path / "out", "--dtype", "f32")
    assert done.returncode == 2
    assert re.fullmatch(rf"fastllm: {tmp_path}/out cannot be written: [^\n]*\n", done.stderr), done.stderr
    assert names(tmp_path) == before


# The command line, with time to interrupt it.
SLOW = """
import sys, time
from fastllm import cli
from fastllm.weights import convert
pack = convert.pack
def slow(*args, **options):
    print("packing", flush=True)
    time.sleep(0.1)
    pack(*args, **options)
convert.pack = slow
raise SystemExit(cli.main(["convert", *sys.argv[1:]]))
"""


@contextmanager
def converting(source, out, before=""):
    """A process that is in the middle of it: its temporary file is there. before: code that runs first."""
    there = names(out.parent)
    code = [sys.executable, "-c", before + SLOW, source, out]
    with subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert set(names(out.parent)) - set(there)
        yield process


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize("numbers", [*((n,) for n in ENDING), ENDING], ids=lambda numbers: numbers[-1].name)
def test_signals_leave_nothing(write_model, tmp_path, numbers):
    """One, or several at once, as when a session ends."""
    source = write_model()
    before = names(tmp_path)
    with converting(source, tmp_path / "out") as process:
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == f"fastllm: {tmp_path}/out was not written: interrupted\n"
    assert names(tmp_path) == before


def test_nohup(write_model, tmp_path):
    """A signal that was to be ignored is."""
    ignore = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with converting(write_model(), tmp_path / "out", before=ignore) as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=60)[1].startswith(f"{tmp_path}/out: ")
    assert process.returncode == 0


def test_interrupted_after_the_file_was_written(write_model, tmp_path):
    """Then it does not say that it was not."""
    late = """
real = convert.convert
def late(*args, **options):
    real(*args, **options)
    raise KeyboardInterrupt
convert.convert = late
raise SystemExit"""
    code = SLOW.replace("\nraise SystemExit", late)
    out = tmp_path / "out"
    out.write_bytes(b"before")
    done = run(code, write_model(), out)
    assert (done.returncode, done.stderr) == (130, "")
    assert fastllm.load(out).dtypes == ["f32"]


def test_what_a_killed_one_leaves_goes_with_the_next(write_model, tmp_path):
    """But nothing of a conversion that still runs, and nothing that only looks alike."""
    source, folder = write_model(), tmp_path / "folder"
    folder.mkdir()
    for alike in (".fastllm-0123456789abcdef", ".fastllm-.part", "fastllm-0123456789abcdef.part"):
        (folder / alike).write_bytes(b"mine")
    (folder / ".fastllm-0123456789abcdee.part").mkdir()
    (folder / ".fastllm-0123456789abcded.part").symlink_to(source)
    before = names(folder)
    with converting(source, folder / "killed") as process:
        process.kill()
    (left,) = set(names(folder)) - set(before)
    assert (folder / left).stat().st_size > 0
    with converting(source, folder / "living") as process:
        assert left not in names(folder)  # already when it begins
        assert len(names(folder)) == len(before) + 1
        convert(source, folder / "other")
        assert len(names(folder)) == len(before) + 2
        assert process.communicate(timeout=60)[1].startswith(f"{folder}/living: ")
    assert names(folder) == sorted([*before, "living", "other"])
    assert (folder / "living").read_bytes() == (folder / "other").read_bytes()


def test_killed_at_any_time(write_model, tmp_path):
    """The name has what was there before, or the whole file; the next conversion leaves nothing else."""
    source, folder = write_model(), tmp_path / "folder"
    folder.mkdir()
    convert(source, folder / "out")
    whole = (folder / "out").read_bytes()
    for i in range(8):
        (folder / "out").write_bytes(b"before")
        code = SLOW.replace("0.1", "0.002")
        with subprocess.Popen([sys.executable, "-c", code, source, folder / "out"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(i * 0.006)
            process.kill()
        assert (folder / "out").read_bytes() in (b"before", whole)
    convert(source, folder / "out")
    assert names(folder) == ["out"]


def test_the_bar_is_for_terminals(write_model, tmp_path):
    """Bytes and the time left, where somebody watches and it takes long; in a pipe the result alone."""
    pytest.importorskip("rich")
    source, out = write_model(), tmp_path / "out"
    done = run(SLOW, source, out)
    assert done.stderr == f"{out}: {out.stat().st_size:,} bytes\n"
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, source, out],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(follower)
        seen, end = b"", time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    seen += os.read(leader, 1 << 16)
                except OSError:
                    break
        assert process.wait(60) == 0
    os.close(leader)
    assert b"converting" in seen
    assert re.search(rb"[\d.]+/[\d.]+ kB", seen), seen
    assert re.search(rb"0:00:\d\d", seen)


def test_a_text_without_bos_begins_after_the_end_of_one(tmp_path):
    """Families whose texts have no BOS: what comes first is the token that training put between texts."""
    cfg = writers.config(40, 56, 4, 2, 300, max_seq=64)
    folder = write_folder(tmp_path / "granite", cfg, writers.random_weights(cfg, tied=True))
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(300)))
    llm = fastllm.load(folder)
    assert llm.bos is None
    assert llm.tokenize("the ocean") == llm.tokenizer.encode("the ocean")
    assert llm.tokenize("") == [2]
    assert llm.generate("", max_tokens=3, temperature=0)
