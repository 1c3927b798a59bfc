"""The packed cache: a second start maps what the first one packed, to the bit, and never what is out of date."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

import fastllm
from fastllm import CacheWarning, CheckpointWarning, OptionError
from fastllm.weights import packed
from helpers import packing
from helpers.calls import refusal
from helpers.data import DATA, names
from helpers.packing import given


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of a packed cache, which takes files of any size."""
    path = tmp_path / "cache"
    monkeypatch.setenv("FASTLLM_CACHE", str(path))
    monkeypatch.setattr(packed, "_SMALL", 0)
    return path


@pytest.fixture
def unpackable(monkeypatch):
    """A function after whose call nothing can be packed, so that what loads must come from the cache."""

    def forbid():
        def pack(*_, **__):
            raise AssertionError("packed again")

        monkeypatch.setattr("fastllm.weights.convert.pack", pack)
        monkeypatch.setattr("fastllm.weights.packing.pack", pack)

    return forbid


def only(cache):
    (name,) = names(cache)
    return cache / name


@pytest.mark.parametrize("kind", packing.KINDS)
@pytest.mark.parametrize("dtype", [None, "q8", "q4"])
def test_the_second_start_gives_the_same(tmp_path, cache, unpackable, kind, dtype):
    path = packing.KINDS[kind](tmp_path / "model")
    plain = given(path, dtype=dtype, cache=False)
    assert not cache.exists()
    assert given(path, dtype=dtype) == plain
    assert only(cache).name.startswith("model.")
    assert oct(cache.stat().st_mode)[-3:] == "700"
    unpackable()
    assert given(path, dtype=dtype) == plain
    llm = fastllm.load(path, dtype=dtype)
    assert llm._head.file.path == str(only(cache))
    assert llm.path == path


@pytest.mark.parametrize("name", ["meta_llama3_mp2", "mindspore_llama2", "grok1_deep12"])
def test_other_formats(cache, unpackable, name):
    plain = given(DATA / name, cache=False)
    assert given(DATA / name) == plain
    unpackable()
    assert given(DATA / name) == plain


def test_it_can_be_turned_off(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    for value in ("0", "off", "OFF", "", " "):
        monkeypatch.setenv("FASTLLM_CACHE", value)
        given(path)
        given(path, cache=False)
    assert names(tmp_path) == ["model"]
    assert refusal(lambda: fastllm.load(path, cache="no"), OptionError) == "cache must be True or False, not 'no'"


def test_small_files_are_not_worth_it(tmp_path, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("FASTLLM_CACHE", str(cache))
    given(packing.gguf(tmp_path / "model"))
    assert not cache.exists()


# ---- never out of date -----------------------------------------------------------------------------------------------


def _edit(name, **values):
    def change(path):
        file = path / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))

    return change


def _weights(path):
    """Other weights in as many bytes, at the same time as far as the file's times say."""
    before = os.stat(path / "model.safetensors")
    other = packing.folder(path.parent / "other", seed=1)
    blob = (other / "model.safetensors").read_bytes()
    assert len(blob) == before.st_size
    (path / "model.safetensors").write_bytes(blob)
    os.utime(path / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))


def _split(path):
    """The same weights of another model in files with an index, which come first where model.safetensors is gone."""
    other = packing.folder(path.parent / "other", seed=1)
    os.replace(other / "model.safetensors", path / "part.safetensors")
    import safetensors

    with safetensors.safe_open(path / "part.safetensors", "numpy") as file:
        places = dict.fromkeys(file.keys(), "part.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (path / "model.safetensors").unlink()


def _replace_by_link(path):
    other = packing.folder(path.parent / "other", seed=1)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(other / "model.safetensors")


CHANGES = {
    "settings of the tokenizer": _edit("tokenizer_config.json", chat_template="other", bos_token="<|endoftext|>"),
    "a new generation_config": _edit("generation_config.json", temperature=0.25, eos_token_id=[3, 4], do_sample=True),
    "a new template": lambda path: (path / "chat_template.jinja").write_text("a file"),
    "new tokens": _edit("added_tokens.json", **{"<new>": 400}),
    "new special tokens": _edit("special_tokens_map.json", eos_token="!"),
    "the config": _edit("config.json", rope_theta=500.0),
    "the vocabulary": lambda path: packing.library(normalizer=_lower()).save(str(path / "tokenizer.json")),
    "no tokenizer": lambda path: (path / "tokenizer.json").unlink(),
    "the weights": _weights,
    "the weights' link": _replace_by_link,
    "weights under other names": _split,
}


def _lower():
    import tokenizers

    return tokenizers.normalizers.Lowercase()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files(tmp_path, cache, change):
    path = packing.folder(tmp_path / "model")
    before = given(path)
    CHANGES[change](path)
    plain = given(path, cache=False)
    assert plain != before
    assert given(path) == plain
    assert len(names(cache)) == 1, "the new one takes the old one's place"
    assert given(path) == plain


def test_what_does_not_matter_may_change(tmp_path, cache, unpackable):
    path = packing.folder(tmp_path / "model")
    plain = given(path)
    (path / "README.md").write_text("about it")
    (path / "runs").mkdir()
    unpackable()
    assert given(path) == plain
    single = tmp_path / "single"
    single.mkdir()
    (single / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(AssertionError, match="packed again"):
        given(packing.gguf(single / "model.gguf"))


def test_files_beside_a_gguf_file_do_not_matter(tmp_path, unpackable):
    path = packing.gguf(tmp_path / "model.gguf")
    plain = given(path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.json").write_text("{}")
    unpackable()
    assert given(path) == plain


def test_options_have_files_of_their_own(tmp_path, cache):
    path, other = packing.gguf(tmp_path / "model"), packing.folder(tmp_path / "other")
    for options in ({}, {"dtype": "q8"}, {"dtype": "bf16"}, {"tokenizer": other / "tokenizer.json"}):
        count = len(names(cache)) if cache.exists() else 0
        assert given(path, **options) == given(path, cache=False, **options)
        assert len(names(cache)) == count + 1
        given(path, context=32, kv="q8", **options)  # changes nothing that is packed
        assert len(names(cache)) == count + 1


def test_adapters(tmp_path, cache):
    """Each list of adapters has a file of its own, and an adapter that changes has its effect."""
    import numpy as np
    import safetensors.numpy

    path, adapters = packing.folder(tmp_path / "model"), [tmp_path / "a", tmp_path / "b"]
    dim = packing.config(1).dim
    for i, adapter in enumerate(adapters):
        adapter.mkdir()
        settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        start = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        factors = {f"{start}A.weight": np.ones((1, dim), "f") * (i + 1), f"{start}B.weight": np.ones((dim, 1), "f")}
        safetensors.numpy.save_file(factors, adapter / "adapter_model.safetensors")
    lists = [[], adapters[:1], adapters[1:], adapters, adapters[::-1]]
    plain = [given(path, lora=some, cache=False) for some in lists]
    assert len({one["logits"] for one in plain}) >= 4
    for _ in range(2):
        assert [given(path, lora=some) for some in lists] == plain
        assert len(names(cache)) == len(lists)
    _edit("adapter_config.json", lora_alpha=3)(adapters[0])
    changed = given(path, lora=adapters[0], cache=False)
    assert changed != plain[1]
    assert given(path, lora=adapters[0]) == changed


def test_the_same_path_by_other_names(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model.gguf")
    given(path)
    (tmp_path / "link").symlink_to(tmp_path)
    given(tmp_path / "link" / "model.gguf")
    monkeypatch.chdir(tmp_path)
    given("model.gguf")
    assert len(names(cache)) == 1


def test_another_version_of_fastllm(tmp_path, cache, monkeypatch):
    path = packing.gguf(tmp_path / "model")
    given(path)
    code = packed._code()
    assert code == packed._code.__wrapped__()
    copy = tmp_path / "fastllm" / "weights"
    shutil.copytree(Path(fastllm.__file__).parent, copy.parent, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(packed, "__file__", str(copy / "packed.py"))
    assert packed._code.__wrapped__() == code, "an installation at another place is the same"
    with open(copy.parent / "families" / "llama.py", "a") as file:
        file.write("# a change\n")
    assert packed._code.__wrapped__() != code
    monkeypatch.setattr(packed, "_code", lambda: "another")
    given(path)
    assert len(names(cache)) == 2


def test_an_installation_without_sources(tmp_path, cache, monkeypatch):
    """Then what is compiled tells its versions, but for the times in it; without any file there is no cache."""
    import compileall

    copy = tmp_path / "fastllm"
    shutil.copytree(Path(fastllm.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def code():
        for source in copy.rglob("*.py"):
            os.utime(source, (len(found), len(found)))
        assert compileall.compile_dir(copy, legacy=True, force=True, quiet=2)
        for source in copy.rglob("*.py"):
            os.replace(source, source.with_suffix(".kept"))
        found.append(packed._code.__wrapped__())
        for source in copy.rglob("*.kept"):
            os.replace(source, source.with_suffix(".py"))

    found = []
    monkeypatch.setattr(packed, "__file__", str(copy / "weights" / "packed.py"))
    code()
    code()
    for name in ("families/llama.py", "config.py"):
        with open(copy / name, "a") as file:
            file.write("_CHANGED = 1\n")
        code()
    assert found[0] == found[1]
    assert len(set(found)) == 3
    shutil.rmtree(copy)
    monkeypatch.setattr(packed, "_code", packed._code.__wrapped__)
    path = packing.gguf(tmp_path / "model")
    with pytest.warns(CacheWarning, match="is packed into memory at each start: fastllm has no files of its own in"):
        assert given(path) == given(path, cache=False)


def test_llama2c_s_tokenizer_in_the_current_folder(tmp_path, monkeypatch):
    """It is looked for beside the model and in the current folder: another current folder may have another."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    path = packing.llama2c(tmp_path / "c" / "model.bin")
    os.replace(tmp_path / "c" / "tokenizer.bin", tmp_path / "a" / "tokenizer.bin")
    for place in ("a", "b", "a", "b", "b"):
        monkeypatch.chdir(tmp_path / place)
        assert given(path) == given(path, cache=False)


def test_llama2c_s_tokenizer_beside_the_file(tmp_path, cache, unpackable, monkeypatch):
    """Where one is there, the current folder does not matter."""
    path = packing.llama2c(tmp_path / "model.bin")
    monkeypatch.chdir(tmp_path)
    plain = given("model.bin")
    unpackable()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert given("../model.bin") == given(path) == plain
    assert len(names(cache)) == 1


def test_tensors_without_use_are_named_at_each_start(tmp_path, unpackable):
    import numpy as np
    import safetensors.numpy

    path = packing.folder(tmp_path / "model")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    safetensors.numpy.save_file({**tensors, "extra.weight": np.ones((2, 2), "f")}, path / "model.safetensors")
    with pytest.warns(CheckpointWarning, match=r"extra\.weight") as first:
        given(path)
    unpackable()
    with pytest.warns(CheckpointWarning, match=r"extra\.weight") as second:
        given(path)
    assert len(first) == len(second) == 1
    assert str(first[0].message) == str(second[0].message)


def test_a_tokenizer_that_cannot_be_used_is_kept_all_the_same(tmp_path, unpackable, monkeypatch):
    """Its library may be installed later."""
    path = packing.gguf(tmp_path / "model")
    plain = given(path, cache=False)
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "tokenizers", None)
        lacking = given(path)
        assert "tokenizers library" in lacking["template"]
        unpackable()
        assert given(path) == lacking
    assert given(path) == plain


# ---- the prompt cache ------------------------------------------------------------------------------------------------


def test_packed_weights_need_no_hash(tmp_path, monkeypatch):
    """The keys of a prompt cache tell weights by what the packed cache knows of them."""
    path, pages = packing.gguf(tmp_path / "model"), tmp_path / "pages"

    def key(**options):
        with fastllm.load(path, cache_dir=pages, **options) as llm:
            return llm._engine.disk._key

    with monkeypatch.context() as patch:
        patch.setattr("fastllm.engine.key._file_hash", lambda *_: pytest.fail("hashed"))
        first = key()
        assert key() == first
        assert key(dtype="q8") != first
        packing.gguf(path, seed=1)
        assert key() != first
    assert names(pages) == []


def test_no_warning_where_all_is_well(tmp_path):
    path = packing.folder(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given(path)
        given(path)
