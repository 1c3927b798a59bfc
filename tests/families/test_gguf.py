"""GGUF's models against transformers: the same weights through llama.cpp's names, written with the gguf package.

The names of tensors are the package's own table. What llama.cpp's converter changes besides is done here.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm
from fastllm import CheckpointError, families
from fastllm.formats import open_checkpoint
from fastllm.tensors import at, floats
from helpers.calls import failure

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

from helpers.reference import build, difference, greedy, logits, tokens  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the two libraries

WIDE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def interleaved(array, heads):
    """Rows of each head in the order of rotary pairs (2i, 2i + 1), from pairs (i, i + half)."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def merged(state):
    """Experts, and norms of heads, as one tensor each; transposed or sorted where the converter does so."""
    out, groups = {}, {}
    for name, tensor in state.items():
        array = tensor.float().numpy()
        for mark in (".experts.", "_layernorm.norms."):
            if mark in name:
                before, rest = name.split(mark)
                number, rest = rest.split(".", 1)
                key = f"{before}{mark.removesuffix('.')}.{rest}" if "experts" in mark else f"{before}_layernorm.{rest}"
                groups.setdefault(key, {})[int(number)] = array
                break
        else:
            out[name] = array
    return out | {key: np.stack([parts[i] for i in range(len(parts))]) for key, parts in groups.items()}


def changed(arch, name, array, config):
    """A tensor as llama.cpp's converter writes it."""
    heads = config.num_attention_heads
    if arch in ("llama", "granite", "smollm3") and ("q_proj" in name or "k_proj" in name):
        array = interleaved(array, heads if "q_proj" in name else config.num_key_value_heads)
    elif arch in ("gemma", "gemma2", "gemma3", "gemma-embedding") and "norm" in name:
        array = array + 1
    elif arch == "gpt2" and any(f"{part}.weight" in name for part in ("c_attn", "c_proj", "c_fc")):
        array = array.T
    elif arch == "gptneox" and "query_key_value" in name:
        array = array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    elif "shared_expert_gate" in name:
        array = array.reshape(-1)
    return array


def write(path, arch, model, tensors=None, **more):
    """more: settings by the key that the architecture has them under, beside those that all have. tensors: more of
    them, by the file's names."""
    model.save_pretrained(path.parent / "hf")
    state = merged(load_file(path.parent / "hf" / "model.safetensors"))
    c = model.config
    writer = gguf.GGUFWriter(path, arch)
    by_name = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], c.num_hidden_layers)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(getattr(c, "intermediate_size", None) or 4 * c.hidden_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(getattr(c, "num_key_value_heads", c.num_attention_heads))
    for key, value in more.items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}
        add[type(value)](f"{arch}.{key.replace('__', '.')}", value)
    for name, array in state.items():
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if ours is None and "pooler" in name:
            continue
        assert ours is not None, name
        writer.add_tensor(ours, np.ascontiguousarray(changed(arch, name, array, c), np.float32))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    for length in ("short", "long"):
        if (factors := (getattr(c, "rope_parameters", None) or {}).get(f"{length}_factor")) is not None:
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(factors, np.float32))
    if (getattr(c, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        theta = c.rope_parameters["rope_theta"]
        plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


RMS = {"attention__layer_norm_rms_epsilon": 1e-6}
LAYER = {"attention__layer_norm_epsilon": 1e-5}
FACTORS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.5]}

# Name -> architecture here, there, its config beyond PLAIN, what the file says of it.
MODELS = {
    "llama": ("llama", "Llama", {"rms_norm_eps": 1e-6}, {**RMS, "rope__dimension_count": 12}),
    "llama_bias": ("llama", "Llama", {"rms_norm_eps": 1e-6, "attention_bias": True}, RMS),
    "llama31": ("llama", "Llama", {"rms_norm_eps": 1e-6, "rope_parameters": LLAMA3}, {**RMS, "rope__freq_base": 5e5}),
    "mixtral": (
        "llama",
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6, "sliding_window": None},
        {**RMS, "expert_count": 5, "expert_used_count": 2, "rope__freq_base": 1e6},
    ),
    "qwen2": (
        "qwen2",
        "Qwen2",
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {**RMS, "rope__freq_base": 1e6},
    ),
    "qwen2_yarn": (
        "qwen2",
        "Qwen2",
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {
            **RMS,
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
        },
    ),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2Moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        {
            **RMS,
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 40,
        },
    ),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}, {**RMS, "attention__key_length": 16}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
        {
            **RMS,
            "attention__key_length": 16,
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
        },
    ),
    "gemma": ("gemma", "Gemma", {"head_dim": 16, "tie_word_embeddings": True}, {**RMS, "attention__key_length": 16}),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 30, "tie_word_embeddings": True},
        {
            **RMS,
            "attention__key_length": 16,
            "attention__sliding_window": 30,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 30,
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
        },
        {**RMS, "attention__key_length": 16, "attention__sliding_window": 30, "rope__freq_base": 1e6},
    ),
    "phi3": (
        "phi3",
        "Phi3",
        {"rms_norm_eps": 1e-6, "sliding_window": 40, "pad_token_id": None},
        {**RMS, "attention__sliding_window": 40},
    ),
    "phi3_long": (
        "phi3",
        "Phi3",
        {
            "rms_norm_eps": 1e-6,
            "pad_token_id": None,
            "original_max_position_embeddings": 64,
            "rope_parameters": {**LONG, **FACTORS, "partial_rotary_factor": 0.5},
        },
        {
            **RMS,
            "rope__dimension_count": 6,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__attn_factor": float(np.sqrt(1 + np.log(4) / np.log(64))),
        },
    ),
    "olmo2": ("olmo2", "Olmo2", {"rms_norm_eps": 1e-6}, RMS),
    "olmoe": (
        "olmoe",
        "Olmoe",
        {"num_experts": 5, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6},
        {**RMS, "expert_count": 5, "expert_used_count": 2},
    ),
    "granite": (
        "granite",
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.3, "logits_scaling": 4.0},
        {**RMS, "embedding_scale": 3.0, "attention__scale": 0.4, "residual_scale": 0.3, "logit_scale": 4.0},
    ),
    "stablelm": (
        "stablelm",
        "StableLm",
        {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
        {**LAYER, "rope__dimension_count": 6},
    ),
    "stablelm_12b": (
        "stablelm",
        "StableLm",
        {"partial_rotary_factor": 0.5, "qk_layernorm": True, "use_parallel_residual": True},
        {**LAYER, "rope__dimension_count": 6},
    ),
    "cohere": (
        "command-r",
        "Cohere",
        {"logit_scale": 0.25, "use_qk_norm": True, "tie_word_embeddings": True},
        {**LAYER, "logit_scale": 0.25, "rope__freq_base": 5e5},
    ),
    "cohere2": (
        "cohere2",
        "Cohere2",
        {"logit_scale": 0.25, "sliding_window": 30, "tie_word_embeddings": True},
        {**LAYER, "logit_scale": 0.25, "attention__sliding_window": 30},
    ),
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 5, "pad_token_id": None}, {**RMS, "rope__freq_base": 2e6}),
    "gpt2": ("gpt2", "GPT2", {"activation_function": "gelu_new"}, LAYER),
    "gptneox": (
        "gptneox",
        "GPTNeoX",
        {"rotary_pct": 0.5, "use_parallel_residual": True},
        {**LAYER, "rope__dimension_count": 6, "use_parallel_residual": True},
    ),
}


def model_of(name, seed=0):
    arch, there, more, _ = MODELS[name]
    sizes = PLAIN | more
    if arch == "gpt2":
        sizes = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, **more}
    class_name = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}.get(there, f"{there}ForCausalLM")
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(there, f"{there}Config")
    return build(class_name, getattr(transformers, config_name)(**sizes), seed=seed)


@pytest.mark.parametrize("name", MODELS)
def test_a_family_equals_transformers(tmp_path, name):
    model = model_of(name)
    path = tmp_path / "model.gguf"
    arch, _, _, said = MODELS[name]
    write(path, arch, model, **said)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 60 if name == "phi3_long" else 150)
    expected = logits(model, ids)
    assert expected.std() > 0.05
    assert difference(llm.logits(ids), expected) < 1e-4
    assert list(llm.generate(ids[:40], max_tokens=8, temperature=0)) == greedy(model, ids[:40], 8)


POOLINGS = {None: "mean", 0: "mean", 1: "mean", 2: "cls", 3: "last"}


@pytest.mark.parametrize("number", POOLINGS)
def test_poolings(tmp_path, number):
    model, path = model_of("qwen3"), tmp_path / "model.gguf"
    said = {} if number is None else {"pooling_type": number}
    write(path, "qwen3", model, **MODELS["qwen3"][3], **said)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 30)
    states = llm.hidden_states(ids)
    expected = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[POOLINGS[number]]
    np.testing.assert_allclose(llm.embed([ids])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("number", "what"), [(4, "a reranker"), (9, "a model")])
def test_a_pooling_that_makes_no_vectors(tmp_path, number, what):
    model, path = model_of("qwen3"), tmp_path / "model.gguf"
    write(path, "qwen3", model, **MODELS["qwen3"][3], pooling_type=number)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 30)
    error = failure(lambda: llm.embed([ids]))
    assert f"is {what} with pooling_type {number}" in str(error)
    assert llm.embed([ids], pooling="last").shape == (1, 48)
    assert difference(llm.logits(ids), logits(model, ids)) < 1e-4


@pytest.mark.parametrize("arch", ["gemma-embedding", "gemma3"])
def test_embedding_gemma(tmp_path, arch):
    """Attention to both sides, a window in five layers of six, two layers after pooling: llama.cpp's file, Ollama's."""
    sizes = {**PLAIN, **MODELS["gemma3"][2], "use_bidirectional_attention": True}
    model, path = build("Gemma3TextModel", transformers.Gemma3TextConfig(**sizes)), tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal(shape, np.float32) for shape in ((70, 48), (48, 70))]
    names = ["dense_2.weight", "dense_3.weight"] if arch != "gemma3" else ["dense.0.weight", "dense.1.weight"]
    write(path, arch, model, dict(zip(names, layers, strict=True)), **MODELS["gemma3"][3], pooling_type=1)
    llm = fastllm.load(path, dtype="f32", threads=1)
    ids = tokens(97, 100)
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert difference(llm.hidden_states(ids), states) < 1e-4
    expected = layers[1] @ (layers[0] @ states.mean(axis=0))
    assert difference(llm.embed([ids])[0], expected) < 1e-4


def test_a_decoder_without_causality_is_refused(tmp_path):
    write(tmp_path / "model.gguf", "qwen3", model_of("qwen3"), **MODELS["qwen3"][3], attention__causal=False)
    assert "is_causal False" in str(failure(lambda: fastllm.load(tmp_path / "model.gguf")))


def test_longrope_beyond_its_original_context(tmp_path):
    model = model_of("phi3_long")
    write(tmp_path / "model.gguf", "phi3", model, **MODELS["phi3_long"][3])
    llm = fastllm.load(tmp_path / "model.gguf", dtype="f32", threads=1, context=256)
    ids = tokens(97, 150)
    assert difference(llm.logits(ids), logits(model, ids)) < 1e-4


def test_bert(tmp_path):
    c = transformers.BertConfig(**WIDE, max_position_embeddings=64)
    model = build("BertModel", c)
    write(tmp_path / "model.gguf", "bert", model, attention__layer_norm_epsilon=1e-12, attention__causal=False)
    one, other = (families.recipe(open_checkpoint(tmp_path / name)) for name in ("model.gguf", "hf"))
    assert one.config._replace(norm_eps=0.0) == other.config._replace(norm_eps=0.0)
    assert one.vectors.keys() == other.vectors.keys()
    assert all(bytes(one.vectors[name]) == bytes(other.vectors[name]) for name in one.vectors)
    assert one.matrices.keys() == other.matrices.keys()
    for name, weight in one.matrices.items():
        assert (floats(weight.tensor) == floats(other.matrices[name].tensor)).all()


def test_experts_that_are_tensors_of_their_own(tmp_path):
    """As Mixtral's first GGUF files have them."""
    model = model_of("mixtral")
    write(tmp_path / "model.gguf", "llama", model, **MODELS["mixtral"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    tensors = {}
    for name, tensor in found.tensors.items():
        if "_exps" in name:
            tensors |= {name.replace("_exps", f".{i}"): at(tensor, i) for i in range(5)}
        else:
            tensors[name] = tensor
    apart, together = (families.recipe(c).matrices for c in (found._replace(tensors=tensors), found))
    for name, weight in apart.items():
        assert (floats(weight.tensor) == floats(together[name].tensor)).all()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("llama.attention.head_count", [4, 4, 2], "differs between layers"),
        ("llama.rope.dimension_count", 6, "rope.dimension_count"),
        ("llama.rope.scaling.type", "su", "rotary scaling"),
        ("llama.block_count", None, "block_count"),
        ("llama.block_count", 4, "layers.3."),
        ("llama.embedding_length", "many", "embedding_length"),
    ],
)
def test_settings_that_cannot_be(tmp_path, key, value, word):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=re.escape(word)):
        families.recipe(found._replace(header={**found.header, key: value}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """An opened file of each model."""
    found = {}
    for name in ("llama", "mixtral", "gemma3", "phi3_long", "stablelm_12b", "gpt2", "gptneox", "granite"):
        path = tmp_path_factory.mktemp(name) / "model.gguf"
        write(path, MODELS[name][0], model_of(name), **MODELS[name][3])
        found[name] = open_checkpoint(path)
    return found


VALUES = [
    None,
    True,
    0,
    1,
    2,
    3,
    6,
    -1,
    1 << 16,
    1 << 20,
    1 << 31,
    1 << 63,
    0.0,
    1e308,
    -1.0,
    float("nan"),
    "x",
    [],
    [1, 2],
]


@settings(max_examples=200)
@given(st.data())
def test_settings_that_are_anything(checkpoints, data):
    """Refused, or a recipe; soon, and with memory for no more than the file holds."""
    found = checkpoints[data.draw(st.sampled_from(sorted(checkpoints)))]
    keys = st.sampled_from(sorted(found.header.keys() - {"general.architecture"}))
    header = found.header | data.draw(st.dictionaries(keys, st.sampled_from(VALUES), min_size=1, max_size=3))
    lost = data.draw(st.sets(st.sampled_from(sorted(found.tensors)), max_size=2))
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in lost}
    error = failure(lambda: families.recipe(found._replace(header=header, tensors=tensors)))
    assert error is None or "\n" not in str(error)


def test_how_the_first_files_scale_positions(tmp_path):
    """By a key of its own; a factor without a kind is linear, as in llama.cpp."""
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")

    def freqs(**scaling):
        header = {**found.header, **{f"llama.rope.{key}": value for key, value in scaling.items()}}
        return np.frombuffer(families.recipe(found._replace(header=header)).vectors["rope.freqs"], np.float32)

    expected = freqs(**{"scaling.type": "linear", "scaling.factor": 4.0})
    assert np.allclose(expected, freqs() / 4)
    assert (freqs(scale_linear=4.0) == expected).all()
    assert (freqs(**{"scaling.factor": 4.0}) == expected).all()
    for nothing in ({"scaling.type": "linear"}, {"scaling.type": "none", "scaling.factor": 4.0}, {"scale_linear": 0.0}):
        assert (freqs(**nothing) == freqs()).all()


def test_the_same_setting_for_each_layer(tmp_path):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    listed = found._replace(header={**found.header, "llama.attention.head_count_kv": [2, 2, 2]})
    assert families.recipe(listed).config == families.recipe(found).config


@pytest.mark.parametrize(
    ("more", "bos", "stop"),
    [
        ({"bos_token_id": 3, "eos_token_id": 5}, 3, (5,)),
        ({"bos_token_id": 3, "eos_token_id": 5, "eot_token_id": 7}, 3, (5, 7)),
        ({"bos_token_id": 3, "eos_token_id": 5, "eot_token_id": 5, "add_bos_token": False}, None, (5,)),
        ({}, None, ()),
    ],
)
def test_where_texts_begin_and_end(tmp_path, more, bos, stop):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    found = open_checkpoint(tmp_path / "model.gguf")
    header = {**found.header, **{f"tokenizer.ggml.{key}": value for key, value in more.items()}}
    recipe = families.recipe(found._replace(header=header))
    assert (recipe.bos, recipe.stop) == (bos, stop)


def test_two_formats_of_one_model_are_equal_to_the_bit(tmp_path):
    write(tmp_path / "model.gguf", "llama", model_of("llama"), **MODELS["llama"][3])
    one, other = (fastllm.load(tmp_path / name, dtype="f32", threads=1) for name in ("model.gguf", "hf"))
    ids = tokens(97, 100)
    assert (one.logits(ids) == other.logits(ids)).all()
