"""GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023): a part of each head rotates, parallel branches.

https://arxiv.org/abs/2204.06745, https://arxiv.org/abs/2304.01373
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import act, eos, head_width
from fastllm.families._rope import parameters, rotation
from fastllm.families.source import Recipe, Source
from fastllm.tensors import at, columns, joined_rows, reshaped


def gpt_neox(source: Source) -> Recipe:
    """GPTNeoXForCausalLM, GPTNeoXModel."""
    dim, heads = source.integer("hidden_size", 6144), source.integer("num_attention_heads", 64)
    head_dim = head_width(source, dim, heads)
    rope = parameters(source, partial=0.25, keys=("rotary_emb_base", "rotary_pct"))
    rope.refuse("rope_type", "default", "linear")
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 24576),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers", 44),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.rows("vocab_size", "gpt_neox.embed_in.weight", "embed_out.weight"),
        max_seq=source.integer("max_position_embeddings", 2048),
        rotary_dim=int(head_dim * rope.number("partial_rotary_factor")),
        norm="layer",
        norm_eps=source.number("layer_norm_eps", 1e-5),
        act=act(source),
        gated=False,
        parallel=source.flag("use_parallel_residual", True),
        attn_scale=head_dim**-0.5,
    )
    if config.rotary_dim:
        source.vectors["rope.freqs"] = rotation(rope, config.rotary_dim, config.max_seq).freqs
    bias = source.flag("attention_bias", True)
    for i in range(config.n_layers):
        theirs, ours = f"gpt_neox.layers.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.input_layernorm", bias=True)
        _split(source, f"{ours}.attn", f"{theirs}.attention.query_key_value", config, bias=bias)
        source.linear(f"{ours}.attn.wo", f"{theirs}.attention.dense", bias=bias)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.mlp.dense_h_to_4h", bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.mlp.dense_4h_to_h", bias=True)
    source.norm("final_norm", "gpt_neox.final_layer_norm", bias=True)
    head = source.embedding("gpt_neox.embed_in.weight", "embed_out.weight", tied=False)
    return source.recipe(config._replace(head=head), stop=eos(source))


def _split(source: Source, ours: str, theirs: str, config: Config, *, bias: bool) -> None:
    """Names queries, keys and values, which are one matrix with rows (heads, 3, head_dim)."""
    heads, width = config.n_heads, config.head_dim
    weight = reshaped(source.tensor(f"{theirs}.weight"), (3 * heads, width, config.dim))
    values = source.tensor(f"{theirs}.bias") if bias else None
    for n, name in enumerate(("wq", "wk", "wv")):
        parts = range(n, 3 * heads, 3)
        source.matrix(f"{ours}.{name}", joined_rows([at(weight, i) for i in parts]))
        if values is not None:
            source.vector(
                f"{ours}.{name}.bias", joined_rows([columns(values, i * width, (i + 1) * width) for i in parts])
            )
