"""The text tower of CLIP (Radford et al., 2021): a causal transformer without a head, for vectors of texts.

https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import act, head_width
from fastllm.families.source import Recipe, Source


def clip(source: Source) -> Recipe:
    """CLIPTextModel, CLIPTextModelWithProjection, and the tower of a CLIPModel; projections are left out."""
    if source.get("text_config") is not None:
        source = source.section("text_config")
    dim, heads = source.integer("hidden_size", 512), source.integer("num_attention_heads", 8)
    head_dim = head_width(source, dim, heads)
    longest = source.rows("max_position_embeddings", "text_model.embeddings.position_embedding.weight")
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 2048),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers", 12),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.rows("vocab_size", "text_model.embeddings.token_embedding.weight"),
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
    for i in range(config.n_layers):
        theirs, ours = f"text_model.encoder.layers.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.layer_norm1", bias=True)
        for name, of in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj"), ("wo", "out_proj")):
            source.linear(f"{ours}.attn.{name}", f"{theirs}.self_attn.{of}", bias=True)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.layer_norm2", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.mlp.fc1", bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.mlp.fc2", bias=True)
    source.norm("final_norm", "text_model.final_layer_norm", bias=True)
    source.matrix("positions", "text_model.embeddings.position_embedding.weight")
    source.matrix("embed", "text_model.embeddings.token_embedding.weight")
    return source.recipe(config)
