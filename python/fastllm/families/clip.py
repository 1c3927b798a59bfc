"""The text tower of CLIP (Radford et al., 2021): a causal transformer that gives hidden states, not tokens."""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families import Recipe, Source
from fastllm.families.huggingface import act, head_width


def recipe(source: Source) -> Recipe:
    """CLIPTextModel, CLIPTextModelWithProjection, and the tower of a CLIPModel, whose projections are left out."""
    if source.get("text_config") is not None:
        source = source.section("text_config")
    dim, heads = source.integer("hidden_size", 512), source.integer("num_attention_heads", 8)
    head_dim = head_width(source, dim, heads)
    longest = source.integer("max_position_embeddings", 77)
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 2048),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers", 12),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.integer("vocab_size", 49408),
        max_seq=longest,
        positions=longest,
        rotary_dim=0,
        norm="layer",
        norm_eps=source.number("layer_norm_eps", 1e-5),
        act=act(source, default="quick_gelu"),
        gated=False,
        head=False,
        attn_scale=head_dim**-0.5,
    )
    root = "text_model." if "text_model.final_layer_norm.weight" in source.tensors else ""
    for i in range(config.n_layers):
        theirs, ours = f"{root}encoder.layers.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.layer_norm1")
        for name, of in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj"), ("wo", "out_proj")):
            source.linear(f"{ours}.attn.{name}", f"{theirs}.self_attn.{of}")
        source.norm(f"{ours}.ffn_norm", f"{theirs}.layer_norm2")
        source.linear(f"{ours}.ffn.w1", f"{theirs}.mlp.fc1")
        source.linear(f"{ours}.ffn.w2", f"{theirs}.mlp.fc2")
    source.norm("final_norm", f"{root}final_layer_norm")
    source.matrix("positions", f"{root}embeddings.position_embedding.weight")
    source.matrix("embed", f"{root}embeddings.token_embedding.weight")
    return source.recipe(config)
