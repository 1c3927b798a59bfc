"""LoRA adapters on top of their models compute what the PEFT library computes."""

import copy

import numpy as np
import pytest

import fastllm
from fastllm import OptionError
from fastllm.weights.lora._product import product
from helpers import reference
from helpers.families.adapters import LENGTH, VOCAB, adapted, expected, found, llama, read_tensors, rewrite
from helpers.reference import torch, transformers

# Warnings of the PEFT library about its own use of transformers and about tied weights.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


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
        bias = "none"  # PEFT allows biases in one adapter only
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
    """An adapter of one of two tied matrices unties them, as in training.

    PEFT's merge would change both, so the comparison is with the model before the merge.
    """
    model = llama(base, tie_word_embeddings=True)
    wanted = expected(adapted(model, adapter, **options))
    assert reference.difference(found(base, adapter), wanted) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["embed_in", "lm_head"], ["lm_head"], ["embed_in"]], ids=str)
def test_the_head_of_gpt_neox_has_two_names(base, adapter, tied, targets):
    """GPT-NeoX's head is embed_out in files and lm_head in transformers' model."""
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
    """Names as torch saves the state of a PeftModel, and a base without its head, whose names lack the prefix."""
    model = llama(base)
    wanted = expected(adapted(model, adapter).merge_and_unload())
    tensors = read_tensors(adapter)
    rewrite(adapter, {name.replace(".weight", ".mine.weight"): tensor for name, tensor in tensors.items()})
    assert reference.difference(found(base, adapter), wanted) < 1e-4
    rewrite(adapter, {name.replace("base_model.model.model.", "base_model.model."): t for name, t in tensors.items()})
    assert reference.difference(found(base, adapter), wanted) < 1e-4


def test_names_of_a_language_model_among_others(base, adapter):
    """Gemma 3 with a vision tower: the names that transformers saves, and those of the model in memory."""
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
    tensors = read_tensors(adapter)  # as for a model with a head, whose names have one word more
    rewrite(adapter, {name.replace("base_model.model.", "base_model.model.bert."): t for name, t in tensors.items()})
    llm = fastllm.load(base, lora=adapter, dtype="f32", threads=1)
    assert reference.difference(llm.hidden_states(ids), wanted) < 1e-4


@pytest.mark.parametrize("name", ["Bert", "XLMRoberta", "Qwen3"])
def test_a_classifier_that_the_adapter_brings(base, adapter, name):
    """An adapter with a classifier of its own, on top of a model without one."""
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
    """The base is FP8, rounded by torch's own conversion."""
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
    """A quantized GPT-2 stores matrices as (outputs, inputs), also the square ones."""
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
