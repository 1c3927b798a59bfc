"""Llama in Meta's own files (Touvron et al., 2023), and llama2.c's, with their names: rotary pairs (2i, 2i + 1).

https://github.com/meta-llama/llama-models, https://github.com/karpathy/llama2.c. Meta's params.json lacks the width of
the feed-forward, which the tensors tell, the context, and the factor by which Llama 3.1 and 3.2 slow rotations down.
"""

from __future__ import annotations

from fastllm.config import Config, rope_freqs
from fastllm.families._huggingface import head_width
from fastllm.families.source import Recipe, Source, half_split

_CONTEXTS = {500000.0: 8192, 1000000.0: 16384}  # by rope_theta: Llama 3, Code Llama; all others are Llama 1 and 2
_LLAMA_2_CONTEXT, _LLAMA_3_1_CONTEXT = 4096, 131072
_LLAMA_3_BOS = 128000


def meta_llama(source: Source) -> Recipe:
    """The config is params.json, or llama2.c's header, which also has hidden_dim and max_seq_len."""
    for key in ("moe_args", "quantization_args", "lora_args", "vision_args"):
        source.refuse(key)
    source.refuse("vision_chunk_size", -1)
    dim, heads = source.integer("dim"), source.integer("n_heads")
    head_dim, kv_heads = head_width(source, dim, heads), source.integer("n_kv_heads", heads)
    vocab_size = source.integer("vocab_size", -1)
    if vocab_size == -1:
        vocab_size = source.tensor("tok_embeddings.weight").rows
    config = Config(
        dim=dim,
        hidden_dim=source.tensor("layers.0.feed_forward.w1.weight").rows,
        head_dim=head_dim,
        n_layers=source.integer("n_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        vocab_size=vocab_size,
        max_seq=source.integer("max_seq_len", _context(source)),
        rotary_dim=head_dim,
        norm_eps=source.number("norm_eps", 1e-5),
        attn_scale=head_dim**-0.5,
    )
    source.vectors["rope.freqs"] = _freqs(source, dim, head_dim, config.max_seq)
    q_rows, k_rows = half_split(heads, head_dim), half_split(kv_heads, head_dim)
    for i in range(config.n_layers):
        theirs, ours = f"layers.{i}.attention", f"layers.{i}.attn"
        source.norm(f"layers.{i}.attn_norm", f"layers.{i}.attention_norm")
        source.linear(f"{ours}.wq", f"{theirs}.wq", rows=q_rows, bias=False)
        source.linear(f"{ours}.wk", f"{theirs}.wk", rows=k_rows, bias=False)
        source.linear(f"{ours}.wv", f"{theirs}.wv", bias=False)
        source.linear(f"{ours}.wo", f"{theirs}.wo", bias=False)
        source.norm(f"layers.{i}.ffn_norm", f"layers.{i}.ffn_norm")
        for name in ("w1", "w3", "w2"):
            source.linear(f"layers.{i}.ffn.{name}", f"layers.{i}.feed_forward.{name}", bias=False)
    source.norm("final_norm", "norm")
    source.embedding("tok_embeddings.weight", "output.weight", tied=True)
    if "hidden_dim" in source.header:
        # llama2.c ends a text at BOS, which separated stories in training, and a turn of a chat also at EOS.
        return source.recipe(config, bos=1, stop=(1,), chat_stop=(1, 2))
    if vocab_size >= _LLAMA_3_BOS:
        # Llama 3's end_of_text, eom_id (end of message) and eot_id (end of turn).
        return source.recipe(config, bos=_LLAMA_3_BOS, stop=(128001, 128008, 128009))
    return source.recipe(config, bos=1, stop=(2,))


def _context(source: Source) -> int:
    """The context, max_seq."""
    if source.flag("use_scaled_rope"):
        return _LLAMA_3_1_CONTEXT
    return _CONTEXTS.get(source.number("rope_theta", 10000.0), _LLAMA_2_CONTEXT)


def _freqs(source: Source, dim: int, head_dim: int, max_seq: int) -> bytes:
    """The rotary frequencies as f32 bytes."""
    if "rope_theta" not in source.header:
        return rope_freqs(10000.0, head_dim)
    from fastllm.families._rope import rotation

    # By Hugging Face's configs the small models of 3.2 (1B, 3B) slow down by 32 and all others by 8. Meta's code has 8
    # for all: https://github.com/meta-llama/llama-models/issues/241. Only the small ones have dim < 4096.
    factor = source.number("rope_scaling_factor", 8.0 if dim >= 4096 else 32.0)
    rope = source.section(
        "rope_scaling",
        rope_type="llama3" if source.flag("use_scaled_rope") else "default",
        rope_theta=source.number("rope_theta"),
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return rotation(rope, head_dim, max_seq).freqs
