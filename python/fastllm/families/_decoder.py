"""The decoder that most families share, Llama's, under the names of the transformers library.

A family makes its Config with `settings`, which reads the keys that all of them have, and its Recipe with `decoder`,
which names embedding, norms and head, and for the rest of each layer calls the family's parts:

    def family(source: Source) -> Recipe:
        source.defaults = {...}                       # of transformers' class, for keys that a config leaves out
        config = settings(source, qk_norm="head")     # what differs from a plain Llama, by Config's names
        return decoder(source, config, attention, qk_norm, feed_forward)

A part gives tensors of layer i their canonical names; `attention`, `qk_norm` and `feed_forward` are the common ones,
and functools.partial sets their options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from fastllm.config import Config
from fastllm.families._huggingface import act, eos, head_width
from fastllm.families._rope import parameters, rotation
from fastllm.families.source import Recipe, Source, half_split

Part = Callable[[Source, Config, int], None]

_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# The norms of a layer: canonical name -> transformers'.
BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ONE_BEFORE = {"attn_norm": "input_layernorm"}  # attention and feed-forward side by side


# ---- the config


def settings(
    source: Source,
    *,
    rope: Source | None = None,
    theta: float = 10000.0,
    head_dim: int | None = None,
    **flags: Any,
) -> Config:
    """The Config of a decoder; also names its rotary frequencies.

    rope: the rotary parameters, None for _rope.parameters with `theta`. theta, head_dim: the class's defaults, None for
    dim / heads channels a head. flags: fields of Config, which replace those that the checkpoint's config gives.
    """
    source.refuse("per_layer_config")
    source.refuse("is_causal", True)
    if flags.get("causal", True):
        source.refuse("use_bidirectional_attention", False)
    rope = rope or parameters(source, theta=theta)
    dim, heads = source.integer("hidden_size"), source.integer("num_attention_heads")
    if source.get("head_dim", head_dim) is None:
        head_dim = head_width(source, dim, heads)
    else:
        head_dim = source.integer("head_dim", head_dim)
    if not 1 <= head_dim <= 4096:
        raise source.error(f"has heads of {head_dim} channels")
    norm = flags.get("norm", "rms")
    values = {
        "dim": dim,
        "hidden_dim": source.integer("intermediate_size"),
        "head_dim": head_dim,
        "n_layers": source.integer("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": _kv_heads(source, heads),
        "vocab_size": source.rows("vocab_size", _EMBED, _HEAD),
        "max_seq": source.integer("max_position_embeddings"),
        "rotary_dim": int(head_dim * rope.number("partial_rotary_factor", 1.0)),
        "norm_eps": source.number("layer_norm_eps" if norm == "layer" else "rms_norm_eps"),
        "attn_scale": head_dim**-0.5,
        "act": flags.get("act") or act(source, default="silu"),
    }
    config = Config(**(values | flags))
    if not config.rotary_dim:
        return config
    rotary = rotation(rope, config.rotary_dim, config.max_seq)
    source.vectors["rope.freqs"] = rotary.freqs
    if rotary.switch:
        source.vectors["rope.freqs_long"] = rotary.long
    return config._replace(rope_scale=rotary.scale, rope_switch=rotary.switch)


def _kv_heads(source: Source, heads: int) -> int:
    """Heads of keys and values. null means as many as query heads, whatever the class's default is."""
    null = "num_key_value_heads" in source.header and source.header["num_key_value_heads"] is None
    return heads if null else source.integer("num_key_value_heads", heads)


def depth(source: Source) -> int:
    """How many layers there are, for code that makes a list of them before Config checks the number."""
    n = source.integer("num_hidden_layers")
    if not 1 <= n <= 65536:
        raise source.error(f"has num_hidden_layers {n}")
    return n


def positive(source: Source, key: str, default: float | None = None) -> float:
    """A number above 0 of the config. Raises CheckpointError for others."""
    value = source.number(key, default)
    if value <= 0:
        raise source.error(f"has {key} {value}, which must be greater than 0")
    return value


def _window(source: Source, default: int | None) -> int:
    """sliding_window: null is none (0), a missing key is `default`."""
    return source.integer("sliding_window", 0 if "sliding_window" in source.header else default or 0)


def same_window(source: Source, default: int | None = None) -> tuple[int, ...]:
    """Config.windows with the sliding_window in all layers."""
    return (_window(source, default),) * depth(source)


def layer_windows(source: Source, default: int | None, sliding: Callable[[int], bool]) -> tuple[int, ...]:
    """Config.windows with the sliding_window in some layers.

    They are those that layer_types calls sliding_attention; without layer_types, those i for which sliding(i) holds.
    """
    n, size = depth(source), _window(source, default)
    kinds = source.get("layer_types", ["sliding_attention" if sliding(i) else "full_attention" for i in range(n)])
    if not isinstance(kinds, list) or len(kinds) < n:
        raise source.error(f"has no layer_types for each of {n} layers")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise source.error(f"has a layer of the type {kind!r}, which fastllm does not support")
    return tuple(size if kind == "sliding_attention" else 0 for kind in kinds[:n])


# ---- the tensors


def decoder(
    source: Source,
    config: Config,
    *parts: Part,
    norms: Mapping[str, str] = BEFORE,
    norm_add: float = 0.0,
    norm_bias: bool = False,
    tied: bool = False,
    bos: bool = True,
) -> Recipe:
    """The recipe of a decoder.

    parts: name the tensors of each layer, but for its `norms`. norm_add: added to the weights of norms. norm_bias:
    whether norms have biases. tied: whether the head is the embedding where the config does not say. bos: whether texts
    start with BOS where the tokenizer does not say.
    """

    def norm(ours: str, theirs: str) -> None:
        source.norm(ours, theirs, bias=norm_bias, add=norm_add)

    for i in range(config.n_layers):
        for ours, theirs in norms.items():
            norm(f"layers.{i}.{ours}", f"model.layers.{i}.{theirs}")
        for part in parts:
            part(source, config, i)
    norm("final_norm", "model.norm")
    head = source.embedding(_EMBED, _HEAD, tied=tied)
    stop = eos(source.section("generation_config")) or eos(source)
    first = source.get("bos_token_id") if bos else None
    return source.recipe(config._replace(head=head), bos=first if type(first) is int else None, stop=stop)


def _linear(source: Source, ours: str, theirs: str, *, bias: bool, heads: int = 0, head_dim: int = 0) -> None:
    """Names a linear layer. heads: that many heads of it rotate pairs (2i, 2i + 1); 0 if none do."""
    if not heads:
        source.linear(ours, theirs, bias=bias)
        return
    for name in (f"{theirs}.weight", f"{theirs}.bias")[: 1 + bias]:
        if source.tensor(name).shape[:1] != (heads * head_dim,):
            raise source.error(f"has not {heads * head_dim} rows in {name}")
    source.linear(ours, theirs, bias=bias, rows=half_split(heads, head_dim))


def attention(
    source: Source,
    config: Config,
    i: int,
    *,
    bias: bool | None = None,
    out_bias: bool | None = None,
    interleaved: bool = False,
) -> None:
    """The part of q_proj, k_proj, v_proj and o_proj.

    bias: whether the first three have biases, out_bias: whether the last has; None for what attention_bias says.
    interleaved: whether heads rotate pairs (2i, 2i + 1) instead of (i, i + head_dim / 2).
    """
    ours, theirs = f"layers.{i}.attn", f"model.layers.{i}.self_attn"
    default = source.flag("attention_bias")
    own = source.flag("attention_out_bias", default)  # set by translations: GGUF, mindformers
    bias = default if bias is None else bias
    q, kv = (config.n_heads, config.n_kv_heads) if interleaved else (0, 0)
    _linear(source, f"{ours}.wq", f"{theirs}.q_proj", bias=bias, heads=q, head_dim=config.head_dim)
    _linear(source, f"{ours}.wk", f"{theirs}.k_proj", bias=bias, heads=kv, head_dim=config.head_dim)
    _linear(source, f"{ours}.wv", f"{theirs}.v_proj", bias=bias)
    _linear(source, f"{ours}.wo", f"{theirs}.o_proj", bias=own if out_bias is None else out_bias)


def qk_norm(source: Source, config: Config, i: int, *, add: float = 0.0, interleaved: bool = False) -> None:
    """The part of q_norm and k_norm, whose weights are of one head, for all of them, or of each head.

    add: added to the weights. interleaved: as for attention.
    """
    if config.qk_norm == "none":
        return
    for ours, heads in (("q_norm", config.n_heads), ("k_norm", config.n_kv_heads)):
        tensor = source.tensor(f"model.layers.{i}.self_attn.{ours}.weight")
        size = prod(tensor.shape)
        shared = config.qk_norm == "head" and size == config.head_dim
        if not shared and size != heads * config.head_dim:
            raise source.error(f"has {ours} of {size} values in layer {i}, which do not fit {heads} heads")
        rows = half_split(heads, config.head_dim) if interleaved else None
        source.vector(f"layers.{i}.attn.{ours}", tensor, add=add, repeat=heads if shared else 1, rows=rows)


def feed_forward(source: Source, config: Config, i: int, *, theirs: str = "mlp") -> None:
    """The part of gate_proj, up_proj and down_proj. theirs: the module that they are in."""
    bias = source.flag("mlp_bias")
    for ours, name in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        _linear(source, f"layers.{i}.ffn.{ours}", f"model.layers.{i}.{theirs}.{name}", bias=bias)
