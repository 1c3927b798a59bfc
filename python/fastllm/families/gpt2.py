"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, matrices stored (inputs, outputs), a tied head.

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from __future__ import annotations

from fastllm.config import Config
from fastllm.families._huggingface import act, eos, head_width
from fastllm.families.source import Recipe, Source
from fastllm.tensors import Tensor, columns, floats, parted, transposed


def gpt2(source: Source) -> Recipe:
    """GPT2LMHeadModel, GPT2Model."""
    source.refuse("add_cross_attention", False)
    dim, heads = source.integer("n_embd", 768), source.integer("n_head", 12)
    head_dim = head_width(source, dim, heads)
    positions = source.rows("n_positions", "transformer.wpe.weight")
    config = Config(
        dim=dim,
        hidden_dim=source.integer("n_inner", 4 * dim),
        head_dim=head_dim,
        n_layers=source.integer("n_layer", 12),
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
        attn_scale=head_dim**-0.5 if source.flag("scale_attn_weights", True) else 1.0,
    )
    by_layer = source.flag("scale_attn_by_inverse_layer_idx")
    for i in range(config.n_layers):
        theirs, ours = f"transformer.h.{i}", f"layers.{i}"
        source.norm(f"{ours}.attn_norm", f"{theirs}.ln_1", bias=True)
        weight = _outputs_first(source.tensor(f"{theirs}.attn.c_attn.weight"))  # (3 * dim, dim)
        bias = source.tensor(f"{theirs}.attn.c_attn.bias")
        weights = parted(weight, dim, dim, dim)
        for n, name in enumerate(("wq", "wk", "wv")):
            rows, values = weights[n], columns(bias, n * dim, (n + 1) * dim)
            if name == "wq" and by_layer:  # divides scores by i + 1
                rows, values = _scaled(rows, 1 / (i + 1)), _scaled(values, 1 / (i + 1))
            source.matrix(f"{ours}.attn.{name}", rows)
            source.vector(f"{ours}.attn.{name}.bias", values)
        source.linear(f"{ours}.attn.wo", f"{theirs}.attn.c_proj", turn=_outputs_first, bias=True)
        source.norm(f"{ours}.ffn_norm", f"{theirs}.ln_2", bias=True)
        source.linear(f"{ours}.ffn.w1", f"{theirs}.mlp.c_fc", turn=_outputs_first, bias=True)
        source.linear(f"{ours}.ffn.w2", f"{theirs}.mlp.c_proj", turn=_outputs_first, bias=True)
    source.norm("final_norm", "transformer.ln_f", bias=True)
    source.matrix("positions", "transformer.wpe.weight")
    head = source.embedding("transformer.wte.weight", "lm_head.weight", tied=True)
    return source.recipe(config._replace(head=head), stop=eos(source))


def _outputs_first(tensor: Tensor) -> Tensor:
    """A matrix (inputs, outputs) as (outputs, inputs). A quantized one is so already: quantizers replace Conv1D."""
    return tensor if tensor.stored else transposed(tensor)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return Tensor("f32", tensor.shape, lambda begin, end: floats(tensor, begin, end) * factor)
