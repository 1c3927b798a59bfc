"""ESM-2 (Lin et al., 2023) and ESM-1b (Rives et al., 2021): protein encoders with norms before each branch.

https://doi.org/10.1126/science.ade2574, https://doi.org/10.1073/pnas.2016239118
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import head_width
from fastllm.families._rope import parameters, rotation
from fastllm.families.source import Recipe, Source
from fastllm.tensors import part


def esm(source: Source) -> Recipe:
    """EsmForMaskedLM, EsmModel. As in the reference, the activation is the erf GELU whatever the config says."""
    source.refuse("is_decoder", False)
    source.refuse("position_embedding_type", "absolute", "rotary")
    dim, heads = source.integer("hidden_size", 768), source.integer("num_attention_heads", 12)
    head_dim = head_width(source, dim, heads)
    rotary = source.text("position_embedding_type", "absolute") == "rotary"
    # Learned positions begin at the row after the padding token's id.
    first = 0 if rotary else source.integer("pad_token_id", 1) + 1
    longest = source.integer("max_position_embeddings", 1026) - first
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 3072),
        head_dim=head_dim,
        n_layers=source.integer("num_hidden_layers", 12),
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.rows("vocab_size", "esm.embeddings.word_embeddings.weight"),
        max_seq=longest,
        positions=0 if rotary else longest,
        rotary_dim=head_dim if rotary else 0,
        norm="layer",
        norm_eps=source.number("layer_norm_eps", 1e-12),
        act="gelu_erf",
        gated=False,
        causal=False,
        head=any(f"lm_head.{name}.weight" in source.tensors for name in ("dense", "layer_norm", "decoder")),
        mask_token=source.integer("mask_token_id") if source.flag("token_dropout") else -1,
        attn_scale=head_dim**-0.5,
    )
    if rotary:
        _frequencies(source, head_dim, longest)
    else:
        table = source.tensor("esm.embeddings.position_embeddings.weight")
        source.matrix("positions", part(table, first, first + longest))
    if source.flag("emb_layer_norm_before"):
        source.norm("embed_norm", "esm.embeddings.layer_norm", bias=True)
    for i in range(config.n_layers):
        theirs, ours = f"esm.encoder.layer.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.attention.LayerNorm", bias=True)
        for name, of in (("wq", "self.query"), ("wk", "self.key"), ("wv", "self.value"), ("wo", "output.dense")):
            source.linear(f"{ours}.attn.{name}", f"{theirs}.attention.{of}", bias=True)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.LayerNorm", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.intermediate.dense", bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.output.dense", bias=True)
    source.norm("final_norm", "esm.encoder.emb_layer_norm_after", bias=True)
    embed = "esm.embeddings.word_embeddings.weight"
    if not config.head:
        source.matrix("embed", embed)
    else:
        source.embedding(embed, "lm_head.decoder.weight", tied=True, needed=True)
        source.linear("head.dense", "lm_head.dense", bias=True)
        source.norm("head.norm", "lm_head.layer_norm", bias=True)
        source.vector("head.bias", "lm_head.bias")
    return source.recipe(config)


def _frequencies(source: Source, head_dim: int, max_seq: int) -> None:
    """Names the rotary frequencies: the file's if it has any, as released models were trained with rounded ones."""
    stored = next((name for name in source.tensors if name.endswith("rotary_embeddings.inv_freq")), None)
    if stored is None:
        source.vectors["rope.freqs"] = rotation(parameters(source), head_dim, max_seq).freqs
    else:
        source.vector("rope.freqs", stored)
