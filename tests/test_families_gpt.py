"""GPT-2 and its kin compute what the transformers library computes; minGPT what its papers' arithmetic says."""

import json

import pytest

import fastllm
import reference
from conftest import failure
from reference import torch, transformers

SIZES = {"vocab_size": 97}

GPT2 = SIZES | {"n_positions": 200, "n_embd": 36, "n_layer": 3, "n_head": 3}
NEO = SIZES | {
    "max_position_embeddings": 200,
    "hidden_size": 36,
    "num_layers": 3,
    "num_heads": 3,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": 7,
}
NEOX = SIZES | {
    "max_position_embeddings": 200,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 57,
}

CASES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2 of its own width": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"n_inner": 57, "activation_function": "relu"}),
    "gpt2 scaled by layer": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt2 not scaled, untied": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2 | {"scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO),
    "gpt_neo of its own width": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        NEO | {"intermediate_size": 57, "activation_function": "gelu", "window_size": 100},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "gpt_neox one after the other": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        NEOX
        | {
            "use_parallel_residual": False,
            "hidden_act": "gelu_fast",
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt_neox tied, no biases": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        NEOX | {"attention_bias": False, "tie_word_embeddings": True},
    ),
}


def built(architecture, config, values, *, seed=0):
    return reference.build(architecture, getattr(transformers, config)(**values), seed=seed)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_text_are_those_of_transformers(case, tmp_path):
    reference.agree(built(*CASES[case]), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "config", "values", "prefix"),
    [
        ("GPT2Model", "GPT2Config", GPT2, "transformer."),
        ("GPTNeoModel", "GPTNeoConfig", NEO, "transformer."),
        ("GPTNeoXModel", "GPTNeoXConfig", NEOX, "gpt_neox."),
    ],
)
def test_hidden_states_of_the_headless_model(architecture, config, values, prefix, tmp_path):
    model = built(architecture, config, values)
    model.save_pretrained(tmp_path)
    assert not any(name.startswith(prefix) for name in model.state_dict())
    llm = fastllm.load(tmp_path, threads=1)
    ids = reference.tokens(97, 70)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert reference.difference(llm.hidden_states(ids), expected) < 1e-4


@pytest.mark.parametrize("beside", [{}, {"rope_theta": 77.0, "partial_rotary_factor": 0.5}], ids=str)
def test_names_and_config_of_the_first_pythia_checkpoints(tmp_path, beside):
    """Rotary values at the top of the config, by names of their own only; masks and frequencies among the tensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = built("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.25, "rotary_emb_base": 10000, **beside}))
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    for i in range(3):
        theirs = f"gpt_neox.layers.{i}.attention"
        tensors[f"{theirs}.bias"] = torch.ones(1, 1, 200, 200, dtype=torch.bool).tril()
        tensors[f"{theirs}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{theirs}.rotary_emb.inv_freq"] = torch.zeros(2)
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    ids = reference.tokens(97, 90)
    found = fastllm.load(tmp_path, threads=1).logits(ids)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reference.difference(found, reference.logits(theirs, ids)) < 1e-4


@pytest.mark.parametrize(
    ("case", "change", "cause"),
    [
        ("gpt2", {"n_head": 5}, "5 attention heads"),
        ("gpt2", {"n_head": 0}, "0 attention heads"),
        ("gpt2", {"n_layer": 4}, "no tensor transformer.h.3.ln_1.weight"),
        ("gpt2", {"n_layer": 10**12}, "n_layers"),
        ("gpt2", {"activation_function": "mish"}, "mish"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"eos_token_id": "no"}, "eos_token_id"),
        ("gpt2", {"n_embd": 33}, "shape|rows|columns"),
        ("gpt_neo", {"attention_types": [[["global"], 10**12]], "num_layers": 10**12}, "attention_types"),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, "attention_types"),
        ("gpt_neo", {"attention_types": [["nowhere", 3]]}, "attention_types"),
        ("gpt_neo", {"attention_types": 7}, "attention_types"),
        ("gpt_neox", {"num_attention_heads": 4}, "12|channels|rows|cannot"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "strange"}}, "strange"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 9}}, "channels"),
    ],
)
def test_a_config_that_is_wrong_is_one_clear_error(case, change, cause, tmp_path):
    built(*CASES[case]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    error = failure(lambda: fastllm.load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert any(word in str(error) for word in cause.split("|"))
    assert str(tmp_path) in str(error)


# ---- minGPT ----------------------------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Causal self-attention; `separate`: a matrix each for keys, queries and values, else one for all three."""

    def __init__(self, dim, heads, block, *, separate):
        super().__init__()
        self.heads, self.separate = heads, separate
        mask = torch.ones(1, 1, block, block).tril()
        if separate:
            self.key, self.query, self.value = (torch.nn.Linear(dim, dim) for _ in range(3))
            self.proj = torch.nn.Linear(dim, dim)
            self.register_buffer("mask", mask)
        else:
            self.c_attn, self.c_proj = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
            self.register_buffer("bias", mask)

    def forward(self, x):
        t, dim = x.shape
        rows = [self.query(x), self.key(x), self.value(x)] if self.separate else self.c_attn(x).split(dim, dim=1)
        q, k, v = (row.view(t, self.heads, -1).transpose(0, 1) for row in rows)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        seen = (self.mask if self.separate else self.bias)[0, 0, :t, :t]
        out = scores.masked_fill(seen == 0, float("-inf")).softmax(-1) @ v
        return (self.proj if self.separate else self.c_proj)(out.transpose(0, 1).reshape(t, dim))


class FirstBlock(torch.nn.Module):
    def __init__(self, dim, heads, block):
        super().__init__()
        self.ln1, self.ln2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, block, separate=True)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(dim, 4 * dim), torch.nn.GELU(), torch.nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class First(torch.nn.Module):
    """minGPT as it was first published."""

    def __init__(self, vocab, dim, heads, layers, block):
        super().__init__()
        self.tok_emb = torch.nn.Embedding(vocab, dim)
        self.pos_emb = torch.nn.Parameter(torch.zeros(1, block, dim))
        self.blocks = torch.nn.Sequential(*[FirstBlock(dim, heads, block) for _ in range(layers)])
        self.ln_f = torch.nn.LayerNorm(dim)
        self.head = torch.nn.Linear(dim, vocab, bias=False)

    def forward(self, ids):
        return self.head(self.ln_f(self.blocks(self.tok_emb(ids) + self.pos_emb[0, : len(ids)])))


class SecondBlock(torch.nn.Module):
    def __init__(self, dim, heads, block):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, block, separate=False)
        self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(dim, 4 * dim), "c_proj": torch.nn.Linear(4 * dim, dim)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        inner = torch.nn.functional.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.mlp.c_proj(inner)


class Second(torch.nn.Module):
    """minGPT since 2022."""

    def __init__(self, vocab, dim, heads, layers, block):
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(vocab, dim),
                "wpe": torch.nn.Embedding(block, dim),
                "h": torch.nn.ModuleList([SecondBlock(dim, heads, block) for _ in range(layers)]),
                "ln_f": torch.nn.LayerNorm(dim),
            }
        )
        self.lm_head = torch.nn.Linear(dim, vocab, bias=False)

    def forward(self, ids):
        parts = self.transformer
        x = parts.wte(ids) + parts.wpe(torch.arange(len(ids)))
        for block in parts.h:
            x = block(x)
        return self.lm_head(parts.ln_f(x))


def tch_names(tensors):
    """A first minGPT as the tch crate's example, which has no `attn` and `mlp`, names it; its head has a bias of 0."""
    changes = (("blocks.", ""), ("attn.", ""), ("mlp.0", "lin1"), ("mlp.2", "lin2"))
    named = {"gpt.head.bias": torch.zeros(len(tensors["head.weight"]))}
    for name, tensor in tensors.items():
        for old, new in changes:
            name = name.replace(old, new)  # noqa: PLW2901
        if not name.endswith("mask"):
            named[f"gpt.{name}"] = tensor
    return named


def mingpt(kind, path, *, config=None, suffix=".pt"):
    """Writes a random minGPT and gives the module and the file."""
    torch.manual_seed(5)
    model = (Second if kind == "second" else First)(31, 36, 3, 3, 170)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "ln" in name and name.endswith("weight")
            p.normal_(1.0 if norm else 0.0, 0.25 if p.dim() == 1 else 0.3)
    tensors = model.state_dict()
    file = path / f"model{suffix}"
    torch.save(tch_names(tensors) if kind == "tch" else tensors, file)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return model, file


FLAT, NESTED = {"n_head": 3}, {"system": {"seed": 1}, "model": {"model_type": "gpt-nano", "n_head": None}}


@pytest.mark.parametrize(("kind", "config"), [("first", FLAT), ("second", FLAT), ("second", NESTED), ("tch", FLAT)])
def test_mingpt(kind, config, tmp_path):
    model, file = mingpt(kind, tmp_path, config=config)
    llm = fastllm.load(file, threads=1)
    ids = reference.tokens(31, 150)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).numpy()
        for _ in range(10):
            ids.append(int(model(torch.tensor(ids))[-1].argmax()))
    assert reference.difference(llm.logits(ids[:150]), expected) < 1e-4
    assert llm.generate(ids[:150], max_tokens=10, temperature=0) == ids[150:]


@pytest.mark.parametrize("config", [None, {}, {"n_head": "3"}, {"model": {"model_type": "gpt-huge"}}])
def test_mingpt_without_its_number_of_heads_says_what_is_missing(config, tmp_path):
    _, file = mingpt("first", tmp_path, config=config)
    error = failure(lambda: fastllm.load(file))
    assert isinstance(error, fastllm.CheckpointError)
    assert "config.json" in str(error)
    assert config is None or ("n_head" in str(error) and str(file) in str(error))
