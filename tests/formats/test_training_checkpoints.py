"""Checkpoints of training code: torch.save's files that hold weights among other objects, by other names."""

import argparse
import collections
import datetime
import enum
import pathlib
import types

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError
from fastllm.families import half_split
from fastllm.files import map_file
from fastllm.formats import open_checkpoint
from fastllm.formats import torch as torch_format
from fastllm.tensors import floats
from helpers import reference
from helpers.reference import torch, transformers


def tensors(path):
    return torch_format.tensors(path, map_file(path))


class Precision(enum.Enum):
    HALF = "half"


class Settings:
    """A class that a reader of the file does not have."""

    def __init__(self):
        self.rate, self.table, self.parent = 0.1, {("a", 1): torch.ones(2)}, self


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = [1]


class Table(dict):
    pass


class Rows(list):
    pass


class Named(collections.namedtuple("Base", "a b")):
    def __getnewargs_ex__(self):
        return (1,), {"b": 2}

    def __new__(cls, a, b):
        return super().__new__(cls, a, b)


def beside():
    training = transformers.TrainingArguments("out", use_cpu=True, report_to=[])
    return {
        "args": argparse.Namespace(lr=1e-3, path=pathlib.Path("a/b"), nested=argparse.Namespace(x=[1, 2])),
        "path": pathlib.PurePosixPath("/data/x"),
        "defaults": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("abca"),
        "deque": collections.deque([1, 2], maxlen=3),
        "numpy scalar": np.float64(1.5),
        "numpy array": np.arange(6).reshape(2, 3),
        "numpy words": np.array(["a", None], dtype=object),
        "numpy random": np.random.default_rng(0).bit_generator.state,
        "enum": Precision.HALF,
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(seconds=1),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:0"),
        "layout": torch.sparse_coo,
        "generator": torch.get_rng_state(),
        "training": training,
        "settings": Settings(),
        "slots": Slots(),
        "table": Table(a=1),
        "rows": Rows([1, 2]),
        "named": Named(1, 2),
        "namespace": types.SimpleNamespace(a=1),
        "sets": [{1, 2}, frozenset("ab"), {("a", 1)}],
        "numbers": [1 << 100, 1.5, complex(1, 2), True, None, b"bytes", bytearray(b"x"), slice(1, 2), range(3)],
        "function": torch.nn.functional.relu,
        "class": torch.optim.AdamW,
        "module": torch.nn.Linear(2, 3),
        "keys": {1.5: 1, ("a", 2): 2, Precision.HALF: 3, None: 4, True: 5},
        "history": [{"loss": np.float32(0.5), "at": datetime.date(2024, 1, 2)}] * 3,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip 2", "zip 4", "zip 5", "legacy 2", "legacy 4"])
@pytest.mark.parametrize("where", ["model", "net", "module", "anything", ""])
def test_objects_beside_the_weights(tmp_path, form, where):
    form, protocol = form.split()
    weights = {f"layers.{i}.weight": torch.randn(3, 4) for i in range(4)}
    path = tmp_path / "checkpoint.pt"
    optimizer = {"state": {0: {"exp_avg": torch.ones(3, 4)}}, "param_groups": [{"lr": np.float64(1e-3)}]}
    others = {key: value for key, value in beside().items() if where != key and (where or key != "module")}
    saved = {**others, "optimizer": optimizer, **({where: weights} if where else weights)}
    torch.save(saved, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=int(protocol))
    found = tensors(path)
    expected = weights if where else {**weights, "generator": saved["generator"]}
    assert found.keys() == expected.keys()
    for name, tensor in weights.items():
        assert np.array_equal(floats(found[name]), tensor.numpy())


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, Table, lambda w: collections.defaultdict(list, w)])
def test_kinds_of_dicts_that_weights_are_in(tmp_path, kind):
    weight = torch.nn.Parameter(torch.randn(3, 4))
    weight.decay = 0.1  # torch saves a parameter with attributes in another way
    torch.save({"state_dict": kind({"w": weight})}, tmp_path / "a.pt")
    assert np.array_equal(floats(tensors(tmp_path / "a.pt")["w"]), weight.detach().numpy())


def test_which_of_several(tmp_path):
    path, weights = tmp_path / "a.pt", {"a": torch.ones(1), "b": torch.ones(1)}
    for saved, expected in (
        ({"ema": {"e": weights["a"]}, "model": weights}, weights),
        ({"policy": weights, "value": {"c": weights["a"]}}, weights),
        ({"ema_model": {"e": weights["a"], "f": weights["b"]}, "mine": weights}, weights),
        ({"app": {"model": weights, "optimizer": {"state": {0: {"c": weights["a"]}}}}}, weights),
        ({"model": {"state_dict": weights, "name": "m"}, "ema": {"c": weights["a"]}}, weights),
    ):
        torch.save(saved, path)
        assert tensors(path).keys() == expected.keys()
    three = weights | {"c": weights["a"]}
    torch.save({"ema": three, "random": torch.ones(1)}, path)
    assert tensors(path).keys() == three.keys()
    torch.save({"policy": weights, "reference": weights}, path)
    with pytest.raises(CheckpointError, match="under 'policy' and 'reference': which"):
        tensors(path)


def test_names_that_training_makes(tmp_path):
    path, weight = tmp_path / "a.pt", torch.ones(1)
    for saved, expected in (
        ({"model": {"_orig_mod.a.w": weight}}, ["a.w"]),
        ({"module": {"module.a.w": weight, "module.b._orig_mod.w": weight}}, ["a.w", "b.w"]),
        ({"model": {"module.a": weight, "b": weight}}, ["module.a", "b"]),
        ({"state_dict": {"net.a.w": weight, "net.b": weight}, "pytorch-lightning_version": "2.0"}, ["a.w", "b"]),
        (
            {"state_dict": {"net.a.w": weight, "loss.b": weight}, "pytorch-lightning_version": "2.0"},
            ["net.a.w", "loss.b"],
        ),
    ):
        torch.save(saved, path)
        assert list(tensors(path)) == expected


@pytest.mark.parametrize("name", ["model.pt", "epoch=1-step=9.ckpt", "best.pth", "weights.bin"])
def test_a_folder_whose_weights_have_another_name(tmp_path, name):
    """Weights by another name beside a config.json; other files of the training are ignored."""
    values = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = reference.build("LlamaForCausalLM", transformers.LlamaConfig(vocab_size=61, **values))
    model.config.save_pretrained(tmp_path)
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    random = np.random.default_rng(0).bit_generator.state  # its numbers have 128 bits
    torch.save({"state_dict": state, "random": random, "pytorch-lightning_version": "2.1.0"}, tmp_path / name)
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    ids = reference.tokens(61, 20)
    wanted = reference.logits(model, ids)
    assert reference.difference(fastllm.load(tmp_path, dtype="f32", threads=1).logits(ids), wanted) < 1e-4
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"2 .*files and no index"):
        fastllm.load(tmp_path, threads=1)


def test_a_folder_of_weights_without_a_config(tmp_path):
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "ckpt.pt")
    assert [*open_checkpoint(tmp_path).tensors] == ["a.weight"]
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"2 files of weights and no config\.json: name one of ckpt\.pt, last"):
        open_checkpoint(tmp_path)


def test_a_whole_module_has_no_names(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"object of 'torch\.nn\.modules\.linear\.Linear'.* state_dict"):
        tensors(tmp_path / "a.pt")


def same_logits(model, path, **variables):
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = reference.tokens(97, 40)
    assert reference.difference(llm.logits(ids), reference.logits(model, ids)) < 1e-4
    return llm


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_llama2c_as_it_trains(tmp_path, kv_heads):
    """The ckpt.pt of llama2.c's train.py, made from a model of transformers by renaming its tensors."""
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = reference.build("LlamaForCausalLM", config)
    theirs = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
    }
    theirs |= {
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
    }
    theirs |= {"mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm"}
    theirs |= {"post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    weights = {}
    for name, tensor in model.state_dict().items():
        written = name.removeprefix("model.")
        for ours, other in theirs.items():
            written = written.replace(ours, other)
        weights[f"_orig_mod.{written}"] = tensor
        if "q_proj" in name or "k_proj" in name:
            weights[f"_orig_mod.{written}"] = turned = torch.empty_like(tensor)
            turned[list(half_split(4 if "q_proj" in name else kv_heads, 16))] = tensor
    arguments = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": kv_heads, "vocab_size": 97}
    arguments |= {"multiple_of": 32, "max_seq_len": 64, "dropout": 0.0}
    optimizer = torch.optim.AdamW(model.parameters())
    saved = {"model": weights, "optimizer": optimizer.state_dict(), "model_args": arguments, "iter_num": 7}
    torch.save({**saved, "best_val_loss": torch.tensor(1.5), "config": {"lr": 1e-3}}, tmp_path / "ckpt.pt")
    checkpoint = open_checkpoint(tmp_path / "ckpt.pt")
    assert (checkpoint.format, checkpoint.architecture) == ("llama2.c training", "meta.llama")
    llm = same_logits(model, tmp_path / "ckpt.pt")
    assert llm.config.max_seq == 64


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_as_it_trains(tmp_path, bias):
    """The ckpt.pt of nanoGPT's train.py: GPT-2's names, transposed matrices, the exact GELU, with or without biases."""
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=64, n_embd=48, n_layer=2, n_head=3, activation_function="gelu"
    )
    model = reference.build("GPT2LMHeadModel", config)
    weights = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(".bias") and not bias:
                tensor.zero_()
                continue
            linear = ".attn.c_" in name or ".mlp.c_" in name
            weights[f"_orig_mod.{name}"] = tensor.t().contiguous() if linear and tensor.dim() == 2 else tensor
    arguments = {
        "n_layer": 2,
        "n_head": 3,
        "n_embd": 48,
        "block_size": 64,
        "bias": bias,
        "vocab_size": 97,
        "dropout": 0.0,
    }
    torch.save({"model": weights, "model_args": arguments, "iter_num": 7}, tmp_path / "ckpt.pt")
    same_logits(model, tmp_path / "ckpt.pt")


@pytest.mark.parametrize("arguments", [{}, {"dim": 64}, {"dim": "64", "n_layers": 2, "n_heads": 4}, {"dim": 1 << 70}])
def test_arguments_that_lack(tmp_path, arguments):
    weights = {"layers.0.feed_forward.w1.weight": torch.ones(4, 4), "tok_embeddings.weight": torch.ones(4, 4)}
    torch.save({"model": weights, "model_args": arguments}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"ckpt\.pt has (no whole number )?"):
        fastllm.load(tmp_path / "ckpt.pt")
