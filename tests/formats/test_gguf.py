"""GGUF files: block types equal to the gguf package's, files of the package and our own, and broken files."""

import json
import struct
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import CheckpointError
from fastllm.formats import open_checkpoint
from fastllm.tensors import BLOCKS, floats, mapped
from helpers.blocks import DECODE
from helpers.calls import failure
from helpers.gguf_files import gguf_bytes, string
from helpers.mutations import changed


def opened(path, blob):
    path.write_bytes(blob)
    return open_checkpoint(path)


def refused(path, blob, *words):
    with pytest.raises(CheckpointError) as error:
        opened(path, blob)
    message = str(error.value)
    assert str(path.parent) in message
    assert "\n" not in message
    assert all(word in message for word in words), message


ARCH = {"general.architecture": "llama"}
ONE = {"w": ("F32", (3, 2), np.arange(6, dtype="<f4").tobytes())}


# ---- block types


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package warns of NaN scales
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("scale", [None, 0x0000, 0x0001, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0x7E00])
def test_a_block_type_to_the_bit(kind, scale):
    """Values equal numpy's, and the gguf package's if it is installed. scale: the bits of every f16; None: random."""
    values, nbytes, *_ = BLOCKS[kind]
    blocks = np.random.default_rng(1).integers(0, 256, (35, nbytes), np.uint8)
    blocks[0], blocks[1] = 0, 255
    if scale is not None:
        places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2) if kind in WITH_MINIMUM else (0,))
        for at in places:
            blocks[:, at : at + 2] = np.frombuffer(struct.pack("<H", scale), np.uint8)
    tensor = mapped(kind, (7, 5 * values), memoryview(blocks.tobytes()))
    found = floats(tensor)
    expected = [DECODE[kind](blocks).astype(np.float32).reshape(7, 5 * values)]
    if find_spec("gguf"):
        import gguf

        number = gguf.GGMLQuantizationType[kind]
        assert gguf.GGML_QUANT_SIZES[number] == (values, nbytes)
        expected.append(gguf.quants.dequantize(blocks, number).reshape(7, 5 * values))
    for other in expected:
        same = (found.view(np.uint32) == other.view(np.uint32)) | (np.isnan(found) & np.isnan(other))
        assert same.all()
    assert np.array_equal(floats(tensor, 2, 5), found[2:5], equal_nan=True)


WITH_MINIMUM = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")


def test_many_blocks():
    rng = np.random.default_rng(0)
    rows, width = 70, 32 * 300
    scales = rng.standard_normal((rows * 300, 1)).astype("<f2")
    values = rng.integers(-128, 128, (rows * 300, 32), np.int8)
    data = np.concatenate([scales.view(np.uint8), values.view(np.uint8)], axis=1).tobytes()
    found = floats(mapped("Q8_0", (rows, width), memoryview(data)))
    assert (found == (scales.astype(np.float32) * values).reshape(rows, width)).all()


# ---- the container


def test_a_file_of_the_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for letter, number in {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -5, "uint32": 7, "int32": -7}.items():
        getattr(writer, f"add_{letter}")(f"x.{letter}", number)
    writer.add_uint64("x.uint64", 1 << 63)
    writer.add_int64("x.int64", -(1 << 62))
    writer.add_float32("x.float32", 0.5)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", "día")
    writer.add_array("x.ints", [1, -2, 3])
    writer.add_array("x.texts", ["a", "", "ü"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<s>", "é", "b"])
    writer.add_token_scores([0.0, -1.5, -2.0])
    writer.add_bos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    a, v = rng.standard_normal((3, 5)).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    stack = rng.standard_normal((2, 3, 64)).astype(np.float32)
    writer.add_tensor("a", a)
    writer.add_tensor("v", v)
    writer.add_tensor("half", a.astype(np.float16))
    for kind in ("Q8_0", "Q4_0", "Q5_1"):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(stack, number), raw_dtype=number)
    bf16 = gguf.quants.quantize(stack, gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("bf16", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = open_checkpoint(tmp_path / "m.gguf")
    assert (found.format, found.architecture) == ("GGUF", "gguf:llama")
    expected = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -5, "uint32": 7, "int32": -7, "uint64": 1 << 63}
    expected |= {"int64": -(1 << 62), "float32": 0.5, "float64": 0.1, "bool": True, "string": "día"}
    expected |= {"ints": [1, -2, 3], "texts": ["a", "", "ü"]}
    assert {k.removeprefix("x."): v for k, v in found.header.items() if k.startswith("x.")} == expected
    assert "tokenizer.ggml.tokens" not in found.header
    assert found.header["tokenizer.ggml.bos_token_id"] == 0
    kind, blob = found.tokenizer
    words = json.loads(blob)
    assert (kind, words["tokenizer.ggml.tokens"]) == ("gguf", ["<s>", "é", "b"])
    assert words["tokenizer.ggml.scores"] == [0.0, -1.5, -2.0]
    assert words["tokenizer.chat_template"] == "{{ messages }}"
    tensors = found.tensors
    assert {name: (t.dtype, t.shape) for name, t in tensors.items() if name in ("a", "v", "half", "bf16")} == {
        "a": ("f32", (3, 5)),
        "v": ("f32", (7,)),
        "half": ("f16", (3, 5)),
        "bf16": ("bf16", (2, 3, 64)),
    }
    assert (floats(tensors["a"], 1, 3) == a[1:]).all()
    for name in ("Q8_0", "Q4_0", "Q5_1", "BF16"):
        number = gguf.GGMLQuantizationType[name]
        plain = gguf.quants.dequantize(gguf.quants.quantize(stack, number), number)
        found = tensors[name if name != "BF16" else "bf16"]
        assert (floats(found).reshape(found.shape) == plain).all()


def test_version_2_alignment_nested_lists_and_bytes_that_are_no_text(tmp_path):
    metadata = {
        **ARCH,
        "general.alignment": ("I", 128),
        "nested": [[("I", 1), ("I", 2)], [], [("I", 3)]],
        "tokenizer.ggml.tokens": ["a", b"\xff\xc3", "b"],
    }
    # An empty list is written as one of texts.
    found = opened(tmp_path / "m.gguf", gguf_bytes(metadata, ONE, version=2, alignment=128))
    assert found.header["nested"] == [[1, 2], [], [3]]
    assert (floats(found.tensors["w"]) == np.arange(6).reshape(2, 3)).all()
    words = json.loads(found.tokenizer[1])
    tokens = [word.encode("utf-8", "surrogateescape") for word in words["tokenizer.ggml.tokens"]]
    assert tokens == [b"a", b"\xff\xc3", b"b"]


def test_without_a_tokenizer(tmp_path):
    assert opened(tmp_path / "m.gguf", gguf_bytes(ARCH, ONE)).tokenizer is None


def split(folder, count, *, tensors=None, skip=(), **more):
    """Writes a model in `count` files with a tensor each."""
    for i in range(count):
        extra = {
            "split.no": ("H", i),
            "split.count": ("H", count),
            "split.tensors.count": ("i", tensors or count),
        } | more
        one = {f"w{i}": ("F32", (2,), struct.pack("<2f", i, i))}
        if i not in skip:
            name = f"m-{i + 1:05}-of-{count:05}.gguf"
            (folder / name).write_bytes(gguf_bytes((ARCH if i == 0 else {}) | extra, one))
    return [folder / f"m-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]


def test_any_file_of_a_split_model_opens_all(tmp_path):
    for path in [*split(tmp_path, 3), tmp_path]:
        found = open_checkpoint(path)
        assert (found.format, found.architecture) == ("GGUF, 3 files", "gguf:llama")
        assert [floats(found.tensors[f"w{i}"])[0, 0] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"skip": (1,)}, "m-00002-of-00003.gguf is missing"),
        ({"tensors": 4}, "hold 3 tensors, not 4"),
        ({"split.no": ("H", 0)}, "is not file 2 of 3"),
        ({"split.count": ("H", 2)}, "does not say which"),
        ({"split.count": "3"}, "does not say which"),
    ],
)
def test_a_split_model_that_is_not_whole(tmp_path, options, word):
    path = split(tmp_path, 3, **options)[0]
    with pytest.raises(CheckpointError, match=word):
        open_checkpoint(path)


def test_a_file_of_a_split_model_under_another_name(tmp_path):
    path = split(tmp_path, 2)[0]
    with pytest.raises(CheckpointError, match="does not say which"):
        open_checkpoint(path.rename(tmp_path / "other.gguf"))


# ---- files that are not what they should be


@pytest.mark.parametrize(
    ("blob", "word"),
    [
        (gguf_bytes(ARCH, ONE, version=1), "version 1"),
        (gguf_bytes(ARCH, ONE, version=4), "version 4"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (gguf_bytes({}, ONE), "general.architecture"),
        (gguf_bytes({"general.architecture": ("I", 3)}, ONE), "general.architecture"),
        (gguf_bytes(ARCH, ONE, n_values=1 << 62), "metadata values"),
        (gguf_bytes(ARCH, ONE, n_tensors=1 << 62), "tensors and"),
        (gguf_bytes(ARCH, ONE, n_tensors=2), "truncated"),
        (gguf_bytes(ARCH, {"w": ("F32", (1 << 40, 1 << 40), b"")}), "truncated"),
        (gguf_bytes(ARCH, {"w": ("F32", (1, 1, 1, 1, 1), bytes(4))}), "5 axes"),
        (gguf_bytes(ARCH, {"w": ("Q4_0", (33,), bytes(36))}), "blocks of 32"),
        (gguf_bytes(ARCH, {"w": ("IQ2_XXS", (256,), bytes(66))}), "as IQ2_XXS; fastllm reads F32"),
        (gguf_bytes(ARCH, {"w": (77, (256,), bytes(66))}), "as type 77"),
        (gguf_bytes({**ARCH, "general.alignment": ("I", 0)}, ONE), "aligned"),
        (gguf_bytes({**ARCH, "general.alignment": ("I", 48)}, ONE), "aligned"),
        (gguf_bytes({**ARCH, "general.alignment": "32"}, ONE), "aligned"),
        (gguf_bytes({**ARCH, "x": [[[[[[("I", 1)]]]]]]}, ONE), "of type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 1 << 60), "do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 4, 1 << 60), "do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IQ", 8, 1 << 60), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IQ", 13, 0), "type 13"),
    ],
)
def test_files_that_cannot_be(tmp_path, blob, word):
    refused(tmp_path / "m.gguf", blob, str(tmp_path / "m.gguf"), word)


def test_names_that_come_twice(tmp_path):
    blob = gguf_bytes({**ARCH, "x": ("I", 1), "y": ("I", 1)}, {**ONE, "v": ONE["w"]})
    refused(tmp_path / "m.gguf", blob.replace(string("y"), string("x")), "'x' twice")
    refused(tmp_path / "m.gguf", blob.replace(string("v"), string("w")), "'w' twice")


WHOLE = gguf_bytes(
    {
        **ARCH,
        "general.alignment": ("I", 32),
        "llama.block_count": ("I", 2),
        "list": [("f", 1.0), ("f", 2.0)],
        "tokenizer.ggml.tokens": ["a", "b", "c"],
        "nested": [["x"], ["y", "z"]],
    },
    {**ONE, "q": ("Q4_0", (32, 2), bytes(range(36))), "h": ("F16", (4,), bytes(8))},
)


def test_truncated_at_every_byte(tmp_path):
    """A file cut anywhere is refused, unless only padding after the last tensor is missing."""
    for size in range(4, len(WHOLE) - 24):
        refused(tmp_path / "m.gguf", WHOLE[:size], str(tmp_path / "m.gguf"))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(4, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated(tmp_path_factory, changes):
    blob = changed(WHOLE, changes)
    path = tmp_path_factory.mktemp("mutated") / "m.gguf"

    def use():
        for tensor in opened(path, blob).tensors.values():
            floats(tensor)

    error = failure(use)
    assert error is None or str(path.parent) in str(error)
