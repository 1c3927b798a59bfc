"""Grok-1 (xAI, 2024), with the names and constants of the released code.

https://github.com/xai-org/grok-1/blob/main/model.py. Norms before and after both branches; a soft cap of attention's
scores; 2 of 8 experts for each token, weighted by the softmax over all 8. Matrices are stored (inputs, outputs).
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._rope import rotation
from fastllm.families.source import Recipe, Source
from fastllm.tensors import transposed

# The matrices and norms of a layer, by canonical name.
_MATRICES = {
    "attn.wq": "multi_head_attention/query",
    "attn.wk": "multi_head_attention/key",
    "attn.wv": "multi_head_attention/value",
    "attn.wo": "multi_head_attention/linear",
    "router": "router",
    "experts.w1": "moe/linear",
    "experts.w3": "moe/linear_v",
    "experts.w2": "moe/linear_1",
}
_NORMS = ("attn_norm", "post_attn_norm", "ffn_norm", "post_ffn_norm")


def grok(source: Source) -> Recipe:
    """The config is what run.py passes to LanguageModelConfig and, under "model", to TransformerConfig."""
    model = source.section("model")
    heads, kv_heads, head_dim = (model.integer(key) for key in ("num_q_heads", "num_kv_heads", "key_size"))
    experts = "transformer/decoder_layer_0/moe/linear/w"
    config = Config(
        dim=model.integer("emb_size"),
        hidden_dim=0,
        head_dim=head_dim,
        n_layers=model.integer("num_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        vocab_size=source.integer("vocab_size"),
        max_seq=source.integer("sequence_len"),
        rotary_dim=head_dim,
        norm_eps=source.number("rms_norm_eps", 1e-5),
        attn_scale=model.number("attn_output_multiplier"),
        act="gelu_tanh",
        attn_softcap=source.number("attn_softcap", 30.0),
        logit_scale=source.number("output_multiplier_scale"),
        embed_scale=source.number("embedding_multiplier_scale"),
        n_experts=model.integer("num_experts"),
        n_experts_used=model.integer("num_selected_experts"),
        expert_dim=source.tensor(experts).width,
        pad_token=source.integer("pad_token", 0),
    )
    if f"transformer/decoder_layer_{config.n_layers}/router/w" in source.tensors:
        raise source.error(f"has more layers than the {config.n_layers} of its config")
    rope = source.section("rope", rope_theta=source.number("rope_base", 10000.0))
    source.vectors["rope.freqs"] = rotation(rope, head_dim, config.max_seq).freqs
    for i in range(config.n_layers):
        theirs, ours = f"transformer/decoder_layer_{i}", f"layers.{i}"

        for name, leaf in _MATRICES.items():
            source.matrix(f"{ours}.{name}", transposed(source.tensor(f"{theirs}/{leaf}/w")))
        for j, name in enumerate(_NORMS):
            source.vector(f"{ours}.{name}", f"{theirs}/rms_norm{f'_{j}' if j else ''}/scale")
    source.vector("final_norm", "language_model/rms_norm/scale")
    source.matrix("embed", "language_model/in_out_embed/embeddings")
    # runners.py puts no BOS before a text.
    return source.recipe(config, stop=(source.integer("eos_token", 2),))
