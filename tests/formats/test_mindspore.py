"""MindSpore's .ckpt: files that MindSpore wrote, and broken ones."""

import shutil
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError, families
from fastllm.formats import open_checkpoint
from fastllm.tensors import floats
from helpers.calls import failure
from helpers.data import DATA
from helpers.mutations import changed

EXTRAS = DATA / "mindspore_extras"
MODELS = {"mindspore_llama2": "llama2_tiny.ckpt", "mindspore_llama3": "llama3_tiny.ckpt"}


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(tag, kind, dims, content, *, packed=False):
    axes = field(1, b"".join(map(varint, dims))) if packed else b"".join(b"\x08" + varint(n) for n in dims)
    return field(1, field(1, tag.encode()) + field(2, axes + field(2, kind.encode()) + field(3, content)))


def opened(path, blob):
    path.write_bytes(blob)
    return open_checkpoint(path)


def golden(name):
    with np.load(DATA / name / "expected.npz") as arrays:
        return dict(arrays)


def values(tensor):
    return floats(tensor).reshape(tensor.shape)


ONES = entry("w", "Float32", (2, 2), np.ones(4, "<f4").tobytes())
TWOS = entry("w", "Float32", (2, 2), np.full(4, 2, "<f4").tobytes())
OTHER = entry("v", "Float16", (3,), np.arange(3, dtype="<f2").tobytes())


# ---- models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", ["file", "folder"])
def test_a_model_computes_what_the_reference_does(name, part):
    expected = golden(name)
    llm = fastllm.load(DATA / name / (MODELS[name] if part == "file" else ""), dtype="f32", threads=1)
    assert np.abs(llm.logits(expected["tokens"].tolist()) - expected["logits"]).max() < 1e-3
    prompt = expected["greedy_prompt"].tolist()
    greedy = [*expected["greedy"].tolist(), 2]  # the recorded text ends before EOS
    assert list(llm.generate(prompt, max_tokens=16, temperature=0)) == greedy[: greedy.index(2)]


def test_weights_stay_in_their_type(tmp_path):
    found = open_checkpoint(DATA / "mindspore_llama3" / "llama3_tiny.ckpt")
    assert {tensor.dtype for tensor in found.tensors.values()} == {"bf16"}
    assert (found.format, found.architecture) == ("MindSpore", "mindformers.llama")


def test_a_model_in_several_files(tmp_path):
    """Parameters spread over two files, with an optimizer's values among them."""
    folder = DATA / "mindspore_llama2"
    tensors = open_checkpoint(folder).tensors
    parts = [b"", entry("adam_m.lm_head.weight", "Float32", (1,), bytes(4))]
    for i, (tag, tensor) in enumerate(tensors.items()):
        parts[i % 2] += entry(tag, "Float16", tensor.shape, bytes(tensor.all()), packed=True)
    for i, blob in enumerate(parts):
        (tmp_path / f"part_{i}.ckpt").write_bytes(blob)
    shutil.copy(folder / "predict.yaml", tmp_path)
    found = open_checkpoint(tmp_path)
    assert found.format == "MindSpore, 2 files"
    expected = golden("mindspore_llama2")
    llm = fastllm.load(tmp_path, dtype="f32", threads=1)
    assert np.abs(llm.logits(expected["tokens"].tolist()) - expected["logits"]).max() < 1e-3
    shutil.copy(tmp_path / "part_0.ckpt", tmp_path / "part_2.ckpt")
    with pytest.raises(CheckpointError, match="several checkpoints"):
        open_checkpoint(tmp_path)


def recipe_with(**changes):
    found = open_checkpoint(DATA / "mindspore_llama2")
    return families.recipe(found._replace(header={**found.header, **changes}))


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"intermediate_size": 77}, 77),
        ({"multiple_of": 1}, 128),  # 8 / 3 of 48
        ({"multiple_of": 100}, 200),
        ({"ffn_dim_multiplier": 1.3, "multiple_of": 10}, 170),  # 2 / 3 of int(1.31 * 192)
    ],
)
def test_the_width_inside(changes, width):
    assert recipe_with(**changes).config.hidden_dim == width


def test_frequencies():
    def freqs(**changes):
        return np.frombuffer(recipe_with(**changes).vectors["rope.freqs"], np.float32)

    plain = 10000.0 ** -(np.arange(0, 12, 2) / 12)
    assert np.allclose(freqs(), plain, rtol=1e-6)
    assert np.allclose(freqs(extend_method="PI", scaling_factor=4.0), plain / 4, rtol=1e-6)
    stretched = 80000.0 ** -(np.arange(0, 12, 2) / 12)
    assert np.allclose(freqs(extend_method="NTK", scaling_factor=8.0), stretched, rtol=1e-6)
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    found = freqs(extend_method="LLAMA3", scaling_factor=factors)
    turns = 512 * plain / (2 * np.pi)
    share = np.clip((turns - 1) / 3, 0, 1)
    assert np.allclose(found, share * plain + (1 - share) * plain / 8, rtol=1e-5)
    with pytest.raises(CheckpointError, match="extend_method 'YARN'"):
        freqs(extend_method="YARN", scaling_factor=factors)


@pytest.mark.parametrize(("name", "word"), [("llama2_tiny.ckpt", "yaml")])
def test_a_model_without_its_yaml(tmp_path, name, word):
    shutil.copy(DATA / "mindspore_llama2" / name, tmp_path)
    with pytest.raises(CheckpointError, match=word):
        fastllm.load(tmp_path / name, threads=1)


def test_llama_2_needs_no_yaml(tmp_path):
    """Llama 2 7B is recognized by its shapes; the files are sparse."""
    sizes = {"tok_embeddings.embedding_weight": (32000, 4096), "norm_out.weight": (4096,)}
    layer = {f"attention.{name}.weight": (4096, 4096) for name in ("wq", "wk", "wv", "wo")}
    layer |= {"feed_forward.w1.weight": (11008, 4096), "feed_forward.w3.weight": (11008, 4096)}
    layer |= {"feed_forward.w2.weight": (4096, 11008), "attention_norm.weight": (4096,), "ffn_norm.weight": (4096,)}
    sizes |= {f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    found = opened(tmp_path / "m.ckpt", ONES)
    tensor = found.tensors["w"]._replace(dtype="f16", read=lambda begin, end: bytes((end - begin) * 4096 * 2))
    tensors = {f"model.{name}": tensor._replace(shape=shape) for name, shape in sizes.items()}
    tensors["lm_head.weight"] = tensor._replace(shape=(32000, 4096))
    config = families.recipe(found._replace(tensors=tensors)).config
    assert (config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) == (2, 32, 32, 128)
    assert (config.hidden_dim, config.max_seq, config.vocab_size) == (11008, 4096, 32000)


# ---- the container


@pytest.mark.parametrize("name", ["extras.ckpt", "extras_crc.ckpt"])
def test_all_types(name):
    found = open_checkpoint(EXTRAS / name).tensors
    expected = golden("mindspore_extras")
    for key in expected:
        assert found[key].shape == expected[key].shape
        assert (values(found[key]) == expected[key].astype(np.float32)).all()
    assert [found[key].dtype for key in ("a.f32", "b.f16", "c.bf16")] == ["f32", "f16", "bf16"]


def test_scalars_and_texts():
    found = open_checkpoint(EXTRAS / "extras_crc.ckpt").tensors
    assert [found[name].shape for name in ("epoch_num", "step_num", "loss_scale")] == [(), (), ()]
    assert [float(values(found[name])) for name in ("epoch_num", "step_num", "loss_scale")] == [3, 1234, 65536]
    assert "note" not in found


def test_slices_are_joined():
    tensor = open_checkpoint(EXTRAS / "sliced_numpy_path.ckpt").tensors["w"]
    whole = np.arange(700, dtype=np.float32).reshape(7, 100)
    assert (values(tensor) == whole).all()
    for begin in range(7):
        for end in range(begin, 8):
            assert (floats(tensor, begin, end) == whole[begin:end]).all()


def test_slices_that_end_inside_a_row(tmp_path):
    whole = np.arange(35, dtype="<f4").reshape(5, 7)
    data = whole.tobytes()
    cuts = [0, 3, 50, 50, 51, 139, 140]
    blob = b"".join(entry("w", "Float32", (5, 7), data[a:b]) for a, b in pairwise(cuts))
    tensor = opened(tmp_path / "m.ckpt", blob).tensors["w"]
    for begin in range(5):
        for end in range(begin, 6):
            assert (floats(tensor, begin, end) == whole[begin:end]).all()


@pytest.mark.parametrize("blob", [ONES + TWOS, ONES + OTHER + TWOS])
def test_of_entries_that_come_again_the_last_counts(tmp_path, blob):
    """MindSpore's loader puts entries in a dictionary, so that a later one replaces an earlier one."""
    assert (values(opened(tmp_path / "m.ckpt", blob).tensors["w"]) == 2).all()


@pytest.mark.parametrize(
    ("name", "word"), [("corrupt_crc", "CRC"), ("encrypted", "encrypted"), ("truncated", "truncated")]
)
def test_files_that_mindspore_refuses_too(name, word):
    with pytest.raises(CheckpointError, match=word) as error:
        open_checkpoint(EXTRAS / f"{name}.ckpt")
    assert str(EXTRAS / f"{name}.ckpt") in str(error.value)


@pytest.mark.parametrize(
    ("blob", "word"),
    [
        (b"\x10\x01", "holds no tensor"),
        (b"\x08\x01", "no MindSpore checkpoint"),
        (field(1, field(1, b"w")), "holds no tensor"),
        (ONES[:-1], "truncated"),
        (entry("w", "Float32", (2, 3), bytes(8)), "lacks 16 bytes"),
        (entry("w", "Float32", (2, 3), bytes(8)) + OTHER, "lacks 16 bytes"),
        (entry("w", "Float32", (2, 3), bytes(8)) + entry("w", "Float32", (3, 2), bytes(16)), "lacks 16 bytes"),
        (entry("w", "Float32", (2, 3), bytes(28)), "too many bytes"),
        (entry("w", "Float32", (1 << 60, 1 << 60), bytes(8)), "lacks"),
        (entry("w", "Float32", ((1 << 64) - 1,), bytes(8)), "impossible shape"),
        (entry("w", "Float32", (1,) * 20, bytes(4)), "impossible shape"),
        (entry("w", "Float32", (1,) * 20, bytes(4), packed=True), "impossible shape"),
        (entry("w", "Int4", (2,), bytes(1)), "'Int4'"),
        (field(1, field(1, b"\xff") + field(2, b"")), "no text"),
        (field(1, field(1, b"w") + b"\x10\x05"), "no MindSpore checkpoint"),
        (b"\x0b\x00", "no MindSpore checkpoint"),
        (b"\x0a" + b"\xff" * 12, "truncated"),
        (ONES + b"crc_num" + (zlib.crc32(ONES) ^ 1).to_bytes(10, "big"), "CRC"),
    ],
)
def test_files_that_cannot_be(tmp_path, blob, word):
    with pytest.raises(CheckpointError, match=word) as error:
        opened(tmp_path / "m.ckpt", blob)
    assert str(tmp_path / "m.ckpt") in str(error.value)


def test_a_sum_that_fits(tmp_path):
    blob = ONES + b"crc_num" + zlib.crc32(ONES).to_bytes(10, "big")
    assert (values(opened(tmp_path / "m.ckpt", blob).tensors["w"]) == 1).all()


def test_truncated_at_every_byte(tmp_path):
    blob = (EXTRAS / "extras_crc.ckpt").read_bytes()
    whole = set(open_checkpoint(EXTRAS / "extras_crc.ckpt").tensors)
    for size in range(1, len(blob)):
        path = tmp_path / "m.ckpt"

        def use(path=path, size=size):
            assert set(opened(path, blob[:size]).tensors) <= whole  # the cut is between two entries

        error = failure(use) if size < len(blob) - 17 else CheckpointError(str(path))
        assert error is None or str(path) in str(error)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 398), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated(tmp_path_factory, changes):
    blob = changed((EXTRAS / "extras.ckpt").read_bytes(), changes)
    path = tmp_path_factory.mktemp("mutated") / "m.ckpt"

    def use():
        for tensor in opened(path, blob).tensors.values():
            floats(tensor)

    error = failure(use)
    assert error is None or str(path) in str(error)


def test_many_slices(tmp_path):
    blob = entry("w", "Int8", (50000,), b"\x01") * 50000
    assert (values(opened(tmp_path / "m.ckpt", blob).tensors["w"]) == 1).all()
    blob = entry("w", "Int8", (100000,), b"\x01") * 100000
    with pytest.raises(CheckpointError, match="more than 65,536 entries"):
        opened(tmp_path / "m.ckpt", blob)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model: [", "opens a bracket"),
        ("model:\n" + "- " * 3000, "nested too deeply"),
        ("model: " + "[" * 3000, "nested too deeply"),
        ("a: &a [1]\nmodel:\n  <<: *a", "merges"),
        ("model:\n  model_config:\n    x: 1\n" + "#" * 300000, "too long"),
        ("!!python/object/apply:os.system ['true']", "line 2"),
        ("\0", "line 2"),
        ("\ud800", "utf-8"),
    ],
)
def test_yaml_that_cannot_be(tmp_path, text, word):
    (tmp_path / "m.ckpt").write_bytes(ONES)
    (tmp_path / "predict.yaml").write_text(f"# model_config\n{text}", errors="surrogatepass")
    with pytest.raises(CheckpointError, match=word) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "predict.yaml") in str(error.value)


def test_which_yaml(tmp_path):
    """The YAML file with a model_config is read; several must agree; with none there is an error."""
    (tmp_path / "m.ckpt").write_bytes(ONES)
    (tmp_path / "a.yaml").write_text("a: |\n  another program's\n")
    assert open_checkpoint(tmp_path).header == {}
    (tmp_path / "b.yaml").write_text("model: {model_config: {num_heads: 3, op: [1], scaling_factor: {factor: 2}}}")
    assert open_checkpoint(tmp_path / "m.ckpt").header == {"num_heads": 3, "scaling_factor": {"factor": 2}}
    shutil.copy(tmp_path / "b.yaml", tmp_path / "c.yaml")
    assert open_checkpoint(tmp_path).header["num_heads"] == 3
    (tmp_path / "c.yaml").write_text("model: {model_config: {num_heads: 4}}")
    with pytest.raises(CheckpointError, match=r"b\.yaml, c\.yaml"):
        open_checkpoint(tmp_path)
