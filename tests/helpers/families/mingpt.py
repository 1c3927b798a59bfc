"""minGPT (https://github.com/karpathy/minGPT) in its two forms, written again, with random weights."""

import json

from helpers.reference import torch


class Attention(torch.nn.Module):
    """Causal self-attention. separate: keys, queries and values have a matrix each, instead of one for all three."""

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
    """minGPT as it was first published, in 2020."""

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
    """Renames the tensors of First as the tch crate's minGPT example, whose head also has a bias (here zeros)."""
    changes = (("blocks.", ""), ("attn.", ""), ("mlp.0", "lin1"), ("mlp.2", "lin2"))
    named = {"gpt.head.bias": torch.zeros(len(tensors["head.weight"]))}
    for name, tensor in tensors.items():
        for old, new in changes:
            name = name.replace(old, new)  # noqa: PLW2901
        if not name.endswith("mask"):
            named[f"gpt.{name}"] = tensor
    return named


def mingpt(kind, path, *, config=None, suffix=".pt"):
    """Writes a random minGPT of a kind ("first", "second", "tch") and returns the module and the file."""
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
