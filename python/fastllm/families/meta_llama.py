"""Llama in Meta's names and layout (Touvron et al., 2023), which llama2.c shares: rotary pairs (2i, 2i + 1)."""

from __future__ import annotations

from fastllm.config import Config, rope_freqs
from fastllm.families import Recipe, Source, half_split


def recipe(source: Source) -> Recipe:
    """Reads the header's dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len."""
    heads, kv_heads = source.integer("n_heads"), source.integer("n_kv_heads")
    head_dim = source.integer("dim") // heads
    config = Config(
        dim=source.integer("dim"),
        hidden_dim=source.integer("hidden_dim"),
        head_dim=head_dim,
        n_layers=source.integer("n_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        vocab_size=source.integer("vocab_size"),
        max_seq=source.integer("max_seq_len"),
        rotary_dim=head_dim,
        norm_eps=1e-5,
        attn_scale=head_dim**-0.5,
    )
    source.vectors["rope.freqs"] = rope_freqs(10000.0, head_dim)
    for i in range(config.n_layers):
        theirs, ours = f"layers.{i}.attention", f"layers.{i}.attn"
        source.norm(f"layers.{i}.attn_norm", f"layers.{i}.attention_norm")
        source.linear(f"{ours}.wq", f"{theirs}.wq", rows=half_split(heads, head_dim))
        source.linear(f"{ours}.wk", f"{theirs}.wk", rows=half_split(kv_heads, head_dim))
        source.linear(f"{ours}.wv", f"{theirs}.wv")
        source.linear(f"{ours}.wo", f"{theirs}.wo")
        source.norm(f"layers.{i}.ffn_norm", f"layers.{i}.ffn_norm")
        for name in ("w1", "w3", "w2"):
            source.linear(f"layers.{i}.ffn.{name}", f"layers.{i}.feed_forward.{name}")
    source.norm("final_norm", "norm")
    source.matrix("embed", "tok_embeddings.weight")
    if "output.weight" in source.tensors:
        source.matrix("head", "output.weight")
    # llama2.c ends a text at BOS, which its stories were separated by, and a turn of a chat at EOS.
    return source.recipe(config, bos=1, stop=(1,), chat_stop=(1, 2))
