"""AMPLIFY (Fournier et al., 2024): a protein encoder built like Llama, with attention in both directions.

https://doi.org/10.1101/2024.09.23.614603; the reference is the repositories' own amplify.py.
"""

from __future__ import annotations

from fastllm.config import Config, rope_freqs
from fastllm.families._huggingface import ACTS, head_width
from fastllm.families.source import Recipe, Source, half_split
from fastllm.tensors import columns, parted


def amplify(source: Source) -> Recipe:
    """AMPLIFY, with all options of its config."""
    dim, heads = source.integer("hidden_size"), source.integer("num_attention_heads")
    head_dim = head_width(source, dim, heads)
    kind, hidden = source.text("hidden_act", "SwiGLU").lower(), source.integer("intermediate_size")
    gated = kind == "swiglu"
    if not gated and kind not in ("relu", "gelu"):
        raise source.error(f"has hidden_act {kind!r}; known are SwiGLU, ReLU and GELU")
    if gated:  # three matrices with as many weights as two of intermediate_size; a multiple of 8
        hidden = -(-int(2 * hidden / 3) // 8) * 8
    config = Config(
        dim=dim,
        hidden_dim=hidden,
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.integer("vocab_size"),
        max_seq=source.integer("max_length", 2048),
        rotary_dim=head_dim,
        norm="rms" if source.flag("rms_norm", True) else "layer",
        norm_eps=source.number("norm_eps", 1e-5),
        act="silu" if gated else ACTS[kind],
        gated=gated,
        causal=False,
        attn_scale=head_dim**-0.5,
    )
    source.vectors["rope.freqs"] = rope_freqs(10000.0, head_dim)
    pairs = half_split(heads, head_dim)
    att_bias, ffn_bias, norm_bias = source.flag("att_bias"), source.flag("ffn_bias"), config.norm == "layer"
    for i in range(config.n_layers):
        theirs, ours = f"transformer_encoder.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.attention_norm", bias=norm_bias)
        source.linear(f"{ours}.attn.wq", f"{theirs}.q", rows=pairs, bias=att_bias)
        source.linear(f"{ours}.attn.wk", f"{theirs}.k", rows=pairs, bias=att_bias)
        source.linear(f"{ours}.attn.wv", f"{theirs}.v", bias=att_bias)
        source.linear(f"{ours}.attn.wo", f"{theirs}.wo", bias=att_bias)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.ffn_norm", bias=norm_bias)
        if gated:
            _split(source, f"{ours}.ffn", f"{theirs}.ffn.w12", hidden, bias=ffn_bias)
            source.linear(f"{ours}.ffn.w2", f"{theirs}.ffn.w3", bias=ffn_bias)
        else:
            source.linear(f"{ours}.ffn.w1", f"{theirs}.ffn.0", bias=ffn_bias)
            source.linear(f"{ours}.ffn.w2", f"{theirs}.ffn.2", bias=ffn_bias)
    if source.flag("layer_norm_after_embedding"):
        source.norm("embed_norm", "layer_norm_1", bias=norm_bias)
    if source.flag("layer_norm_before_last_layer", True):
        source.norm("final_norm", "layer_norm_2", bias=norm_bias)
    source.matrix("embed", "encoder.weight")
    source.linear("head", "decoder", bias=True)
    return source.recipe(config)


def _split(source: Source, ours: str, theirs: str, hidden: int, *, bias: bool) -> None:
    """Names w1, which goes through silu, and w3, which are one matrix of (2 * hidden, dim)."""
    values = source.tensor(f"{theirs}.bias") if bias else None
    weights = parted(source.tensor(f"{theirs}.weight"), hidden, hidden)
    for n, (name, weight) in enumerate(zip(("w1", "w3"), weights, strict=True)):
        source.matrix(f"{ours}.{name}", weight)
        if values is not None:
            source.vector(f"{ours}.{name}.bias", columns(values, n * hidden, (n + 1) * hidden))
