"""What the configs of the transformers library have in common, whatever the family."""

from __future__ import annotations

from fastllm.families.source import Source

ACTS = {
    "gelu": "gelu_erf",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def act(source: Source, key: str = "hidden_act", default: str = "gelu") -> str:
    """The activation function by our name."""
    name = source.text(key, default)
    if name not in ACTS:
        raise source.error(f"has the activation function {name!r}; known are {', '.join(ACTS)}")
    return ACTS[name]


def head_width(source: Source, dim: int, heads: int) -> int:
    """Channels of a head where the heads share the model's width."""
    if dim < 1 or heads < 1 or dim % heads:
        raise source.error(f"has {heads} attention heads, which cannot share a width of {dim} evenly")
    return dim // heads


def eos(source: Source) -> tuple[int, ...]:
    """The tokens that end a text: eos_token_id, a number or a list of them."""
    value = source.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise source.error(f"has eos_token_id {value!r}")
    return tuple(ids)
