"""Keys that the configs of the transformers library share, whatever the family: activation, heads, end tokens."""

from __future__ import annotations

from fastllm.families.source import Source

# The activation functions of transformers (its activations.py) that the core has, and their names there.
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
    """The activation function, one of config.ACTS. Raises CheckpointError for one that the core does not have."""
    name = source.text(key, default)
    if name not in ACTS:
        raise source.error(f"has the activation function {name!r}; known are {', '.join(ACTS)}")
    return ACTS[name]


def head_width(source: Source, dim: int, heads: int) -> int:
    """Channels of a head, dim / heads. Raises CheckpointError unless that is whole."""
    if dim < 1 or heads < 1 or dim % heads:
        raise source.error(f"has {heads} attention heads, which cannot share a width of {dim} evenly")
    return dim // heads


def eos(source: Source) -> tuple[int, ...]:
    """The ids of the tokens that end a text: eos_token_id, which is a number, a list or missing."""
    value = source.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise source.error(f"has eos_token_id {value!r}")
    return tuple(ids)
