"""Adapters on top of their models: against the PEFT library, and those that cannot be applied."""

import copy
import json

import numpy as np
import pytest

import fastllm
from fastllm import CheckpointError, OptionError
from fastllm.weights.lora.product import product
from helpers import reference
from helpers.reference import torch, transformers

peft = pytest.importorskip("peft")

# The library's own, of its use of transformers and of tied weights.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

VOCAB, LENGTH = 61, 40


def llama_config(**more):
    return transformers.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        }
        | more
    )


def llama(folder, **more):
    model = reference.build("LlamaForCausalLM", llama_config(**more))
    model.save_pretrained(folder)
    return model


def adapted(model, folder, *, seed=1, name="default", **options):
    """The model with a random adapter, which is saved: factors, magnitudes, biases, modules that are trained whole."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]} | options))
    model = peft.get_peft_model(model, config, adapter_name=name).eval()
    with torch.no_grad():
        for _, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.2 / np.sqrt(p.shape[-1]) if p.dim() > 1 else 0.1)
    model.save_pretrained(folder)
    return model


def expected(model):
    return reference.logits(model, reference.tokens(VOCAB, LENGTH))


def found(base, adapters, **options):
    llm = fastllm.load(base, lora=adapters, threads=1, **({"dtype": "f32"} | options))
    return llm.logits(reference.tokens(VOCAB, LENGTH))


@pytest.fixture
def base(tmp_path):
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    return tmp_path / "adapter"


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear", "r": 7},
        {"target_modules": r".*\.1\..*(q|down)_proj"},
        {"use_rslora": True, "r": 9},
        {"rank_pattern": {"v_proj": 5, "layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 11}},
        {"rank_pattern": {r"model.layers.\d+.self_attn.v_proj": 4}},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        {"use_dora": True, "target_modules": ALL},
        {"use_dora": True, "use_rslora": True},
        {"fan_in_fan_out": False, "init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal", "r": 4},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
def test_peft_computes_the_same(base, adapter, options):
    model = llama(base)
    plain = expected(model)
    wanted = expected(adapted(model, adapter, **options).merge_and_unload())
    assert reference.difference(wanted, plain) > 0.01
    assert reference.difference(found(base, adapter), wanted) < 1e-4


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_biases(base, adapter, bias, lora_bias):
    if lora_bias and bias != "none":
        bias = "none"  # PEFT allows one of them
    model = llama(base, attention_bias=True, mlp_bias=True)
    wanted = expected(adapted(model, adapter, target_modules=ALL, bias=bias, lora_bias=lora_bias).merge_and_unload())
    assert reference.difference(found(base, adapter), wanted) < 1e-4


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_matrices_of_gpt2_are_stored_inputs_first(base, adapter, options):
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=40, n_layer=2, n_head=4, n_positions=64)
    model = reference.build("GPT2LMHeadModel", config)
    model.save_pretrained(base)
    options = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True} | options
    wanted = expected(adapted(model, adapter, **options).merge_and_unload())
    assert reference.difference(found(base, adapter), wanted) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_a_tied_head_and_its_embedding_part_as_they_were_trained(base, adapter, options):
    """Merging would add to both what training added to one of them, so that the model that was trained is compared."""
    model = llama(base, tie_word_embeddings=True)
    wanted = expected(adapted(model, adapter, **options))
    assert reference.difference(found(base, adapter), wanted) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["embed_in", "lm_head"], ["lm_head"], ["embed_in"]], ids=str)
def test_the_head_of_gpt_neox_has_two_names(base, adapter, tied, targets):
    """embed_out in files, lm_head in the library's model."""
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = reference.build("GPTNeoXForCausalLM", config)
    model.save_pretrained(base)
    wanted = expected(adapted(model, adapter, target_modules=["query_key_value", *targets]))
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_several_adapters_add_up_in_their_order(base, tmp_path):
    model = llama(base)
    one = adapted(model, tmp_path / "one", r=2)
    one = one.merge_and_unload()
    wanted = expected(adapted(one, tmp_path / "two", seed=2, target_modules=ALL, use_dora=True).merge_and_unload())
    assert reference.difference(found(base, [tmp_path / "one", tmp_path / "two"]), wanted) < 1e-4
    assert reference.difference(found(base, [tmp_path / "two", tmp_path / "one"]), wanted) > 1e-3


def test_a_pickled_adapter_and_one_named_by_its_file(base, adapter):
    model = llama(base)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    assert reference.difference(found(base, str(adapter / "adapter_model.safetensors")), wanted) < 1e-4
    tensors = read_tensors(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_names_with_the_adapters_own_name_and_other_prefixes(base, adapter):
    """As torch saves a PeftModel's state; and a base that was saved without its head, whose names have no prefix."""
    model = llama(base)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    tensors = read_tensors(adapter)
    rewrite(adapter, {name.replace(".weight", ".mine.weight"): tensor for name, tensor in tensors.items()})
    assert reference.difference(found(base, adapter), wanted) < 1e-4
    rewrite(adapter, {name.replace("base_model.model.model.", "base_model.model."): t for name, t in tensors.items()})
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_names_of_a_language_model_among_others(base, adapter):
    """Gemma 3 with its eyes: what transformers saves, and what it calls the same modules as it runs."""
    shared = {"vocab_size": VOCAB, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = shared | {"intermediate_size": 56, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 16}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = reference.build("Gemma3ForConditionalGeneration", config)
    model.save_pretrained(base)
    modules = r".*language_model\..*(q|v|down)_proj"
    wanted = expected(adapted(model, adapter, target_modules=modules).merge_and_unload())
    assert any(".model.language_model." in name for name in read_tensors(adapter))
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_a_base_of_16_bits_stays_so_and_its_sum_is_rounded_once(base, adapter):
    model = llama(base)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(base)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    assert reference.difference(found(base, adapter, dtype="f32"), wanted) < 1e-4
    llm = fastllm.load(base, lora=adapter, threads=1)
    assert set(llm.dtypes) == {"bf16"}


def test_an_encoder(base, adapter):
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56
    )
    model = reference.build("BertModel", config)
    model.save_pretrained(base)
    model = adapted(model, adapter, target_modules=["query", "value", "dense", "word_embeddings"]).merge_and_unload()
    ids = reference.tokens(VOCAB, LENGTH)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    llm = fastllm.load(base, lora=adapter, dtype="f32", threads=1)
    assert reference.difference(llm.hidden_states(ids), wanted) < 1e-4
    tensors = read_tensors(adapter)  # as of a model with a head, whose names have one word more
    rewrite(adapter, {name.replace("base_model.model.", "base_model.model.bert."): t for name, t in tensors.items()})
    llm = fastllm.load(base, lora=adapter, dtype="f32", threads=1)
    assert reference.difference(llm.hidden_states(ids), wanted) < 1e-4


@pytest.mark.parametrize("name", ["Bert", "XLMRoberta", "Qwen3"])
def test_a_classifier_that_the_adapter_brings(base, adapter, name):
    """On top of a model of another task, as adapters of such tasks mostly are."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8} if name == "Qwen3" else {}
    config = getattr(transformers, f"{name}Config")(
        **sizes, num_attention_heads=4, max_position_embeddings=66, pad_token_id=0, num_labels=3
    )
    model = reference.build(f"{name}ForSequenceClassification", config)
    if name == "Qwen3":
        causal = reference.build("Qwen3ForCausalLM", config)
        causal.model = model.model
        causal.save_pretrained(base)
    else:
        model.base_model.save_pretrained(base)
    targets = ["q_proj", "v_proj"] if name == "Qwen3" else ["query", "value"]
    tuned = adapted(model, adapter, task_type="SEQ_CLS", target_modules=targets)
    ids = reference.tokens(VOCAB, 20, seed=4)
    llm = fastllm.load(base, lora=adapter, dtype="f32", threads=1)
    assert llm.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert reference.difference(llm.classify([ids])[0], reference.logits(tuned, ids)) < 1e-4


def test_converting_and_the_command_line(base, adapter, tmp_path, capsys):
    from fastllm.cli import main

    model = llama(base)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    out = tmp_path / "merged.safetensors"
    assert main(["convert", str(base), str(out), "--lora", str(adapter), "--dtype", "f32", "--verify"]) == 0
    assert "differ by at most 0" in capsys.readouterr().err
    llm = fastllm.load(out, threads=1)
    assert reference.difference(llm.logits(reference.tokens(VOCAB, LENGTH)), wanted) < 1e-4
    with pytest.raises(OptionError, match=r"is already converted: apply .* to the checkpoint it was made from"):
        fastllm.load(out, lora=adapter)
    assert main(["run", str(base), "--lora", str(adapter), "--lora", str(tmp_path / "none"), "-n", "2"]) == 2
    assert "none does not exist" in capsys.readouterr().err
    assert main(["inspect", str(adapter)]) == 0
    assert "lora_A" in capsys.readouterr().out


def test_on_top_of_quantized_weights(base, adapter):
    """Of FP8, which float8's own conversion rounds to."""
    from safetensors.torch import load_file, save_file

    model = llama(base)
    tensors = load_file(base / "model.safetensors")
    stored, plain = {}, {}
    for name, w in tensors.items():
        if w.dim() == 2 and "layers" in name:
            stored[name], scale = (w * 8).to(torch.float8_e4m3fn), torch.tensor([0.125])
            stored[f"{name}_scale"] = scale
            plain[name] = stored[name].float() * scale
        else:
            stored[name] = plain[name] = w
    save_file(stored, base / "model.safetensors")
    model.load_state_dict(plain)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_on_top_of_a_quantized_gpt2(base, adapter):
    """Whose matrices are stored (outputs, inputs), square ones too."""
    from safetensors.torch import load_file, save_file

    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=40, n_layer=2, n_head=4, n_positions=64)
    model = reference.build("GPT2LMHeadModel", config)
    model.save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    stored = dict(tensors)
    for name in [name for name in tensors if ".h." in name and tensors[name].dim() == 2]:
        stored[name] = (tensors[name].T * 8).to(torch.float8_e4m3fn).contiguous()
        stored[f"{name}_scale"] = torch.tensor([0.125])
        tensors[name] = (stored[name].float() * 0.125).T
    save_file(stored, base / "model.safetensors")
    model.load_state_dict(tensors, strict=False)
    wanted = expected(adapted(model, adapter, target_modules=["c_proj"], fan_in_fan_out=True).merge_and_unload())
    assert reference.difference(found(base, adapter), wanted) < 1e-4


# ---- the product


@pytest.mark.parametrize("rank", [1, 2, 7, 16, 64, 300])
def test_the_product_is_as_exact_as_f32_and_its_order_does_not_matter(rank):
    rng = np.random.default_rng(rank)
    left = (rng.standard_normal((9, rank)) * np.exp(rng.standard_normal(rank))).astype(np.float32).astype(np.float64)
    right = (rng.standard_normal((rank, 13)) * 1e-3).astype(np.float32).astype(np.float64)
    order = rng.permutation(rank)
    result = product(left, right)
    assert np.array_equal(product(left[:, order], right[order]), result)
    largest = (np.abs(left) @ np.abs(right)).max(axis=1, keepdims=True)
    assert (np.abs(result - left @ right) / largest).max() < 2.0**-20
    assert not product(left * 0, right).any()


# ---- what cannot be applied


def read_tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def rewrite(folder, tensors=None, **config):
    from safetensors.torch import save_file

    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def message(*args, **options):
    with pytest.raises(CheckpointError) as caught:
        fastllm.load(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model, and the tensors and config of an adapter."""
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
    with pytest.raises(OptionError, match="paths of adapters, not 3"):
        fastllm.load(pair / "base", lora=[3])


def test_an_adapter_is_no_model(pair, copied):
    rewrite(copied, base_model_name_or_path="owner/base")
    wanted = f"{copied} is not a model but an adapter of owner/base: name owner/base and add --lora {copied}"
    for model in (copied, copied / "adapter_model.safetensors", copied / "adapter_config.json"):
        assert "is not a model but an adapter of owner/base: name owner/base" in message(model)
    assert wanted in message(copied)
    (copied / "config.json").write_bytes((pair / "base" / "config.json").read_bytes())  # as trainers leave it
    (copied / "rng_state.pth").write_bytes(b"")
    assert wanted in message(copied)
    assert wanted in message(copied, lora=copied)


def test_a_model_with_an_adapter_beside_it(pair, copied):
    for name in ("config.json", "model.safetensors"):
        (copied / name).write_bytes((pair / "base" / name).read_bytes())
    assert "holds a model and an adapter" in message(copied)
    assert reference.difference(found(copied, copied), found(pair / "base", pair / "adapter")) == 0
    assert reference.difference(found(copied / "model.safetensors", None), found(pair / "base", None)) == 0
    (copied / "adapter_model.safetensors").unlink()  # its config alone says nothing of this model
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
