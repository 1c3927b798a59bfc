"""GPT-Neo (Black et al., 2021): GPT-2 without a scale of attention's scores, and a window in every second layer.

https://doi.org/10.5281/zenodo.5297715
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import act, eos, head_width
from fastllm.families.source import Recipe, Source


def gpt_neo(source: Source) -> Recipe:
    """GPTNeoForCausalLM, GPTNeoModel."""
    dim, heads = source.integer("hidden_size", 2048), source.integer("num_heads", 16)
    layers = source.integer("num_layers", 24)
    positions = source.rows("max_position_embeddings", "transformer.wpe.weight")
    config = Config(
        dim=dim,
        hidden_dim=source.integer("intermediate_size", 4 * dim),
        head_dim=head_width(source, dim, heads),
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        vocab_size=source.rows("vocab_size", "transformer.wte.weight", "lm_head.weight"),
        max_seq=positions,
        positions=positions,
        rotary_dim=0,
        norm="layer",
        norm_eps=source.number("layer_norm_epsilon", 1e-5),
        act=act(source, "activation_function", "gelu_new"),
        gated=False,
        attn_scale=1.0,
        windows=_windows(source, layers),
    )
    for i in range(config.n_layers):
        theirs, ours = f"transformer.h.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.ln_1", bias=True)
        for name, of in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj"), ("wo", "out_proj")):
            source.linear(f"{ours}.attn.{name}", f"{theirs}.attn.attention.{of}", bias=name == "wo")
        source.norm(f"{ours}.ffn_norm", f"{theirs}.ln_2", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.mlp.c_fc", bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.mlp.c_proj", bias=True)
    source.norm("final_norm", "transformer.ln_f", bias=True)
    source.matrix("positions", "transformer.wpe.weight")
    head = source.embedding("transformer.wte.weight", "lm_head.weight", tied=True)
    return source.recipe(config._replace(head=head), stop=eos(source))


def _windows(source: Source, layers: int) -> tuple[int, ...]:
    """Config.windows, by attention_types: [[kinds, n], ...], each a list of "global" or "local", repeated n times."""
    types = source.get("attention_types", [[["global", "local"], layers // 2]])
    window = {"global": 0, "local": source.integer("window_size", 256)}
    try:
        count = sum(len(kinds) * times for kinds, times in types)
        if any(times < 0 for _, times in types) or count != layers or layers > len(source.tensors):
            raise source.error(f"has attention_types {types!r}, which are not one for each of {layers:,} layers")
        return tuple(window[kind] for kinds, times in types for kind in kinds * times)
    except (TypeError, ValueError, KeyError):
        raise source.error(f"has attention_types {types!r}") from None
