"""minGPT and nanoGPT (Karpathy, 2020, 2022): GPT-2 in plain PyTorch, in files that hold tensors and no config.

https://github.com/karpathy/minGPT, https://github.com/karpathy/nanoGPT. Files are known by their tensors' names, of
which there are three sets: the first version's (three matrices for queries, keys and values, erf GELU), those of the
example in the tch crate, which follows it, and the second version's (GPT-2's names, one matrix, tanh GELU).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from fastllm.config import Config
from fastllm.families._huggingface import head_width
from fastllm.families.source import Recipe, Source
from fastllm.tensors import columns, parted, reshaped


class _Names(NamedTuple):
    """One set of tensor names. Layer i is `block` followed by i; norms, qkv, wo and ffn are below it."""

    embed: str
    positions: str
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    wo: str
    ffn: tuple[str, str]
    final_norm: str
    head: str
    act: str = "gelu_erf"


_SPELLINGS = (
    _Names(
        embed="tok_emb.weight",
        positions="pos_emb",
        block="blocks.",
        norms=("ln1", "ln2"),
        qkv=("attn.query", "attn.key", "attn.value"),
        wo="attn.proj",
        ffn=("mlp.0", "mlp.2"),
        final_norm="ln_f",
        head="head",
    ),
    _Names(
        embed="gpt.tok_emb.weight",
        positions="gpt.pos_emb",
        block="gpt.",
        norms=("ln1", "ln2"),
        qkv=("query", "key", "value"),
        wo="proj",
        ffn=("lin1", "lin2"),
        final_norm="gpt.ln_f",
        head="gpt.head",
    ),
    _Names(
        embed="transformer.wte.weight",
        positions="transformer.wpe.weight",
        block="transformer.h.",
        norms=("ln_1", "ln_2"),
        qkv=("attn.c_attn",),
        wo="attn.c_proj",
        ffn=("mlp.c_fc", "mlp.c_proj"),
        final_norm="transformer.ln_f",
        head="lm_head",
        act="gelu_tanh",
    ),
)

# Attention heads by minGPT's model_type.
_HEADS = {
    "openai-gpt": 12,
    "gpt2": 12,
    "gpt2-medium": 16,
    "gpt2-large": 20,
    "gpt2-xl": 25,
    "gopher-44m": 16,
    "gpt-mini": 6,
    "gpt-micro": 4,
    "gpt-nano": 3,
}


def matches(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are minGPT's."""
    return _spelling(frozenset(tensors)) is not None


def _spelling(tensors: Iterable[str]) -> _Names | None:
    """The set that the names of these tensors are from, or None."""
    for names in _SPELLINGS:
        needed = (names.embed, names.positions, f"{names.head}.weight", f"{names.block}0.{names.qkv[0]}.weight")
        if all(name in tensors for name in needed):
            return names
    return None


def mingpt(source: Source) -> Recipe:
    """minGPT or nanoGPT. All but the number of heads follows from the tensors' shapes."""
    names = _spelling(source.tensors)
    if names is None:
        raise source.error("has not the tensors of minGPT")
    nano = source.architecture == "nanoGPT"
    embed = source.tensor(names.embed)
    table = source.tensor(names.positions)
    table = reshaped(table, table.shape[-2:])  # (1, positions, dim) in the first version
    heads = _heads(source)
    head_dim = head_width(source, embed.width, heads)
    block = re.compile(rf"{re.escape(names.block)}(\d+)\.{re.escape(names.qkv[0])}\.weight")
    config = Config(
        dim=embed.width,
        hidden_dim=source.tensor(f"{names.block}0.{names.ffn[0]}.weight").rows,
        head_dim=head_dim,
        n_layers=sum(block.fullmatch(name) is not None for name in source.tensors),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=embed.rows,
        max_seq=table.rows,
        positions=table.rows,
        rotary_dim=0,
        norm="layer",
        norm_eps=1e-5,
        act="gelu_erf" if nano else names.act,
        gated=False,
        attn_scale=head_dim**-0.5,
    )
    biases = f"{names.final_norm}.bias" in source.tensors  # nanoGPT has an option for none
    for i in range(config.n_layers):
        theirs, ours = f"{names.block}{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.{names.norms[0]}", bias=biases)
        _attention(source, f"{ours}.attn", theirs, names.qkv, config.dim, biases=biases)
        source.linear(f"{ours}.attn.wo", f"{theirs}.{names.wo}", bias=biases)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.{names.norms[1]}", bias=biases)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.{names.ffn[0]}", bias=biases)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.{names.ffn[1]}", bias=biases)
    source.norm("final_norm", names.final_norm, bias=biases)
    source.matrix("positions", table)
    source.matrix("embed", embed)
    source.linear("head", names.head, bias=None)
    return source.recipe(config)


def _attention(source: Source, ours: str, theirs: str, qkv: tuple[str, ...], dim: int, *, biases: bool) -> None:
    """Names queries, keys and values, which are three matrices, or one of (3 * dim, dim)."""
    names = ("wq", "wk", "wv")
    if len(qkv) == 3:
        for name, theirs_name in zip(names, qkv, strict=True):
            source.linear(f"{ours}.{name}", f"{theirs}.{theirs_name}", bias=biases)
        return
    weights = parted(source.tensor(f"{theirs}.{qkv[0]}.weight"), dim, dim, dim)
    for n, (name, weight) in enumerate(zip(names, weights, strict=True)):
        source.matrix(f"{ours}.{name}", weight)
        if biases:
            bias = columns(source.tensor(f"{theirs}.{qkv[0]}.bias"), n * dim, (n + 1) * dim)
            source.vector(f"{ours}.{name}.bias", bias)


def _heads(source: Source) -> int:
    """The number of heads by a config.json: flat, or as minGPT saves it ({"model": {"n_head": ..., ...}, ...})."""
    for values in (source.header, source.get("model")):
        if isinstance(values, dict):
            heads = values.get("n_head") or _HEADS.get(str(values.get("model_type")).lower())
            if type(heads) is int:
                return heads
    raise source.error('says nowhere how many attention heads it has: put {"n_head": ...} in a config.json beside it')
