"""Adapters that cannot be applied, and files that are no adapters."""

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError
from helpers import reference
from helpers.families.adapters import adapted, found, llama, read_tensors, rewrite
from helpers.reference import torch

# Warnings of the PEFT library about its own use of transformers and about tied weights.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


def message(*args, **options):
    with pytest.raises(CheckpointError) as caught:
        fastllm.load(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a model and an adapter, made once."""
    folder = tmp_path_factory.mktemp("pair")
    adapted(llama(folder / "base"), folder / "adapter")
    return folder


@pytest.fixture
def copied(pair, adapter):
    adapter.mkdir()
    for file in (pair / "adapter").iterdir():
        if file.is_file():
            (adapter / file.name).write_bytes(file.read_bytes())
    return adapter


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOKR"}, "'LOKR'"),
        ({"peft_type": ["LORA"]}, r"\['LORA'\]"),
        ({"r": 4}, "rank 3, its config says 4"),
        ({"r": "many"}, "rank 3"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 3, its config says 2"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"(a*)*b": 2}}, "cannot match"),
        ({"alpha_pattern": {"(": 2}}, "cannot match"),
        ({"alpha_pattern": {"q_proj": "x"}}, "lora_alpha 'x'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": True}, "lora_alpha True"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora 'yes'"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
    ],
)
def test_configs_that_cannot_be_applied(pair, copied, config, words):
    rewrite(copied, **config)
    with pytest.raises(CheckpointError, match=rf"adapter .*{words}"):
        fastllm.load(pair / "base", lora=copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({FIRST: torch.zeros(3, 41)}), r"\(3, 41\)"),
        (lambda t: t.update({FIRST: torch.zeros(3)}), r"\(3,\)"),
        (lambda t: t.update({FIRST: torch.full((3, 40), float("nan"))}), "not finite"),
        (lambda t: t.pop(FIRST), "not two factors"),
        (lambda t: t.update({FIRST.replace("lora_A", "lora_E"): torch.zeros(3, 1)}), "lora_E"),
        (lambda t: t.update({FIRST.replace("q_proj", "x_proj"): torch.zeros(3, 40)}), "not two factors"),
        (
            lambda t: t.update({n.replace("layers.0", "layers.7"): v.clone() for n, v in [*t.items()]}),
            "layers.7.*no place",
        ),
        (lambda t: t.update({"base_model.model.score.weight": torch.zeros(2, 40)}), "score.weight.*no place"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(62, 40)}), r"lm_head.weight.*\(62, 40\)"),
        (lambda t: t.update({"ia3": torch.zeros(2)}), "ia3"),
        (
            lambda t: t.update({f"lm_head.{n}weight": torch.zeros(61, 40) for n in ("", "base_layer.")}),
            "lm_head.weight more than once",
        ),
        (lambda t: t.update({FIRST.replace(".weight", ".b.weight"): torch.zeros(3, 40)}), "more than once"),
        (
            lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.zeros(40)}),
            "bias.*no place",
        ),
        (
            lambda t: t.update({FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(40)}),
            "use_dora False",
        ),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_tensors_that_do_not_fit(pair, copied, change, words):
    tensors = read_tensors(copied)
    change(tensors)
    rewrite(copied, tensors)
    with pytest.raises(CheckpointError, match=rf"adapter.*{words}"):
        fastllm.load(pair / "base", lora=copied)


def test_broken_files(pair, copied):
    weights = copied / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "truncated" in message(pair / "base", lora=copied)
    weights.unlink()
    assert "has none of adapter_model.safetensors" in message(pair / "base", lora=copied)
    (copied / "adapter_config.json").write_text("{")
    assert "not JSON" in message(pair / "base", lora=copied)
    (copied / "adapter_config.json").unlink()
    assert "is not an adapter" in message(pair / "base", lora=copied)
    with pytest.raises(OptionError, match="lora must be a path or a name on the hub, not 3"):
        fastllm.load(pair / "base", lora=[3])


def test_an_adapter_is_no_model(pair, copied):
    rewrite(copied, base_model_name_or_path="owner/base")
    wanted = f"{copied} is not a model but an adapter of owner/base: name owner/base and add --lora {copied}"
    for model in (copied, copied / "adapter_model.safetensors", copied / "adapter_config.json"):
        assert "is not a model but an adapter of owner/base: name owner/base" in message(model)
    assert wanted in message(copied)
    (copied / "config.json").write_bytes((pair / "base" / "config.json").read_bytes())  # as some trainers do
    (copied / "rng_state.pth").write_bytes(b"")
    assert wanted in message(copied)
    assert wanted in message(copied, lora=copied)


def test_a_model_with_an_adapter_beside_it(pair, copied):
    for name in ("config.json", "model.safetensors"):
        (copied / name).write_bytes((pair / "base" / name).read_bytes())
    assert "holds a model and an adapter" in message(copied)
    assert reference.difference(found(copied, copied), found(pair / "base", pair / "adapter")) == 0
    assert reference.difference(found(copied / "model.safetensors", None), found(pair / "base", None)) == 0
    (copied / "adapter_model.safetensors").unlink()  # an adapter's config alone changes nothing
    assert reference.difference(found(copied, None), found(pair / "base", None)) == 0


def test_sums_that_are_not_finite(pair, copied):
    tensors = read_tensors(copied)
    rewrite(copied, {name: t.fill_(1e30) for name, t in tensors.items()})
    assert "not finite" in message(pair / "base", lora=copied)


def test_gguf(pair, copied):
    gguf = pytest.importorskip("gguf")
    for kind in ("adapter", "model"):
        writer = gguf.GGUFWriter(copied / f"{kind}.gguf", "llama")
        writer.add_type(kind)
        writer.add_tensor(
            "blk.0.attn_q.weight.lora_a" if kind == "adapter" else "blk.0.attn_q.weight", np.zeros((3, 40), np.float32)
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert "is not a model but an adapter in a GGUF file" in message(copied / "adapter.gguf")
    assert "is not an adapter that fastllm can apply" in message(pair / "base", lora=copied / "adapter.gguf")
    assert "cannot be applied" in message(copied / "model.gguf", lora=copied)


def test_factors_among_a_models_tensors(pair, copied):
    from safetensors.torch import load_file, save_file

    tensors = load_file(pair / "base" / "model.safetensors")
    folder = copied / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((pair / "base" / "config.json").read_bytes())
    save_file(tensors | read_tensors(copied), folder / "model.safetensors")
    assert "holds the factors of an adapter" in message(folder)
