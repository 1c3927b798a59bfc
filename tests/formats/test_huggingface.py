"""Hugging Face's folders and .safetensors files: read as the safetensors library does, broken ones refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError
from fastllm.families import recipe
from fastllm.files import map_file
from fastllm.formats import huggingface, open_checkpoint, safetensors
from fastllm.tensors import floats
from helpers.calls import failure
from helpers.mutations import changed


def blob_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensors_of(arrays):
    """The bytes of a .safetensors file of f32 arrays."""
    header, body = {}, b""
    for name, array in arrays.items():
        data = np.asarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": np.shape(array), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return blob_of(header, body)


def opened(path, blob):
    path.write_bytes(blob)
    return safetensors.tensors(path, map_file(path))


def values(tensor):
    return floats(tensor).reshape(tensor.shape)


ARRAYS = {"a": [[1, 2, 3], [4, 5, 6]], "b": [7, 8], "c": [[[9]]]}


def folder_of(path, files, config=None):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


# ---- .safetensors


def test_all_types_of_the_library(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    kinds = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    generator = torch.Generator().manual_seed(0)
    source = {kind: (torch.randn(5, 3, generator=generator) * 9).to(getattr(torch, kind)) for kind in kinds}
    every = torch.arange(256).to(torch.uint8)
    source |= {
        kind: every.clone().view(getattr(torch, kind)).reshape(8, 32) for kind in ("float8_e4m3fn", "float8_e5m2")
    }
    source |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "large": torch.tensor([1e300, -1e300, 1e-300])}
    source["large"] = torch.tensor([1e300, -1e300, 1e-300], dtype=torch.float64)
    save_file(source, tmp_path / "m.safetensors")
    found = safetensors.tensors(tmp_path / "m.safetensors", map_file(tmp_path / "m.safetensors"))
    assert found.keys() == source.keys()
    for name, tensor in source.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(values(found[name]), tensor.float().numpy(), equal_nan=True)
        if tensor.ndim == 2 and len(tensor):
            assert np.array_equal(floats(found[name], 1, 3)[: len(tensor) - 1], tensor[1:3].float(), equal_nan=True)
    assert [found[kind].dtype for kind in kinds[:4]] == ["f32", "f16", "bf16", "f32"]


def test_a_type_that_is_not_known_is_refused_when_it_is_read(tmp_path):
    entry = {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}
    tensor = opened(tmp_path / "m.safetensors", blob_of({"w": entry}, bytes(2)))["w"]
    with pytest.raises(CheckpointError, match=r"m\.safetensors holds tensor 'w' as 'F4'"):
        tensor.read(0, 1)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("blob", "word"),
    [
        (b"\x01\x02", "2 bytes"),
        (struct.pack("<Q", 1 << 40) + bytes(50), "would take"),
        (struct.pack("<Q", 1000) + b"{" + bytes(50), "truncated"),
        (blob_of(b"{]"), "not JSON"),
        (blob_of(b"\xff\xff\xff"), "not JSON"),
        (blob_of(b"[" * 100000), "not JSON"),
        (blob_of([1, 2]), "not a JSON object"),
        (blob_of({"w": 3}), "where tensor 'w' lies"),
        (blob_of({"w": {"dtype": "F32", "shape": [1]}}), "where tensor 'w' lies"),
        (blob_of({"w": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, bytes(4)), "where tensor 'w' lies"),
        (blob_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)), "where tensor 'w' lies"),
        (blob_of({"w": entry([-1], 0, 4)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([1.0], 0, 4)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([True], 0, 4)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([1 << 64], 0, 4)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([1] * 17, 0, 4)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([1], -4, 0)}, bytes(4)), "impossible"),
        (blob_of({"w": entry([1], 4, 0)}, bytes(4)), "ends before it begins"),
        (blob_of({"w": entry([2], 0, 8)}, bytes(7)), "truncated"),
        (blob_of({"w": entry([3], 0, 8)}, bytes(8)), "takes 12 bytes, not 8"),
        (blob_of({"w": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)), "not 8"),
        (blob_of({"w": entry([2], 0, 8, "I64")}, bytes(8)), "takes 16 bytes, not 8"),
        (blob_of({"v": entry([2], 0, 8), "w": entry([2], 4, 12)}, bytes(12)), "'v' and 'w' overlap"),
        (blob_of({f"w{i}": 0 for i in range(1 << 18)}), "262,144 tensors"),
    ],
)
def test_files_that_cannot_be(tmp_path, blob, word):
    with pytest.raises(CheckpointError, match=word) as error:
        opened(tmp_path / "m.safetensors", blob)
    assert str(tmp_path / "m.safetensors") in str(error.value)


def test_truncated_at_every_byte(tmp_path):
    blob = tensors_of(ARRAYS)
    assert {name: values(t).tolist() for name, t in opened(tmp_path / "m", blob).items()} == ARRAYS
    for size in range(1, len(blob)):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            opened(tmp_path / "m", blob[:size])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated(tmp_path_factory, changes):
    blob = changed(tensors_of(ARRAYS), changes)
    path = tmp_path_factory.mktemp("mutated") / "m.safetensors"

    def use():
        for tensor in opened(path, blob).values():
            floats(tensor)

    error = failure(use)
    assert error is None or str(path) in str(error)


# ---- folders

INDEX = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
ONE = tensors_of({"a": ARRAYS["a"], "unlisted": [0]})
TWO = tensors_of({"b": ARRAYS["b"], "c": ARRAYS["c"]})
SHARDS = {"model.safetensors.index.json": INDEX, "one.safetensors": ONE, "two.safetensors": TWO}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"model.safetensors": tensors_of(ARRAYS)}, "Hugging Face safetensors"),
        ({"adapter.safetensors": tensors_of(ARRAYS)}, "Hugging Face safetensors"),
        (SHARDS, "Hugging Face safetensors, 2 files"),
        ({**SHARDS, "model.safetensors": tensors_of(ARRAYS)}, "Hugging Face safetensors"),
    ],
)
def test_a_folder(tmp_path, files, kind):
    found = open_checkpoint(folder_of(tmp_path / "m", files, {"model_type": "x"}))
    assert (found.format, found.architecture, found.header) == (kind, "x", {"model_type": "x"})
    assert {name: values(t).tolist() for name, t in found.tensors.items()} == ARRAYS


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_pytorch_files(tmp_path, sharded):
    torch = pytest.importorskip("torch")
    folder_of(tmp_path, {}, {"architectures": ["Some"]})
    arrays = {name: torch.tensor(array, dtype=torch.float32) for name, array in ARRAYS.items()}
    if sharded:
        places = {"a": "one.bin", "b": "two.bin", "c": "two.bin"}
        folder_of(tmp_path, {"pytorch_model.bin.index.json": {"weight_map": places}})
        for file in ("one.bin", "two.bin"):
            torch.save({name: array for name, array in arrays.items() if places[name] == file}, tmp_path / file)
    else:
        torch.save(arrays, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    assert found.format == "Hugging Face pytorch_model.bin" + (", 2 files" if sharded else "")
    assert {name: values(t).tolist() for name, t in found.tensors.items()} == ARRAYS


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"architectures": ["One", "Two"], "model_type": "x"}, "One"),
        ({"architectures": [], "model_type": "x"}, "x"),
        ({"architectures": None}, ""),
        ({"architectures": [3]}, ""),
    ],
)
def test_the_architecture(tmp_path, config, architecture):
    folder = folder_of(tmp_path, {"model.safetensors": tensors_of(ARRAYS)}, config)
    assert open_checkpoint(folder).architecture == architecture


def test_the_config_and_those_beside_it(tmp_path):
    beside = {"generation_config.json": {"eos_token_id": 3}, "tokenizer_config.json": {"add_bos_token": True}}
    folder = folder_of(tmp_path, {"m.safetensors": tensors_of(ARRAYS), **beside}, {"hidden_size": 4})
    expected = {
        "hidden_size": 4,
        "generation_config": {"eos_token_id": 3},
        "tokenizer_config": {"add_bos_token": True},
    }
    assert huggingface.config(folder) == expected
    assert open_checkpoint(folder / "m.safetensors").header == expected


def test_a_lone_file_needs_a_config_beside_it(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(tensors_of(ARRAYS))
    with pytest.raises(CheckpointError, match=r"no config\.json beside it"):
        recipe(open_checkpoint(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, r"no weights .* none of model\.safetensors"),
        ({"a.safetensors": ONE, "b.safetensors": TWO}, "2 .safetensors files and no index"),
        ({**SHARDS, "one.safetensors": b"junk"}, r"one\.safetensors"),
        ({k: v for k, v in SHARDS.items() if "two" not in k}, r"two\.safetensors does not exist"),
        ({**SHARDS, "two.safetensors": ONE}, r"two\.safetensors has not the tensor 'b'"),
        ({**SHARDS, "model.safetensors.index.json": b"{"}, r"index\.json is broken: it is not JSON"),
        ({**SHARDS, "model.safetensors.index.json": [1]}, r"index\.json is broken: it is not a JSON object"),
        ({**SHARDS, "model.safetensors.index.json": {}}, "no weight_map"),
        ({**SHARDS, "model.safetensors.index.json": {"weight_map": {}}}, "no weight_map"),
        *(
            ({**SHARDS, "model.safetensors.index.json": {"weight_map": {"a": name}}}, "not the name of a file")
            for name in ("../one.safetensors", "/etc/passwd", "..", ".", "", "x/y", "x\\y", "x\0y", 3, None, ["a"])
        ),
        (
            {"model.safetensors": tensors_of(ARRAYS), "generation_config.json": b"\xff"},
            r"generation_config\.json is br",
        ),
        ({"model.safetensors": tensors_of(ARRAYS), "tokenizer_config.json": [1]}, r"tokenizer_config\.json is broken"),
        ({"model.safetensors": tensors_of(ARRAYS), "config.json": b"[" * 100000}, r"config\.json is broken"),
        ({"model.safetensors": tensors_of(ARRAYS), "config.json": b""}, r"config\.json is empty"),
    ],
)
def test_folders_that_cannot_be(tmp_path, files, word):
    with pytest.raises(CheckpointError, match=word) as error:
        open_checkpoint(folder_of(tmp_path / "m", {"config.json": {}, **files}))
    assert str(tmp_path / "m") in str(error.value)


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_model_of_transformers(tmp_path, size):
    pytest.importorskip("transformers")
    import transformers

    from helpers.reference import build, difference, logits, tokens

    sizes = {"vocab_size": 61, "hidden_size": 40, "intermediate_size": 57, "num_hidden_layers": 2}
    model = build("LlamaForCausalLM", transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model.save_pretrained(tmp_path, max_shard_size=size)
    found = open_checkpoint(tmp_path)
    assert ("files" in found.format) == (size == "20KB")
    for name, tensor in model.state_dict().items():
        assert (values(found.tensors[name]) == tensor.numpy()).all()
    ids = tokens(61, 30)
    path = tmp_path if size == "20KB" else tmp_path / "model.safetensors"
    assert difference(fastllm.load(path, dtype="f32", threads=1).logits(ids), logits(model, ids)) < 1e-4
